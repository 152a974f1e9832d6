//! Limits how long this node's files hold deleted content.
//!
//! Invariant: while the node runs, nothing in the log and in the write-ahead logs is older than the configured delay. A
//! deleted body is overwritten in `chat.db` at once, so no other file has it either when the delay has passed. No
//! record of deletions is needed: the age of an entry is the timestamp that its leader assigned, which survives a
//! restart.
//!
//! The work is done at half the delay. Entries that are older are cut behind a snapshot that has them, whatever
//! `log_kept` says. Both write-ahead logs are truncated to zero after each check. The other half of the delay
//! is for that work.
//!
//! Does not cover: files moved aside ([`storage::integrity::forget_aside`]), files of a node that does not run, and
//! copies that the operator made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{sleep, timeout};

use crate::store::state_machine::Raft;
use proto::log::v1 as pb;
use storage::{LogDb, SharedState, StorageError, intake};
use trace::blocking;

/// Longest interval between checks.
const LOOK_MAX: Duration = Duration::from_secs(600);
/// Longest wait for a snapshot. The next check waits for one that takes longer.
const SNAPSHOT_MAX: Duration = Duration::from_secs(600);
/// Bytes of the log that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Attempts per check to truncate a write-ahead log, which a reader may be using.
const CUT_ATTEMPTS: u32 = 50;
const CUT_DELAY: Duration = Duration::from_millis(20);

/// The files that the task works on, and its settings.
pub(crate) struct Retention {
    pub raft: Raft,
    pub log: LogDb,
    pub state: SharedState,
    /// Longest time that the files may hold deleted content.
    pub delay: Duration,
}

impl Retention {
    /// Runs until Raft or the files have stopped.
    pub(crate) async fn run(self) {
        loop {
            sleep((self.delay / 8).min(LOOK_MAX)).await;
            let Some(cutoff) = SystemTime::now().checked_sub(self.delay / 2) else { continue };
            if self.look(cutoff).await.is_none() {
                return;
            }
        }
    }

    /// Cuts content that is older than `cutoff`. `None`: Raft has stopped, or a file has failed.
    async fn look(&self, cutoff: SystemTime) -> Option<()> {
        let cutoff_ms = cutoff.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let (applied, snapshot) = self.positions();
        let log = self.log.clone();
        let old = blocking::run(move || last_before(&log, cutoff_ms, applied)).await;
        let old = match old {
            Ok(Ok(old)) => old,
            Ok(Err(error)) => return self.failed("the log cannot be read", &error),
            Err(error) => return self.failed("the log cannot be read", &error),
        };
        if old.is_some_and(|old| old > snapshot) {
            self.raft.trigger().snapshot().await.ok()?;
            self.wait_for_snapshot(applied).await?;
        }
        if let Some(old) = old {
            // Only entries that a snapshot has are cut. The others are cut at the next check.
            self.raft.trigger().purge_log(old).await.ok()?;
        }
        self.cut_write_ahead_logs().await
    }

    /// Index of the last entry that is applied, and of the last one in a snapshot.
    fn positions(&self) -> (u64, u64) {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.last_applied.map_or(0, |id| id.index), metrics.snapshot.map_or(0, |id| id.index))
    }

    async fn wait_for_snapshot(&self, index: u64) -> Option<()> {
        let mut metrics = self.raft.data_metrics();
        let reached = async {
            while metrics.borrow_watched().snapshot.map_or(0, |id| id.index) < index {
                metrics.changed().await.ok()?;
            }
            Some(())
        };
        timeout(SNAPSHOT_MAX, reached).await.unwrap_or(Some(()))
    }

    async fn cut_write_ahead_logs(&self) -> Option<()> {
        if let Err(error) = self.log.truncate_write_ahead_log() {
            return self.failed("the write-ahead log of log.db cannot be cut", &error);
        }
        for _ in 0..CUT_ATTEMPTS {
            let state = self.state.clone();
            match blocking::run(move || state.truncate_write_ahead_log()).await {
                Ok(Ok(true)) => return Some(()),
                Ok(Ok(false)) => sleep(CUT_DELAY).await,
                Ok(Err(error)) => return self.failed("the write-ahead log of chat.db cannot be cut", &error),
                Err(error) => return self.failed("the write-ahead log of chat.db cannot be cut", &error),
            }
        }
        tracing::debug!("The write-ahead log of chat.db has readers; it is truncated at the next check");
        Some(())
    }

    /// Logs that deleted messages stay in files. The node ends because of the error, and reports that elsewhere.
    fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> Option<()> {
        tracing::warn!(%error, "Deleted data could not be removed from all files: {what}");
        None
    }
}

/// The last entry of the log, of those up to `applied`, before the first one that is stamped later than `cutoff_ms`.
/// `None`: the first stamped entry is already later.
fn last_before(log: &LogDb, cutoff_ms: u64, applied: u64) -> Result<Option<u64>, StorageError> {
    let (purged, _) = log.bounds();
    let mut next = purged.map_or(0, |id| id.index + 1);
    let mut found = None;
    while next <= applied {
        let entries = log.read(next..applied + 1, READ_BYTES)?;
        let Some(last) = entries.last().and_then(|entry| entry.log_id) else { break };
        for entry in entries {
            match stamp(&entry) {
                Some(time) if time > cutoff_ms => return Ok(found),
                Some(_) => found = entry.log_id.map(|id| id.index),
                // The entry has no content of users. It is cut together with the next one that has.
                None => {}
            }
        }
        next = last.index + 1;
    }
    Ok(found)
}

fn stamp(entry: &pb::Entry) -> Option<u64> {
    match &entry.payload {
        Some(pb::entry::Payload::Batch(bytes)) => intake::first_time(bytes.clone()),
        _ => None,
    }
}
