//! Linearizable reads: waiting until this node's state has everything that was acknowledged before.
//!
//! Does not cover: the request to the leader (`read_index`), and the reads that share one (`tasks::read_index`).

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::Node;
use crate::{error::ReadError, transport::convert};
use proto::log::v1 as pb;

impl Node {
    /// Returns once this node's state includes everything that any node had acknowledged before the call.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] after a bounded wait for a leader, [`ReadError::Deadline`] or [`ReadError::Stopped`].
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), ReadError> {
        if failpoints::is_active(failpoints::NO_READ_INDEX) {
            return Ok(());
        }
        let give_up_on_leader = self.leader_limit(deadline);
        loop {
            let (waiter, released) = oneshot::channel();
            self.inner.reads.try_send(waiter).map_err(|error| match error {
                // The queue fills up only while read index requests get no answer.
                mpsc::error::TrySendError::Full(_) => ReadError::NoLeader,
                mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
            })?;
            let Some(released) = self.unless_waits_end(timeout_at(deadline, released)).await else {
                return Err(ReadError::Stopped);
            };
            match released {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(ReadError::NoLeader))) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(_)) => return Err(ReadError::Stopped),
                Err(_) => return Err(self.missed_deadline()),
            }
            if !self.pause_before_retry().await {
                return Err(ReadError::Stopped);
            }
            let has_leader = self.has_leader(give_up_on_leader).await;
            if self.inner.transfers.waits_are_over() {
                return Err(ReadError::Stopped);
            }
            if !has_leader || Instant::now() >= give_up_on_leader {
                return Err(ReadError::NoLeader);
            }
        }
    }

    fn missed_deadline(&self) -> ReadError {
        if self.inner.view.borrow().leader.is_some() { ReadError::Deadline } else { ReadError::NoLeader }
    }

    /// The log position that a linearizable read must wait for. Fails unless this node is the leader.
    pub(crate) async fn read_index_here(&self) -> Result<pb::LogId, ReadError> {
        self.inner.read_index.ask_here().await.map(|id| convert::log_id_pb(&id))
    }
}
