//! Commitments that come with the messages of leaders and candidates.
//!
//! Does not cover: what a commitment is, and the check at the start (`commitments`).

use tonic::Status;

use super::Node;
use crate::{
    commitments::{Commitment, Held},
    types::Vote,
};
use proto::raft::v1 as wire;

impl Node {
    /// The commitments that the member `node_id` has made to this node. `None`: none, or it is not a member.
    pub(crate) fn commitment_of(&self, node_id: u64) -> Option<wire::Commitment> {
        let is_member = self.inner.view.borrow().member(node_id).is_some();
        self.inner.commitments.of(node_id).filter(|_| is_member).map(Commitment::to_pb)
    }

    /// Records the commitments of a leader or a candidate that sent a message.
    pub(crate) fn remember_leader(&self, vote: &Vote, end: u64) {
        self.inner.commitments.note(vote.leader_id.node_id, Commitment::of_leader(vote, end));
    }

    /// [`Node::keeps`], as a status.
    pub(crate) fn must_keep(&self, commitment: Option<wire::Commitment>) -> Result<(), Status> {
        let outdated = || Status::failed_precondition("this node's files are older than its commitments: it stops");
        self.keeps(commitment).then_some(()).ok_or_else(outdated)
    }

    /// Whether this node meets the commitments that a leader or a candidate has of it. False: this node has less, its
    /// files fail, and it takes no further part.
    pub(crate) fn keeps(&self, commitment: Option<wire::Commitment>) -> bool {
        let Some(commitment) = commitment.map(Commitment::from_pb) else { return true };
        let held = Held::now(&self.inner.disk.log, *self.inner.applied.borrow());
        if commitment.is_kept_by(&held) {
            return true;
        }
        let error = held.forgot(&commitment);
        self.inner.failure.note("", &error);
        self.inner.disk.state.fail(&error);
        false
    }
}
