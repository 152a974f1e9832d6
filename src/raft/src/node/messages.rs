//! What a node does with the messages of its peers besides handing them to Raft: checks against its state, and records
//! of the leader.
//!
//! Does not cover: checks of the message alone (`transport::checks`), and commitments (`node::commitments`).

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::Node;
use crate::{
    transport::checks::volume_full,
    types::{LogId, Vote},
};

impl Node {
    /// Rejects a message that names this node as its leader or candidate. This node never sent it, and Raft would not
    /// survive it.
    pub(crate) fn must_be_another(&self, vote: &Vote) -> Result<(), Status> {
        if vote.leader_id.node_id == self.inner.identity.node_id {
            return Err(Status::invalid_argument("the vote names the node that receives it"));
        }
        Ok(())
    }

    /// Rejects heartbeats of a leader that itself reports a long time without a quorum. Such a leader can send, but
    /// receives no answers or receives them too late, and no other leader is elected while its heartbeats count. Its
    /// entries are still accepted: if it was the majority that was cut off, they restore the leader's quorum.
    pub(crate) fn refuse_deaf_leader(&self, heartbeat: bool, quorum_age: Option<Duration>) -> Result<(), Status> {
        if heartbeat && quorum_age.is_some_and(|age| age > self.majority_missed_max()) {
            return Err(Status::unavailable("by its own account no majority has answered this leader for long"));
        }
        Ok(())
    }

    /// Rejects entries of `entry_bytes` bytes, if there are any, unless they are certain to fit. Otherwise the node
    /// would fail in the middle of a write and could not serve reads.
    pub(crate) fn must_take(&self, entry_bytes: Option<u64>) -> Result<(), Status> {
        let takes = entry_bytes.is_none_or(|bytes| self.inner.space.takes(bytes));
        takes.then_some(()).ok_or_else(volume_full)
    }

    /// Name and peer address of a member.
    pub(crate) fn record_of(&self, node_id: u64) -> Option<(String, String)> {
        let view = self.inner.view.borrow();
        view.member(node_id).map(|member| (member.name.clone(), member.peer_address.clone()))
    }

    /// Records that an append of a leader arrived, and publishes a new leader. It may take a while until openraft has
    /// stored its vote and reports it.
    pub(crate) fn hear_of_leader(&self, vote: &Vote) {
        self.inner.failover.hear(vote);
        let (term, leader) = (vote.leader_id.term, vote.leader_id.node_id);
        if term > self.inner.view.borrow().term {
            self.inner.heard.send_replace(Some((term, leader)));
        }
    }

    /// Records that the leader reported `committed` as committed, and that it led at the moment `led`.
    pub(crate) fn hear(&self, committed: Option<LogId>, led: Option<Instant>) {
        if let Some(led) = led {
            self.inner.freshness.heard(committed, *self.inner.applied.borrow(), led);
        }
    }
}
