//! Members whose addresses differ from their records.
//!
//! A node that starts with other addresses announces them until its record has them and is committed. It sends the
//! announcement to the leader or, without a leader, to all members and to the seed addresses of its configuration. An
//! announcement has two effects:
//!
//! - A node that receives it, and finds the member there under its id, calls the member at that address from then on
//!   ([`Peers::found`]). So nodes that have all moved find each other again and can elect a leader, because each has
//!   the others' new addresses in its configuration.
//! - The leader changes the record, like any other change of the membership.
//!
//! Neither happens while another process with the same identity answers at the old address, so that a copied volume
//! takes the place of no member. Before that, [`Credentials`](crate::raft::peers::Credentials) checks whether a caller
//! may speak for a member at all.
//!
//! [`Peers::found`]: crate::raft::peers::Peers::found

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::{ANSWER_MAX, CHANGE_MAX};
use crate::{
    failpoints,
    proto::raft::v1 as wire,
    raft::{
        bootstrap::Bootstrap,
        error::MemberError,
        node::Node,
        peers::{HEARD_MAX, Lane, reason},
        types::NodeRecord,
        view::Peer,
    },
};

/// Interval between announcements.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Interval between checks whether there still is a leader.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a move may go unrecorded before an error is logged. `LINE_EVERY` is the interval between such log lines.
const QUIET_MAX: Duration = Duration::from_secs(5);
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Most leaders that are asked because other members named them. The members may disagree for a moment.
const LEADERS_MAX: usize = 3;
/// Longest accepted address in bytes: a DNS name and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

// Otherwise a member would become unreachable between two announcements.
const _: () = assert!(HEARD_MAX.as_secs() > 2 * SAY_EVERY.as_secs() + 2 * ANSWER_MAX.as_secs());

/// Starts to follow the addresses of the members, and to announce those of this node until its record has them.
pub(in crate::raft) fn follow(node: &Node, bootstrap: &Bootstrap, seed_addresses: Vec<String>) {
    let own = bootstrap.announcement(&node.inner.identity);
    tokio::spawn(announce(node.clone(), own, seed_addresses));
}

/// Returns when Raft was shut down.
async fn announce(node: Node, own: wire::MoveRequest, seed_addresses: Vec<String>) {
    let mut view = node.inner.view.clone();
    let mut trouble = Trouble::default();
    loop {
        let members = view.borrow_and_update().members.clone();
        node.inner.peers.record(members.iter().map(|member| (member.node_id, member.peer_address.as_str())));
        let record = members.iter().find(|member| member.node_id == own.node_id);
        let is_settled = |record: &Peer| is_at(record, &own) && node.members_are_committed() && node.is_led();
        let Some(record) = record.filter(|record| !is_settled(record)) else {
            trouble.is_over(&own);
            if let Ok(Err(_)) = timeout(LOOK_EVERY, view.changed()).await {
                return;
            }
            continue;
        };
        match node.announce(&own, &seed_addresses).await {
            Err(reason) if !is_at(record, &own) => trouble.goes_on(record, &own, &reason),
            _ => {}
        }
        // A change of the leader or of the members ends the pause early.
        if let Ok(Err(_)) = timeout(SAY_EVERY, view.changed()).await {
            return;
        }
    }
}

/// A move that is not recorded yet.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Trouble {
    fn goes_on(&mut self, record: &Peer, own: &wire::MoveRequest, reason: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < QUIET_MAX || self.said.is_some_and(|said| said.elapsed() < LINE_EVERY) {
            return;
        }
        self.said = Some(Instant::now());
        tracing::error!(
            peers = own.peer_address,
            clients = own.client_address,
            browsers = own.web_address,
            recorded_peers = record.peer_address,
            recorded_clients = record.client_address,
            recorded_browsers = record.web_address,
            reason,
            "This node's addresses differ from those that the cluster has recorded, and the record could not be changed"
        );
    }

    fn is_over(&mut self, own: &wire::MoveRequest) {
        if self.since.take().is_some() {
            let (peers, clients, browsers) = (&own.peer_address, &own.client_address, &own.web_address);
            tracing::info!(peers, clients, browsers, "The cluster has recorded this node's new addresses");
        }
        self.said = None;
    }
}

fn is_at(record: &Peer, at: &wire::MoveRequest) -> bool {
    let recorded = [&record.peer_address, &record.client_address, &record.web_address];
    recorded == [&at.peer_address, &at.client_address, &at.web_address]
}

impl Node {
    /// Whether the membership of this node is committed. Until then it may come from a leader that was replaced, and
    /// its successor still calls this node at the old address. So does a successor that has committed another change
    /// that did not reach this node, but then this node has no leader.
    fn members_are_committed(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.log_id().as_ref() <= metrics.local_committed.as_ref()
    }

    /// Announces the addresses of this node once. `Ok`: the record has them.
    async fn announce(&self, own: &wire::MoveRequest, seed_addresses: &[String]) -> Result<(), String> {
        let view = self.inner.view.borrow().clone();
        // After a start, a node keeps the previous leader until another one is elected, and the election may depend on
        // this announcement.
        let is_led = self.is_led();
        if view.is_leader() && is_led {
            return self.moved(own.clone()).await.map(drop).map_err(|error| error.to_string());
        }
        let own_id = self.inner.identity.node_id;
        let leader = view.leader().filter(|leader| leader.node_id != own_id && is_led);
        let asked = match leader {
            Some(leader) => BTreeSet::from([self.inner.peers.address_of(leader.node_id, &leader.peer_address)]),
            None => self.addresses_of_others(seed_addresses),
        };
        let mut answers = join_all(asked.iter().map(|address| self.say(own, address))).await;
        let named: BTreeSet<String> = answers.iter().flatten().map(|answer| answer.leader.clone()).collect();
        let leaders = named.iter().filter(|leader| !leader.is_empty() && !asked.contains(*leader)).take(LEADERS_MAX);
        answers.extend(join_all(leaders.map(|address| self.say(own, address))).await);
        if answers.iter().flatten().any(|answer| answer.recorded) {
            return Ok(());
        }
        let refusals: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
        Err(match refusals.is_empty() {
            true => "there is no leader".to_owned(),
            false => refusals.join("; "),
        })
    }

    async fn say(&self, own: &wire::MoveRequest, address: &str) -> Result<wire::MoveResponse, String> {
        let failed = |reason: &str| format!("{address}: {reason}");
        let client = self.inner.peers.client(address, Lane::Control);
        let mut client = client.map_err(|status| failed(status.message()))?;
        let request = self.inner.credentials.present(own.clone());
        match timeout(CHANGE_MAX, client.r#move(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The node runs a version without this call, and is about to be upgraded.
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(failed("it runs an older version")),
            Ok(Err(status)) => Err(failed(&reason(&status))),
            Err(_) => Err(failed("no answer")),
        }
    }

    /// Handles the announcement of a member.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub(in crate::raft) async fn moved(&self, to: wire::MoveRequest) -> Result<wire::MoveResponse, MemberError> {
        if [&to.peer_address, &to.client_address, &to.web_address].iter().any(|text| text.len() > ADDRESS_BYTES_MAX) {
            return Err(MemberError::Conflict(format!("an address is longer than {ADDRESS_BYTES_MAX} bytes")));
        }
        let view = self.inner.view.borrow().clone();
        let record = view.member(to.node_id).filter(|member| member.name == to.name);
        let record = record.ok_or(MemberError::NodeUnknown)?;
        let answer = |recorded| {
            let leader = view.leader().filter(|leader| self.is_led() && leader.node_id != to.node_id);
            let address = leader.map(|leader| self.inner.peers.address_of(leader.node_id, &leader.peer_address));
            wire::MoveResponse { recorded, leader: address.unwrap_or_default() }
        };
        if is_at(record, &to) {
            return Ok(answer(self.members_are_committed() && self.is_led()));
        }
        self.look_for(&to, record).await?;
        if to.peer_address != record.peer_address && !failpoints::is_active(failpoints::MOVES_NOT_HEARD) {
            self.inner.peers.found(to.node_id, &to.peer_address);
        }
        if !view.is_leader() {
            return Ok(answer(false));
        }
        let answer = answer(true);
        self.record_move(to, record).await.map(|()| answer)
    }

    /// Probes a member at its new and at its recorded address, which may be the same.
    async fn look_for(&self, to: &wire::MoveRequest, record: &Peer) -> Result<(), MemberError> {
        let is_it = |found: &wire::ProbeResponse| found.node_id == to.node_id && found.cluster_id == to.cluster_id;
        let (name, new, old) = (&to.name, &to.peer_address, &record.peer_address);
        let (there, before) = tokio::join!(self.probe(new), self.probe(old));
        match there {
            Ok(found) if is_it(&found) && found.admission == to.admission => {}
            Ok(found) => {
                let reason = format!("{new:?} is not an address of {name:?}: {:?} answers there", found.name);
                return Err(MemberError::Conflict(reason));
            }
            Err(reason) => {
                return Err(MemberError::Conflict(format!("{name:?} was not found at {new:?}: {reason}")));
            }
        }
        match before {
            Ok(found) if is_it(&found) && found.admission != to.admission => Err(MemberError::Conflict(format!(
                "another process with the identity of {name:?} runs at {old:?}: is its volume a copy?"
            ))),
            _ => Ok(()),
        }
    }

    /// On the leader: records a move, unless the record differs from the one that the move was `judged` by.
    async fn record_move(&self, to: wire::MoveRequest, judged: &Peer) -> Result<(), MemberError> {
        let _one = self.inner.membership.lock().await;
        let addresses = |peer: &Peer| [&peer.peer_address, &peer.client_address, &peer.web_address].map(String::clone);
        let now = self.inner.view.borrow().member(to.node_id).map(addresses);
        if now != Some(addresses(judged)) {
            return Err(MemberError::Conflict(format!("the record of {:?} was changed meanwhile", to.name)));
        }
        let record = NodeRecord {
            name: to.name,
            peer_address: to.peer_address,
            client_address: to.client_address,
            web_address: to.web_address,
            admission: 0,
        };
        let text = record.to_string();
        self.change(|_, membership_view| membership_view.move_to(to.node_id, record).map(|change| ((), change)))
            .await?;
        tracing::info!(node_id = to.node_id, "{text} has new addresses");
        Ok(())
    }
}
