//! The read index of Raft (dissertation, section 6.4): the log position that a linearizable read must wait for.
//!
//! The leader returns its commit index after a majority has confirmed that it still leads.
//!
//! Does not cover: the reads that wait (`tasks::read_index`), and the time limit of a request.

use openraft::ReadPolicy;
use tokio::sync::oneshot;

use crate::{
    error::ReadError,
    store::state_machine::Raft,
    transport::{
        convert,
        leader_client::{Leader, LeaderClient},
        peers::Lane,
    },
    types::LogId,
};
use proto::raft::v1 as wire;

/// Capacity of the queue of reads. A full queue rejects reads.
pub(crate) const QUEUE_MAX: usize = 16_384;

/// Channel on which a read waits.
pub(crate) type Waiter = oneshot::Sender<Result<(), ReadError>>;

/// Asks for the log position that a linearizable read must wait for.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    raft: Raft,
    leader: LeaderClient,
}

impl ReadIndex {
    pub(crate) fn new(raft: Raft, leader: LeaderClient) -> Self {
        Self { raft, leader }
    }

    /// Asks the leader, which may be this node.
    pub(crate) async fn ask(&self) -> Result<LogId, ReadError> {
        let leader = match self.leader.find().ok_or(ReadError::NoLeader)? {
            Leader::Here => return self.ask_here().await,
            Leader::There(leader) => leader,
        };
        let request = wire::ReadIndexRequest {};
        let call = self
            .leader
            .call(&leader, Lane::Control, None, request, async |mut client, request| client.read_index(request).await);
        let response = call.await?;
        response.read_log_id.map(convert::log_id).ok_or(ReadError::NoLeader)
    }

    /// Asks this node, which must be the leader.
    pub(crate) async fn ask_here(&self) -> Result<LogId, ReadError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(*linearizer.read_log_id().log_id()),
            Err(_) => Err(ReadError::NoLeader),
        }
    }
}
