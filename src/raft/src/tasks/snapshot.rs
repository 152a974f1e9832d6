//! Keeps the log short: flushes the state whenever the log has grown enough, and lets openraft cut the log behind it.
//!
//! Invariant: behind the flushed state, the log has no more entries and no more bytes than [`LogKept`] says. A start
//! reads the whole log, and a client chooses how large its messages are, so a number of entries alone is no bound.
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
use storage::{LogDb, StorageError};
use trace::blocking;

use crate::store::state_machine::Raft;

/// Entries after which a snapshot is due, whatever their size, since a restart replays them.
const ENTRIES: u64 = 200_000;
/// Interval between checks whether a snapshot is due.
const CHECK: Duration = Duration::from_secs(5);

/// What is kept of the log behind a snapshot: what keeps both bounds.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogKept {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of the entries.
    pub bytes: u64,
}

impl LogKept {
    /// Index of the last entry to purge once the state has `applied`; `None`: nothing.
    fn purge_to(self, log: &LogDb, applied: u64) -> Result<Option<u64>, StorageError> {
        let after = applied + 1;
        let kept = log.start_of_newest(after.saturating_sub(self.entries)..after, self.bytes)?;
        Ok(kept.checked_sub(1).filter(|last| *last > 0))
    }
}

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

/// Makes a snapshot whenever the log has grown by `bytes_due`, and purges all but `kept` after it.
pub(crate) async fn keep_log_short(raft: Raft, log: LogDb, (bytes_due, kept): (u64, LogKept), sending: Sending) {
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
        // openraft does so itself only after a snapshot that is newer than the last one, and counts entries alone.
        let read = log.clone();
        let end = blocking::io(move || kept.purge_to(&read, applied).map_err(std::io::Error::other)).await;
        match end {
            Ok(None) => {}
            Ok(Some(end)) if raft.trigger().purge_log(end).await.is_ok() => {}
            Ok(Some(_)) => return,
            // The log's own reads report it where it matters.
            Err(error) => {
                tracing::warn!(%error, "The log was not cut, because the sizes of its entries could not be read");
                continue;
            }
        }
        (is_due, bytes_done) = (false, appended);
    }
}
