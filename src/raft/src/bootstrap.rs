//! Bootstraps a cluster, exactly once.
//!
//! The first of the initial nodes bootstraps the cluster. It probes all of them, and continues only after every one has
//! answered that it has no history. Then it makes a cluster id, gives every node its identity (durably, its own first),
//! and initializes Raft. A node with history means that there already is a cluster, and then no new one is created.
//!
//! An empty node that finds a cluster (it was started later, or it lost its disk) asks to join it. It gets a new id and
//! takes the place of its old self there. Its old id is never used again, because the commitments under that id are
//! lost with the disk.
//!
//! A founder that crashes in between finds its own identity again and gives the others the same one. An identity may be
//! replaced only while the node has neither voted nor stored a log entry, because it has made no commitments under it
//! until then.
//!
//! A node that has the data of another cluster than its neighbours (a volume that was mounted in the wrong place)
//! detects that. Otherwise it would serve that cluster's data at this one's address.
//!
//! Does not cover: the admission of a node that asks to join, which the leader decides (`node::joining`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tonic::{Request, Status};

use crate::{
    transport::peers::{Credentials, Lane, Peers, reason},
    types::NodeRecord,
};
use proto::raft::v1 as wire;
use storage::{Identity, LogDb};

/// Pause between two rounds.
const ROUND_DELAY: Duration = Duration::from_millis(200);
/// Timeout of one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a request to join, which includes a change of the membership.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// Interval between comparisons with the clusters of the other nodes.
const COMPARE_DELAY: Duration = Duration::from_secs(1);
/// Timeout of one answer in a comparison. A start waits for the first comparison.
const COMPARE_TIMEOUT: Duration = Duration::from_millis(300);
/// Rounds between two log lines about the reason to wait.
const ROUNDS_PER_LINE: u32 = 25;

/// Name and addresses that a node advertises.
#[derive(Debug, Clone)]
pub struct Advertised {
    /// Name of the node.
    pub name: String,
    /// Address at which the other nodes reach the node, `host:port`.
    pub peer_address: String,
    /// Address at which clients reach the node, `host:port`.
    pub client_address: String,
    /// Address at which browsers reach the node, `host:port`.
    pub web_address: String,
}

/// The part of a node that accepts an identity.
#[derive(Clone)]
pub struct Bootstrap {
    log: LogDb,
    advertised: Advertised,
    credentials: Credentials,
    identity: Arc<watch::Sender<Option<Identity>>>,
    /// Whether the node had files and lost them, which means that there was a cluster.
    had_history: bool,
    /// Id of this node's requests to join, so that a lost answer costs no second node id.
    admission: u64,
    /// Join token; empty: none.
    token: String,
    /// Held while an identity is stored, so that only one is stored at a time.
    giving: Arc<tokio::sync::Mutex<()>>,
}

impl Bootstrap {
    /// A node with the log `log`. `credentials` are those of a node outside of any cluster.
    pub fn new(log: LogDb, advertised: Advertised, credentials: Credentials) -> Self {
        let identity = Arc::new(watch::Sender::new(log.identity()));
        let (admission, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self {
            log,
            advertised,
            credentials,
            identity,
            had_history: false,
            admission,
            token: String::new(),
            giving: Arc::default(),
        }
    }

    /// The same node, with a join token.
    pub fn with_token(self, token: Option<&str>) -> Self {
        Self { token: token.unwrap_or_default().to_owned(), ..self }
    }

    /// The same node, with `lost` for one that had files and lost them. It may join a cluster, but takes no part in
    /// bootstrapping one.
    pub fn after_loss(self, lost: bool) -> Self {
        Self { had_history: lost, ..self }
    }

    /// The answer to a probe of this node.
    pub(crate) fn describe(&self) -> wire::ProbeResponse {
        let identity = self.log.identity();
        wire::ProbeResponse {
            name: self.advertised.name.clone(),
            cluster_id: identity.as_ref().map(|identity| identity.cluster_id.clone()).unwrap_or_default(),
            node_id: identity.map_or(0, |identity| identity.node_id),
            initialized: !self.log.is_pristine() || self.had_history,
            client_address: self.advertised.client_address.clone(),
            web_address: self.advertised.web_address.clone(),
            admission: self.admission,
        }
    }

    /// The announcement of this node's addresses to the members that have it under `identity`.
    pub(crate) fn announcement(&self, identity: &Identity) -> wire::MoveRequest {
        let advertised = self.advertised.clone();
        wire::MoveRequest {
            cluster_id: identity.cluster_id.clone(),
            node_id: identity.node_id,
            name: advertised.name,
            peer_address: advertised.peer_address,
            client_address: advertised.client_address,
            web_address: advertised.web_address,
            admission: self.admission,
        }
    }

    /// Accepts an identity, unless this node has one under which it has made commitments.
    pub(crate) async fn accept(&self, request: wire::BootstrapRequest) -> Result<(), Status> {
        let _one = self.giving.lock().await;
        if request.name != self.advertised.name {
            return Err(Status::failed_precondition(format!(
                "this node is called {:?}, not {:?}",
                self.advertised.name, request.name
            )));
        }
        if request.cluster_id.is_empty() || request.node_id == 0 {
            return Err(Status::invalid_argument("cluster_id and node_id are needed"));
        }
        let identity = Identity { cluster_id: request.cluster_id, node_id: request.node_id, name: request.name };
        if self.log.identity().as_ref() == Some(&identity) {
            return Ok(());
        }
        if !self.log.is_pristine() {
            return Err(Status::failed_precondition("this node has history in a cluster"));
        }
        if self.log.identity().is_some() && self.identity.receiver_count() == 0 {
            // Raft already runs under the old identity. After a restart, another one can be accepted.
            return Err(Status::failed_precondition("this node has started under another identity"));
        }
        self.take(identity).await
    }

    async fn take(&self, identity: Identity) -> Result<(), Status> {
        let (done, stored) = oneshot::channel();
        let done = Box::new(move |result| {
            // The receiver is gone if the node is stopping.
            let _ = done.send(result);
        });
        let failed = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        self.log.begin_identity(identity.clone(), done).map_err(|error| failed(&error))?;
        stored.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        tracing::info!(
            cluster = identity.cluster_id,
            node_id = identity.node_id,
            "This node is a member of its cluster"
        );
        self.identity.send_replace(Some(identity));
        Ok(())
    }

    /// Waits until this node has an identity: its own from earlier, or one from the founder or from a member that
    /// admitted it.
    pub async fn identity(&self) -> Identity {
        let mut identity = self.identity.subscribe();
        loop {
            if let Some(identity) = identity.borrow_and_update().clone() {
                return identity;
            }
            // The sender is a field of `self`, so it cannot be gone.
            let _ = identity.changed().await;
        }
    }

    /// Bootstraps the cluster of `initial` (name and peer address of each node; this node is the first). Returns the
    /// members to initialize Raft with, or `None` if there already is a cluster or this node was initialized earlier.
    pub async fn run(&self, peers: &Peers, initial: &[(String, String)]) -> Option<BTreeMap<u64, NodeRecord>> {
        let mut rounds = 0;
        loop {
            if !self.log.is_pristine() || self.had_history {
                return None;
            }
            match self.round(peers, initial).await {
                Ok(members) => return Some(members),
                Err(BootstrapError::Exists(name, cluster)) => {
                    tracing::warn!(
                        peer = name,
                        cluster,
                        "A cluster exists already, and this node's data directory has no history of it; joining it"
                    );
                    return None;
                }
                Err(BootstrapError::Waiting(reason)) => {
                    if rounds % ROUNDS_PER_LINE == 0 {
                        tracing::info!("The cluster cannot be bootstrapped yet: {reason}");
                    }
                    rounds += 1;
                }
            }
            tokio::time::sleep(ROUND_DELAY).await;
        }
    }

    /// Asks the nodes at `addresses` for a place in their cluster, until this node has an identity.
    pub async fn join(&self, peers: &Peers, addresses: &[String]) {
        let mut rounds = 0;
        while self.log.identity().is_none() {
            let mut problem = None;
            for address in addresses {
                match self.ask_to_join(peers, address).await {
                    Ok(()) => return,
                    Err(BootstrapError::Exists(..)) => {}
                    Err(BootstrapError::Waiting(reason)) => problem = Some(reason),
                }
            }
            if let Some(reason) = problem.filter(|_| rounds % ROUNDS_PER_LINE == ROUNDS_PER_LINE - 1) {
                tracing::info!("This node has not been admitted to a cluster yet: {reason}");
            }
            rounds += 1;
            tokio::time::sleep(ROUND_DELAY).await;
        }
    }

    /// Asks a member, and then the leader that it names.
    async fn ask_to_join(&self, peers: &Peers, address: &str) -> Result<(), BootstrapError> {
        match self.ask_for_a_place(peers, address).await? {
            None => Ok(()),
            Some(leader) => match self.ask_for_a_place(peers, &leader).await? {
                None => Ok(()),
                Some(other) => {
                    Err(BootstrapError::Waiting(format!("{address} names {leader} as the leader, and that {other}")))
                }
            },
        }
    }

    /// Asks one node. Returns the address of the leader if another node leads.
    async fn ask_for_a_place(&self, peers: &Peers, address: &str) -> Result<Option<String>, BootstrapError> {
        let waiting = |reason: &str| BootstrapError::Waiting(format!("{address}: {reason}"));
        let found = self.probe(peers, "a member", address).await?;
        // That node has no history: the cluster is being bootstrapped, and this node may be among its initial nodes.
        if !found.initialized || found.cluster_id.is_empty() {
            return Err(waiting("it does not belong to a running cluster"));
        }
        let mut client = peers.client(address, Lane::Control).map_err(|status| waiting(status.message()))?;
        let request = self.sign(wire::JoinRequest {
            name: self.advertised.name.clone(),
            peer_address: self.advertised.peer_address.clone(),
            client_address: self.advertised.client_address.clone(),
            web_address: self.advertised.web_address.clone(),
            admission: self.admission,
            token: self.token.clone(),
        });
        let admitted = match timeout(JOIN_TIMEOUT, client.join(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(waiting(&reason(&status))),
            Err(_) => return Err(waiting("no answer")),
        };
        if admitted.node_id == 0 {
            return Ok(Some(admitted.leader));
        }
        let _one = self.giving.lock().await;
        if self.log.identity().is_some() {
            return Ok(None);
        }
        let name = self.advertised.name.clone();
        let identity = Identity { cluster_id: admitted.cluster_id, node_id: admitted.node_id, name };
        self.take(identity).await.map(|()| None).map_err(|status| waiting(status.message()))
    }

    async fn round(
        &self,
        peers: &Peers,
        initial: &[(String, String)],
    ) -> Result<BTreeMap<u64, NodeRecord>, BootstrapError> {
        let mut answers = Vec::with_capacity(initial.len());
        for (name, address) in initial {
            let answer =
                if *name == self.advertised.name { self.describe() } else { self.probe(peers, name, address).await? };
            if answer.name != *name {
                let reason = format!("{address} is called {:?}, CHAT_INITIAL_NODES says {name:?}", answer.name);
                return Err(BootstrapError::Waiting(reason));
            }
            if answer.initialized {
                return Err(BootstrapError::Exists(answer.name, answer.cluster_id));
            }
            answers.push(answer);
        }
        let cluster_id = match self.log.identity() {
            Some(identity) => identity.cluster_id,
            None => uuid::Uuid::new_v4().to_string(),
        };
        let mut members = BTreeMap::new();
        for (position, ((name, address), answer)) in initial.iter().zip(answers).enumerate() {
            let node_id = position as u64 + 1;
            let request = wire::BootstrapRequest { cluster_id: cluster_id.clone(), node_id, name: name.clone() };
            if *name == self.advertised.name {
                self.accept(request).await.map_err(|status| BootstrapError::Waiting(status.message().to_owned()))?;
            } else {
                self.give(peers, name, address, request).await?;
            }
            let record = NodeRecord {
                name: name.clone(),
                peer_address: address.clone(),
                client_address: answer.client_address,
                web_address: answer.web_address,
                admission: 0,
            };
            members.insert(node_id, record);
        }
        Ok(members)
    }

    /// Checks whether this node belongs to another cluster than the one that `initial` (as for [`Bootstrap::run`])
    /// forms now. Returns the ids of both as soon as a majority of all nodes belongs to that other one, and `None` as
    /// soon as a majority belongs to this node's own.
    pub async fn other_cluster(&self, peers: &Peers, initial: &[(String, String)]) -> Option<(String, String)> {
        loop {
            if let Some(verdict) = self.compare(peers, initial).await {
                return verdict;
            }
            tokio::time::sleep(COMPARE_DELAY).await;
        }
    }

    /// One round of [`Bootstrap::other_cluster`]. The outer `None`: not decided yet.
    pub async fn compare(&self, peers: &Peers, initial: &[(String, String)]) -> Option<Option<(String, String)>> {
        let own = self.log.identity()?.cluster_id;
        let others = initial.iter().filter(|(name, _)| *name != self.advertised.name);
        let asked = others.map(|(name, address)| timeout(COMPARE_TIMEOUT, self.probe(peers, name, address)));
        let answers = join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?.ok());
        let mut votes: BTreeMap<String, usize> = BTreeMap::from([(own.clone(), 1)]);
        for answer in answers.filter(|answer| answer.initialized && !answer.cluster_id.is_empty()) {
            *votes.entry(answer.cluster_id).or_default() += 1;
        }
        let (named, _) = votes.into_iter().find(|(_, count)| *count > initial.len() / 2)?;
        Some((named != own).then_some((own, named)))
    }

    async fn probe(&self, peers: &Peers, name: &str, address: &str) -> Result<wire::ProbeResponse, BootstrapError> {
        let waiting = |reason: String| BootstrapError::Waiting(format!("{name} at {address}: {reason}"));
        probe(peers, &self.credentials, &self.advertised.name, address).await.map_err(waiting)
    }

    async fn give(
        &self,
        peers: &Peers,
        name: &str,
        address: &str,
        request: wire::BootstrapRequest,
    ) -> Result<(), BootstrapError> {
        let waiting = |reason: &str| BootstrapError::Waiting(format!("{name} at {address}: {reason}"));
        let mut client = peers.client(address, Lane::Control).map_err(|status| waiting(status.message()))?;
        match timeout(ANSWER_TIMEOUT, client.bootstrap(self.sign(request))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(waiting(status.message())),
            Err(_) => Err(waiting("no answer")),
        }
    }

    fn sign<T>(&self, message: T) -> Request<T> {
        self.credentials.present(message)
    }
}

/// Probes the node at an address.
async fn probe(
    peers: &Peers,
    credentials: &Credentials,
    own_name: &str,
    address: &str,
) -> Result<wire::ProbeResponse, String> {
    let mut client = peers.client(address, Lane::Control).map_err(|status| status.message().to_owned())?;
    let request = credentials.present(wire::ProbeRequest { name: own_name.to_owned() });
    match timeout(ANSWER_TIMEOUT, client.probe(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(reason(&status)),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Ids and names of the members of a cluster that answer at one of `addresses`, for a node that does not run.
/// `credentials` are those of a node outside of any cluster.
pub async fn members_alive(
    peers: &Peers,
    credentials: &Credentials,
    own_name: &str,
    cluster_id: &str,
    addresses: &[String],
) -> BTreeMap<u64, String> {
    let answers = join_all(addresses.iter().map(|address| probe(peers, credentials, own_name, address))).await;
    let members = answers.into_iter().flatten().filter(|answer| answer.cluster_id == cluster_id);
    members.map(|answer| (answer.node_id, answer.name)).collect()
}

/// Why a round did not succeed.
enum BootstrapError {
    /// A node has history: its name and its cluster id.
    Exists(String, String),
    /// The round cannot succeed yet, for this reason.
    Waiting(String),
}
