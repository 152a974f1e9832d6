//! Announcements of moved members: making one, and handling those of others.
//!
//! Does not cover: the effects of an announcement and their conditions (`membership::moves`), and when this node makes
//! one (`tasks::moves`).

use std::collections::BTreeSet;

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::timeout;
use tonic::Code;

use super::Node;
use crate::{
    error::MemberError,
    membership::{
        CHANGE_MAX,
        moves::{ADDRESS_BYTES_MAX, LEADERS_MAX, is_at},
    },
    transport::peers::{Lane, reason},
    types::NodeRecord,
    view::Peer,
};
use proto::raft::v1 as wire;

impl Node {
    /// Sets the addresses at which this node calls the members.
    pub(crate) fn record_addresses(&self, members: &[Peer]) {
        self.inner.peers.record(members.iter().map(|member| (member.node_id, member.peer_address.as_str())));
    }

    /// Whether the membership of this node is committed. Until then it may come from a leader that was replaced, and
    /// its successor still calls this node at the old address. So does a successor that has committed another change
    /// that did not reach this node, but then this node has no leader.
    pub(crate) fn members_are_committed(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.log_id().as_ref() <= metrics.local_committed.as_ref()
    }

    /// Announces the addresses of this node once. `Ok`: the record has them.
    pub(crate) async fn announce(&self, own: &wire::MoveRequest, seed_addresses: &[String]) -> Result<(), String> {
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
    pub(crate) async fn moved(&self, to: wire::MoveRequest) -> Result<wire::MoveResponse, MemberError> {
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
