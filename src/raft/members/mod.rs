//! Membership changes of a running cluster.
//!
//! The leader makes all changes, one at a time, and each only if the membership is still the one that the decision was
//! based on (a precondition that Raft checks). A node joins as a learner, under an id that was never used before. When
//! it has caught up, the leader gives it a vote, and in the same change removes the vote of a member of the same name:
//! in this way a node that lost its disk replaces its old self. The leader checks the membership at intervals, so that
//! the next leader finishes a change that was left half done. [`plan`] decides which changes are allowed.
//!
//! Ids start at 16 and derive from the log index of the membership that is changed. A node gets its id only after the
//! change is committed, and no later change can start from the same index, so no id is used twice.
//!
//! Raft does not notify a node that was removed. A node without a leader asks the others whether it still belongs to
//! the cluster ([`Node::removed`]).

pub(super) mod moves;
mod plan;

use std::{collections::BTreeSet, time::Duration};

use openraft::{
    Precondition,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};

use self::plan::{Change, MembershipView};
use super::{
    error::{MemberError, ProposeError, TransferError},
    node::Node,
    peers::Lane,
    types::{NodeRecord, StoredMembership, TypeConfig},
};
use crate::{
    chat::{Command, Outcome, TokenHash},
    proto::raft::v1 as wire,
    storage::new_cluster::MEMBER_IDS_FROM,
};

/// Interval between checks of the membership.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Interval between retries of a change that is not possible at the moment.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Timeout of a change, which is two log entries. The current leader resumes one that takes longer.
const CHANGE_MAX: Duration = Duration::from_secs(5);
/// Timeout of a call to one node.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Interval at which a node without a leader asks whether it is still a member.
const MEMBERSHIP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An identity in this cluster.
pub(super) struct Admission {
    pub cluster_id: String,
    pub node_id: u64,
}

impl Node {
    /// Adds the empty node at `peer_address` as a learner, from any node. Returns its id.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn add_member(&self, peer_address: &str, deadline: Instant) -> Result<u64, MemberError> {
        let view = self.inner.view.borrow().clone();
        if view.is_leader() {
            return self.add_here(peer_address).await;
        }
        let leader = view.leader().ok_or(MemberError::NoLeader)?;
        let request = wire::AddMemberRequest { peer_address: peer_address.to_owned() };
        let request = self.inner.credentials.sign(leader.node_id, request);
        let client = self.inner.peers.member(leader.node_id, &leader.peer_address, Lane::Control);
        let mut client = client.map_err(|_| MemberError::NoLeader)?;
        let answer = timeout_at(deadline, client.add_member(request)).await;
        Ok(answered(answer)?.node_id)
    }

    /// Removes the node called `name`, from any node. Returns the removed ids.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn remove_member(&self, name: &str, deadline: Instant) -> Result<Vec<u64>, MemberError> {
        // A leader does not remove itself. It transfers leadership and asks its successor.
        if self.inner.identity.name == name && self.inner.view.borrow().is_leader() {
            self.transfer_leadership(None, deadline).await.map_err(|error| match error {
                TransferError::NoLeader => MemberError::NoLeader,
                TransferError::NotAVoter => {
                    MemberError::Conflict("this node leads, and no other voter can take over".into())
                }
                error @ (TransferError::Silent | TransferError::NotTaken(_)) => {
                    MemberError::Conflict(error.to_string())
                }
                TransferError::Unknown(reason) => MemberError::Unknown(reason),
            })?;
        }
        let view = self.inner.view.borrow().clone();
        if view.is_leader() {
            return self.remove_here(name).await.map(|ids| ids.into_iter().collect());
        }
        let leader = view.leader().ok_or(MemberError::NoLeader)?;
        if leader.name == name {
            self.transfer_leadership(None, deadline).await.map_err(|error| MemberError::Conflict(error.to_string()))?;
            return Box::pin(self.remove_member(name, deadline)).await;
        }
        let request = self.inner.credentials.sign(leader.node_id, wire::RemoveMemberRequest { name: name.to_owned() });
        let client = self.inner.peers.member(leader.node_id, &leader.peer_address, Lane::Control);
        let mut client = client.map_err(|_| MemberError::NoLeader)?;
        let answer = timeout_at(deadline, client.remove_member(request)).await;
        Ok(answered(answer)?.node_ids)
    }

    /// Admits an empty node that asks to join, or returns the address of the leader.
    pub(super) async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinResponse, MemberError> {
        let view = self.inner.view.borrow().clone();
        if view.is_leader() {
            self.permit(&request).await?;
            let Admission { cluster_id, node_id } = self.admit(request).await?;
            return Ok(wire::JoinResponse { cluster_id, node_id, leader: String::new() });
        }
        let leader = view.leader().ok_or(MemberError::NoLeader)?;
        let leader = self.inner.peers.address_of(leader.node_id, &leader.peer_address);
        Ok(wire::JoinResponse { leader, ..wire::JoinResponse::default() })
    }

    /// On the leader: probes the node at an address, and adds it as a learner if it is empty.
    pub(super) async fn add_here(&self, peer_address: &str) -> Result<u64, MemberError> {
        let conflict = |reason: String| MemberError::Conflict(format!("{peer_address}: {reason}"));
        let found = self.probe(peer_address).await.map_err(conflict)?;
        if !found.cluster_id.is_empty() || found.node_id != 0 {
            return Err(conflict(format!("the node {:?} there is not empty", found.name)));
        }
        let request = wire::JoinRequest {
            name: found.name.clone(),
            peer_address: peer_address.to_owned(),
            client_address: found.client_address,
            web_address: found.web_address,
            admission: found.admission,
            token: String::new(),
        };
        let Admission { cluster_id, node_id } = self.admit(request).await?;
        let client = self.inner.peers.client(peer_address, Lane::Control);
        let mut client = client.map_err(|status| conflict(status.message().to_owned()))?;
        let request = wire::BootstrapRequest { cluster_id, node_id, name: found.name };
        let request = self.inner.credentials.present(request);
        // If the node does not accept its identity, the learner remains unreachable. The next attempt removes it.
        match timeout(ANSWER_MAX, client.bootstrap(request)).await {
            Ok(Ok(_)) => Ok(node_id),
            Ok(Err(status)) => Err(conflict(status.message().to_owned())),
            Err(_) => Err(MemberError::Unknown("the node does not answer".into())),
        }
    }

    /// On the leader: checks that a node that asks to join is expected, or redeems its token.
    async fn permit(&self, joiner: &wire::JoinRequest) -> Result<(), MemberError> {
        let is_member = self.membership().membership().nodes().any(|(_, node)| node.name == joiner.name);
        if is_member || self.inner.expected_nodes.iter().any(|pattern| plan::matches(pattern, &joiner.name)) {
            return Ok(());
        }
        if joiner.token.is_empty() {
            return Err(MemberError::Conflict(format!(
                "{:?} is the name of no member, and neither in CHAT_INITIAL_NODES nor in CHAT_EXPECTED_NODES of the leader: it \
                 needs a token of `chatctl members token` as CHAT_JOIN_TOKEN",
                joiner.name
            )));
        }
        let token_hash = join_token_hash(&joiner.token);
        let command = Command::RedeemJoinToken { token_hash, admission: joiner.admission };
        match self.propose(command, None, Instant::now() + CHANGE_MAX).await {
            Ok(Outcome::JoinTokenRedeemed) => Ok(()),
            Ok(_) => {
                tracing::warn!(
                    name = joiner.name,
                    address = joiner.peer_address,
                    "Rejected a join request with an invalid token"
                );
                Err(MemberError::Conflict(
                    "the join token is not valid: it has expired, was used by another node, or the node was started again since"
                        .into(),
                ))
            }
            Err(ProposeError::NoLeader) => Err(MemberError::NoLeader),
            Err(error) => Err(MemberError::Unknown(error.to_string())),
        }
    }

    /// On the leader: adds an empty node as a learner.
    async fn admit(&self, joiner: wire::JoinRequest) -> Result<Admission, MemberError> {
        if joiner.name.is_empty() || joiner.peer_address.is_empty() {
            return Err(MemberError::Conflict("a name and a peer address are needed".into()));
        }
        let _one = self.inner.membership.lock().await;
        let cluster_id = self.inner.identity.cluster_id.clone();
        if let Some(node_id) = self.admitted(&joiner).await? {
            return Ok(Admission { cluster_id, node_id });
        }
        self.refuse_a_namesake(&joiner).await?;
        let record = NodeRecord {
            name: joiner.name,
            peer_address: joiner.peer_address,
            client_address: joiner.client_address,
            web_address: joiner.web_address,
            admission: joiner.admission,
        };
        let text = record.to_string();
        let node_id = self
            .change(|base, membership_view| {
                let id = base + MEMBER_IDS_FROM;
                membership_view.admission(id, record).map(|change| (id, change))
            })
            .await?;
        tracing::info!(node_id, "{text} joins the cluster");
        Ok(Admission { cluster_id, node_id })
    }

    /// The id that an earlier request of the same node was given. Either that answer was lost, or this is an older
    /// request that took longer than a newer one. A new id would displace the one that the node may have accepted by
    /// now.
    async fn admitted(&self, joiner: &wire::JoinRequest) -> Result<Option<u64>, MemberError> {
        let is_same = |node: &NodeRecord| node.name == joiner.name && node.admission == joiner.admission;
        if joiner.admission == 0 || !self.membership().membership().nodes().any(|(_, node)| is_same(node)) {
            return Ok(None);
        }
        let settled = self.settled_membership().await?;
        Ok(settled.membership().nodes().find(|(_, node)| is_same(node)).map(|(id, _)| *id))
    }

    /// Rejects a joining node while a member of the same name is alive. That member keeps its place.
    async fn refuse_a_namesake(&self, joiner: &wire::JoinRequest) -> Result<(), MemberError> {
        let stored = self.membership();
        let cluster_health = self.cluster_health_here();
        let membership_view = self.membership_view(&stored, &cluster_health);
        for id in membership_view.ids_of(&joiner.name) {
            let in_use = || MemberError::Conflict(format!("the member {id}, called {:?}, is alive", joiner.name));
            let Some(node) = stored.membership().get_node(&id) else { continue };
            if membership_view.is_healthy(id) {
                return Err(in_use());
            }
            let alive = self
                .probe(&self.inner.peers.address_of(id, &node.peer_address))
                .await
                .is_ok_and(|found| found.node_id == id);
            if alive || id == self.inner.identity.node_id {
                return Err(in_use());
            }
        }
        Ok(())
    }

    /// On the leader: removes all nodes of a name.
    pub(super) async fn remove_here(&self, name: &str) -> Result<BTreeSet<u64>, MemberError> {
        if self.inner.identity.name == name {
            return Err(MemberError::Conflict("this node leads, so it must transfer leadership first".into()));
        }
        let _one = self.inner.membership.lock().await;
        // Two conflicts pass by themselves: a new leader has no answers from some members yet, or another change is in
        // flight.
        let patience = Instant::now() + self.inner.election_max * 2;
        let ids = loop {
            match self.change(|_, membership_view| membership_view.removal(name)).await {
                Err(MemberError::Conflict(_)) if Instant::now() < patience => sleep(RETRY_EVERY).await,
                result => break result?,
            }
        };
        tracing::info!(name, ?ids, "A node was removed from the cluster");
        Ok(ids)
    }

    /// Decides on a change and makes it, provided that the membership is unchanged.
    async fn change<T>(
        &self,
        decide: impl FnOnce(u64, &MembershipView<'_>) -> Result<(T, Change), MemberError>,
    ) -> Result<T, MemberError> {
        let stored = self.membership();
        let cluster_health = self.cluster_health_here();
        let base = stored.log_id().map_or(0, |id| id.index);
        let (result, change) = decide(base, &self.membership_view(&stored, &cluster_health))?;
        self.apply_change(&stored, change).await?;
        Ok(result)
    }

    async fn apply_change(&self, base: &StoredMembership, change: Change) -> Result<(), MemberError> {
        let same: Precondition<TypeConfig> =
            Precondition::LastMembershipLogId { last_membership_log_id: *base.log_id() };
        // A voter that is removed does not stay as a learner.
        match timeout(CHANGE_MAX, self.inner.raft.change_membership_if(change, false, [same])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(fatal))) => Err(MemberError::Unknown(fatal.to_string())),
            Ok(Err(RaftError::APIError(error))) => Err(match error {
                ClientWriteError::ForwardToLeader(_) => MemberError::NoLeader,
                ClientWriteError::LogEntryDiscarded(_) => MemberError::Unknown(error.to_string()),
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                    MemberError::Conflict("another change of the membership is under way".into())
                }
                other => MemberError::Conflict(other.to_string()),
            }),
            Err(_) => Err(MemberError::Unknown("the change was not committed in time".into())),
        }
    }

    /// Waits until this node has another member in its membership.
    pub async fn has_fellows(&self) {
        let mut view = self.inner.view.clone();
        if view.wait_for(|view| view.members.len() > 1).await.is_err() {
            // Raft was shut down.
            std::future::pending().await
        }
    }

    /// The effective membership, committed or not.
    fn membership(&self) -> StoredMembership {
        use openraft::async_runtime::WatchReceiver as _;
        (*self.inner.raft.server_metrics().borrow_watched().membership_config).clone()
    }

    fn membership_view<'a>(
        &self,
        stored: &'a StoredMembership,
        cluster_health: &'a super::ClusterHealth,
    ) -> MembershipView<'a> {
        MembershipView { membership: stored.membership(), cluster_health, silence_max: self.inner.election_max }
    }

    async fn probe(&self, peer_address: &str) -> Result<wire::ProbeResponse, String> {
        let client = self.inner.peers.client(peer_address, Lane::Control);
        let mut client = client.map_err(|status| status.message().to_owned())?;
        let request = wire::ProbeRequest { name: self.inner.identity.name.clone() };
        let request = self.inner.credentials.present(request);
        match timeout(ANSWER_MAX, client.probe(request)).await {
            Ok(Ok(found)) => Ok(found.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Whether an id belongs to the cluster, as of a moment at which a majority has confirmed the leader. Any member
    /// can answer. A node that was removed while it was away does not have the addresses of the members that joined
    /// meanwhile, and one of those may lead.
    pub(super) async fn is_member_here(&self, node_id: u64) -> Result<bool, MemberError> {
        Ok(self.settled_membership().await?.membership().get_node(&node_id).is_some())
    }

    /// The membership as of a moment at which a majority has confirmed the leader. Fails while a change is in flight,
    /// or while this node is behind.
    async fn settled_membership(&self) -> Result<StoredMembership, MemberError> {
        let committed = self.inner.read_index.ask().await.map_err(|_| MemberError::NoLeader)?;
        let stored = self.membership();
        let may_be_taken_back = stored.log_id().is_some_and(|id| id > committed);
        // A leader has every committed entry in its log.
        let is_behind = !self.inner.view.borrow().is_leader() && *self.inner.applied.borrow() < Some(committed);
        if may_be_taken_back || is_behind { Err(MemberError::NoLeader) } else { Ok(stored) }
    }

    /// Waits until a member answers that this node no longer belongs to the cluster. While this node has no leader, it
    /// asks the other members and the nodes at `more` addresses.
    pub async fn removed(&self, more: &[String]) {
        loop {
            if !self.is_led() && self.ask_membership(more).await == Some(false) {
                return;
            }
            sleep(MEMBERSHIP_CHECK_INTERVAL).await;
        }
    }

    /// Current addresses of the other members, and `more` addresses.
    fn addresses_of_others(&self, more: &[String]) -> BTreeSet<String> {
        let view = self.inner.view.borrow();
        let others = view.members.iter().filter(|peer| peer.node_id != self.inner.identity.node_id);
        let known = others.map(|peer| self.inner.peers.address_of(peer.node_id, &peer.peer_address));
        known.chain(more.iter().cloned()).collect()
    }

    async fn ask_membership(&self, more: &[String]) -> Option<bool> {
        let own = self.inner.identity.node_id;
        let questions = self.addresses_of_others(more).into_iter().map(|address| async move {
            let mut client = self.inner.peers.client(&address, Lane::Control).ok()?;
            let cluster_id = self.inner.identity.cluster_id.clone();
            let request = self.inner.credentials.present(wire::CheckMembershipRequest { cluster_id, node_id: own });
            let answer = timeout(ANSWER_MAX, client.check_membership(request)).await.ok()?.ok()?;
            Some(answer.into_inner().is_member)
        });
        futures_util::future::join_all(questions).await.into_iter().flatten().next()
    }
}

/// The hash of the bytes that the hex digits of a join token encode. An invalid token gives a hash that belongs to no
/// token.
fn join_token_hash(token: &str) -> TokenHash {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    let bytes: Vec<u8> = token.as_bytes().chunks(2).map_while(byte).collect();
    TokenHash(Sha256::digest(bytes).into())
}

/// Converts the answer of another node.
fn answered<T>(
    answer: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
) -> Result<T, MemberError> {
    match answer {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::NotFound => MemberError::NodeUnknown,
            Code::FailedPrecondition => MemberError::Conflict(status.message().to_owned()),
            Code::Unavailable => MemberError::NoLeader,
            _ => MemberError::Unknown(status.message().to_owned()),
        }),
        Err(_) => Err(MemberError::Unknown("the leader does not answer".into())),
    }
}

impl From<MemberError> for Status {
    fn from(error: MemberError) -> Self {
        let text = error.to_string();
        match error {
            MemberError::NoLeader => Self::unavailable(text),
            MemberError::NodeUnknown => Self::not_found(text),
            MemberError::Conflict(_) => Self::failed_precondition(text),
            MemberError::Unknown(_) => Self::aborted(text),
        }
    }
}

/// While this node leads: finishes changes that were left half done, and gives votes to learners that have caught up.
pub(super) async fn keep(node: Node) {
    loop {
        sleep(LOOK_EVERY).await;
        if node.inner.view.has_changed().is_err() {
            return; // Raft was shut down.
        }
        if !node.inner.view.borrow().is_leader() {
            continue;
        }
        // Another change is in flight.
        let Ok(_one) = node.inner.membership.try_lock() else { continue };
        let stored = node.membership();
        let cluster_health = node.cluster_health_here();
        let Some(change) = node.membership_view(&stored, &cluster_health).next_step() else { continue };
        tracing::info!(?change, "Changing the membership");
        if let Err(error) = node.apply_change(&stored, change).await {
            tracing::warn!(%error, "The membership change failed; retrying");
        }
    }
}
