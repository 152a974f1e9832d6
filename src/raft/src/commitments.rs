//! Commitments of the other nodes to this one: votes, and entries that they acknowledged as durable.
//!
//! Each node has a commitment on disk before it makes it. When its volume is put back to an earlier moment (an old
//! copy, a snapshot of the machine), its files are consistent, and nothing in them shows that something is missing. The
//! node would vote twice, or elect a leader that lacks an entry which it helped to commit. But the nodes that received
//! its commitments keep them, for as long as they run. So a node asks the others before it takes part ([`check`]), and
//! every append of a leader and every request for a vote carries the receiver's earlier commitments to the sender. A
//! node that is behind its own commitments quarantines its files, as if they were damaged.
//!
//! The check is exact, because the state of a node only grows: first its vote, and under one vote the end of its log,
//! from which no entry is removed that was acknowledged under that vote. A node that has lost nothing therefore always
//! passes.
//!
//! Does not cover: what a running node does with the commitments in a message (`node::commitments`), and commitments
//! that no running node has. They are lost when every node that received them has restarted, and a leader's own
//! progress takes a moment to reach its followers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::{
    transport::{
        convert,
        peers::{Credentials, Lane, Peers},
    },
    types::{LogId, Vote},
};
use proto::{log::v1 as pb, raft::v1 as wire};
use storage::{Identity, LogDb, StorageError};

/// Timeout of an answer at the start. A node that does not answer by then sends the commitments later, with its
/// messages as a leader or a candidate.
const ANSWER_MAX: Duration = Duration::from_millis(300);

/// Commitments of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Commitment {
    /// Leader that the node follows, voted for, or was: term and node id. It no longer follows any earlier one.
    leader: (u64, u64),
    /// Entry that the node has on disk under that leader.
    log_id: Option<LogId>,
    /// End of the durable log of a node that was that leader itself: it has all entries before this index on disk.
    end: u64,
}

impl Commitment {
    /// The node voted for, or follows, the leader that `vote` names.
    pub(crate) fn of_vote(vote: &Vote) -> Self {
        Self { leader: (vote.leader_id.term, vote.leader_id.node_id), log_id: None, end: 0 }
    }

    /// The node has `log_id` on disk under `vote`.
    pub(crate) fn of_entry(vote: &Vote, log_id: Option<LogId>) -> Self {
        Self { log_id, ..Self::of_vote(vote) }
    }

    /// The node leads by `vote`, and has all entries before `end` on disk.
    pub(crate) fn of_leader(vote: &Vote, end: u64) -> Self {
        Self { end, ..Self::of_vote(vote) }
    }

    pub(crate) fn to_pb(self) -> wire::Commitment {
        let (term, leader_id) = self.leader;
        let log_id = self.log_id.as_ref().map(convert::log_id_pb);
        wire::Commitment { term, leader_id, log_id, end_index: self.end }
    }

    pub(crate) fn from_pb(commitment: wire::Commitment) -> Self {
        let leader = (commitment.term, commitment.leader_id);
        Self { leader, log_id: commitment.log_id.map(convert::log_id), end: commitment.end_index }
    }

    fn and(self, other: Self) -> Self {
        match self.leader.cmp(&other.leader) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => {
                Self { leader: self.leader, log_id: self.log_id.max(other.log_id), end: self.end.max(other.end) }
            }
        }
    }

    /// Whether a node that has `held` meets this commitment in full.
    pub(crate) fn is_kept_by(&self, held: &Held) -> bool {
        let end = held.last.map_or(0, |id| id.index + 1);
        held.leader > self.leader || (held.leader == self.leader && held.last >= self.log_id && end >= self.end)
    }
}

/// Vote and last entry that a node has now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    leader: (u64, u64),
    last: Option<LogId>,
}

impl Held {
    /// Vote and last entry of `log`, or of a state that was applied up to `applied`. The log may not record yet that it
    /// begins after an installed snapshot.
    pub(crate) fn now(log: &LogDb, applied: Option<LogId>) -> Self {
        // The bounds are read before the vote. A new vote may shorten the log in between, and then that vote is read as
        // well.
        let last = log.bounds().1.map(convert::log_id).max(applied);
        let vote = log.vote().unwrap_or_default();
        Self { leader: (vote.term, vote.node_id), last }
    }

    /// The error of a node that does not meet `commitment`.
    pub(crate) fn forgot(&self, commitment: &Commitment) -> StorageError {
        StorageError::Outdated(format!("it had committed to {commitment}, and has {self}"))
    }
}

fn position(f: &mut fmt::Formatter<'_>, leader: (u64, u64), entries: u64) -> fmt::Result {
    write!(f, "term {} of node {} and {entries} log entries", leader.0, leader.1)
}

impl fmt::Display for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        position(f, self.leader, self.log_id.map_or(0, |id| id.index + 1).max(self.end))
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        position(f, self.leader, self.last.map_or(0, |id| id.index + 1))
    }
}

/// Commitments by node id. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Commitments(Arc<Mutex<BTreeMap<u64, Commitment>>>);

impl Commitments {
    /// Adds a commitment of `node`.
    pub(crate) fn note(&self, node: u64, commitment: Commitment) {
        let mut commitments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = commitments.entry(node).or_default();
        *known = known.and(commitment);
    }

    /// The commitments of `node`, if any.
    pub(crate) fn of(&self, node: u64) -> Option<Commitment> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }
}

/// The question of a node for its own commitments, before it takes part.
pub(crate) struct Inquiry<'a> {
    /// Identity of the node.
    pub identity: &'a Identity,
    /// Connections to the other nodes.
    pub peers: &'a Peers,
    /// Credentials that the node presents to the others.
    pub credentials: &'a Credentials,
    /// Membership that the node has in its state.
    pub members: &'a pb::StoredMembership,
    /// Seed addresses, see [`crate::Parts::seed_addresses`].
    pub seed_addresses: &'a [String],
}

/// Asks the members that a node has in its state, and the seed addresses, for the commitments that it made to them.
///
/// # Errors
/// [`StorageError::Outdated`] if the node has less.
pub(crate) async fn check(inquiry: &Inquiry<'_>, held: &Held) -> Result<(), StorageError> {
    let members = inquiry.members.membership.iter().flat_map(|membership| &membership.nodes);
    let own = inquiry.identity.node_id;
    let others = members.filter(|member| member.node_id != own).map(|member| member.peer_address.as_str());
    let others: BTreeSet<&str> = others.chain(inquiry.seed_addresses.iter().map(String::as_str)).collect();
    let asked = others.into_iter().map(|address| timeout(ANSWER_MAX, ask(inquiry, address)));
    for commitment in join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?) {
        if !commitment.is_kept_by(held) {
            return Err(held.forgot(&commitment));
        }
    }
    Ok(())
}

async fn ask(inquiry: &Inquiry<'_>, address: &str) -> Option<Commitment> {
    let mut client = inquiry.peers.client(address, Lane::Control).ok()?;
    let identity = inquiry.identity;
    let request = wire::GetCommitmentsRequest { cluster_id: identity.cluster_id.clone(), node_id: identity.node_id };
    let request = inquiry.credentials.present(request);
    client.get_commitments(request).await.ok()?.into_inner().commitment.map(Commitment::from_pb)
}

#[cfg(test)]
mod tests {
    use openraft::vote::leader_id_adv::LeaderId;

    use super::*;

    fn vote(term: u64, node_id: u64) -> Vote {
        Vote { leader_id: LeaderId { term, node_id }, committed: true }
    }

    fn entry(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(LeaderId { term, node_id: 1 }, index))
    }

    fn held(term: u64, last: Option<LogId>) -> Held {
        Held { leader: (term, 1), last }
    }

    #[test]
    fn a_node_that_has_less_than_it_committed_to_is_found_out() {
        let commitment = Commitment::of_entry(&vote(3, 1), entry(3, 50));
        assert!(commitment.is_kept_by(&held(3, entry(3, 50))));
        assert!(commitment.is_kept_by(&held(3, entry(3, 51))));
        assert!(!commitment.is_kept_by(&held(3, entry(3, 49))), "the log is shorter");
        assert!(!commitment.is_kept_by(&held(3, entry(2, 90))), "the log is another one, from before");
        assert!(!commitment.is_kept_by(&held(2, entry(2, 90))), "the vote is older");
        assert!(!commitment.is_kept_by(&held(0, None)));
        assert!(!Commitment::of_vote(&vote(3, 2)).is_kept_by(&held(3, entry(3, 50))), "it voted for a later leader");

        let led = Commitment::of_leader(&vote(3, 1), 51);
        assert!(led.is_kept_by(&held(3, entry(2, 50))));
        assert!(!led.is_kept_by(&held(3, entry(3, 49))));
    }

    #[test]
    fn a_later_leader_may_have_taken_entries_away() {
        let commitment = Commitment::of_entry(&vote(3, 1), entry(3, 50));
        assert!(commitment.is_kept_by(&held(4, entry(2, 20))));
    }

    #[test]
    fn the_latest_promise_counts_and_under_one_leader_the_most() {
        let commitments = Commitments::default();
        assert_eq!(commitments.of(7), None);
        commitments.note(7, Commitment::of_entry(&vote(3, 1), entry(3, 50)));
        commitments.note(7, Commitment::of_entry(&vote(3, 1), entry(3, 40)));
        commitments.note(7, Commitment::of_leader(&vote(3, 1), 45));
        commitments.note(7, Commitment::of_vote(&vote(2, 2)));
        let known = Commitment { leader: (3, 1), log_id: entry(3, 50), end: 45 };
        assert_eq!(commitments.of(7), Some(known));
        assert_eq!(Commitment::from_pb(known.to_pb()), known);
        commitments.note(7, Commitment::of_vote(&vote(4, 2)));
        assert_eq!(commitments.of(7), Some(Commitment::of_vote(&vote(4, 2))));
        assert_eq!(commitments.of(8), None);
    }
}
