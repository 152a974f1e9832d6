//! Linearizable reads from any node, with one request to the leader for all waiting reads.
//!
//! The request is the read index of Raft (dissertation, section 6.4). The leader returns its commit index after a
//! majority has confirmed that it still leads, and the reader waits until its own state has reached it. A read that
//! arrives after a request was sent joins the next one, since the answer may be older than the read.
//!
//! Does not cover: the request itself (`read_index`), and retries (`node::read`).

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    error::ReadError,
    read_index::{QUEUE_MAX, ReadIndex, Waiter},
    types::LogId,
};

/// Timeout of a request. Its reads then fail with `NoLeader` and try again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait of a request's readers for the state to catch up. They then fail with `Deadline`.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// Runs until all senders of `queue` are gone.
pub(crate) async fn run(index: ReadIndex, applied: watch::Receiver<Option<LogId>>, mut queue: mpsc::Receiver<Waiter>) {
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
