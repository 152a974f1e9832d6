//! Keeps the log short: flushes the state whenever the log has grown enough, and lets openraft cut the log behind it.
//!
//! A start cuts, too, because the growth before it is not known. While a snapshot is sent, the log is not cut: the
//! receiver needs the entries after it. Sending is bounded (`transport::client`), so this is as well.
//!
//! Does not cover: the age of deleted content in the log (`tasks::retention`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use openraft::async_runtime::WatchReceiver as _;
use storage::LogDb;

use crate::store::state_machine::Raft;

/// Entries after which a snapshot is due, whatever their size, since a restart replays them.
const ENTRIES: u64 = 200_000;
/// Interval between checks whether a snapshot is due.
const CHECK: Duration = Duration::from_secs(5);

/// The snapshots that are being sent. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sending(Arc<AtomicUsize>);

/// One of them, until this is dropped.
pub(crate) struct SendingOne(Sending);

impl Sending {
    pub(crate) fn begin(&self) -> SendingOne {
        self.0.fetch_add(1, Ordering::Relaxed);
        SendingOne(self.clone())
    }

    fn is_going_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for SendingOne {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes a snapshot whenever the log has grown by `bytes_due`, after which openraft purges all but `kept` entries.
pub(crate) async fn keep_log_short(raft: Raft, log: LogDb, (bytes_due, kept): (u64, u64), sending: Sending) {
    let mut is_due = true;
    let mut bytes_done = 0;
    let mut metrics = raft.data_metrics();
    loop {
        tokio::time::sleep(CHECK).await;
        let (applied, snapshot) = {
            let metrics = metrics.borrow_watched();
            (metrics.last_applied.map_or(0, |id| id.index), metrics.snapshot.map_or(0, |id| id.index))
        };
        let appended = log.appended_bytes();
        is_due |= appended - bytes_done >= bytes_due || applied.saturating_sub(snapshot) >= ENTRIES;
        if !is_due || sending.is_going_on() {
            continue;
        }
        if applied > snapshot {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            // A slow disk may take longer than the interval between checks.
            while metrics.borrow_watched().snapshot.map_or(0, |id| id.index) <= snapshot {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        }
        // openraft does so itself only after a snapshot that is newer than the last one.
        let end = applied.checked_sub(kept).filter(|end| *end > 0);
        if let Some(end) = end
            && raft.trigger().purge_log(end).await.is_err()
        {
            return;
        }
        (is_due, bytes_done) = (false, appended);
    }
}
