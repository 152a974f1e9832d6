//! Linearizable reads from any node, with one request to the leader for all waiting reads.
//!
//! The request is the read index of Raft (dissertation, section 6.4). The leader returns its commit index after a
//! majority has confirmed that it still leads, and the reader waits until its own state has reached it. A read that
//! arrives after a request was sent joins the next one, since the answer may be older than the read.

use std::{sync::Arc, time::Duration};

use openraft::ReadPolicy;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    convert,
    error::ReadError,
    peers::{Credentials, Lane, Peers},
    types::{LogId, Raft},
    view::View,
};
use crate::proto::raft::v1 as wire;

/// Capacity of the queue of reads. A full queue rejects reads.
pub(super) const QUEUE_MAX: usize = 16_384;
/// Timeout of a request. Its reads then fail with `NoLeader` and try again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait of a request's readers for the state to catch up. They then fail with `Deadline`.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

pub(super) type Waiter = oneshot::Sender<Result<(), ReadError>>;

/// Asks for the log position that a linearizable read must wait for.
#[derive(Clone)]
pub(super) struct ReadIndex {
    pub raft: Raft,
    pub view: watch::Receiver<View>,
    pub peers: Arc<Peers>,
    pub credentials: Credentials,
}

impl ReadIndex {
    pub(super) fn new(
        raft: &Raft,
        view: &watch::Receiver<View>,
        peers: &Arc<Peers>,
        credentials: &Credentials,
    ) -> Self {
        Self { raft: raft.clone(), view: view.clone(), peers: Arc::clone(peers), credentials: credentials.clone() }
    }

    /// Asks the leader, which may be this node.
    pub(super) async fn ask(&self) -> Result<LogId, ReadError> {
        let view = self.view.borrow().clone();
        if view.is_leader() {
            return self.ask_here().await;
        }
        let leader = view.leader().ok_or(ReadError::NoLeader)?;
        let mut client =
            self.peers.member(leader.node_id, &leader.peer_address, Lane::Control).map_err(|_| ReadError::NoLeader)?;
        let request = self.credentials.sign(leader.node_id, wire::ReadIndexRequest {});
        match client.read_index(request).await {
            Ok(response) => response.into_inner().read_log_id.map(convert::log_id).ok_or(ReadError::NoLeader),
            Err(_) => Err(ReadError::NoLeader),
        }
    }

    /// Asks this node, which must be the leader.
    pub(super) async fn ask_here(&self) -> Result<LogId, ReadError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(*linearizer.read_log_id().log_id()),
            Err(_) => Err(ReadError::NoLeader),
        }
    }
}

/// Runs until all senders of `queue` are gone.
pub(super) async fn run(index: ReadIndex, applied: watch::Receiver<Option<LogId>>, mut queue: mpsc::Receiver<Waiter>) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, QUEUE_MAX).await > 0 {
        let answer = match timeout(QUESTION_TIMEOUT, index.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(ReadError::NoLeader),
        };
        let ready = std::mem::take(&mut waiters);
        let position = match answer {
            Ok(position) if *applied.borrow() < Some(position) => position,
            settled => {
                release(ready, settled.map(|_| ()));
                continue;
            }
        };
        // A node that is far behind does not hold up the next readers: their request can be sent now.
        let mut applied = applied.clone();
        tokio::spawn(async move {
            let caught_up =
                timeout_at(Instant::now() + CATCH_UP_MAX, applied.wait_for(|applied| *applied >= Some(position)));
            let result = match caught_up.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ReadError::Stopped),
                Err(_) => Err(ReadError::Deadline),
            };
            release(ready, result);
        });
    }
}

fn release(waiters: Vec<Waiter>, result: Result<(), ReadError>) {
    for waiter in waiters {
        // The receiver is gone if the reader has given up.
        let _ = waiter.send(result);
    }
}
