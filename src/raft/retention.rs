//! How long this node's files may hold what was deleted.
//!
//! Invariant: nothing in the log, in the snapshots and in the write-ahead logs is older than the configured delay while the node runs.
//! So a body that is deleted, and overwritten in `chat.db` at once, is in no other file either when the delay has passed. Nothing
//! has to be remembered about deletions: the age of an entry is the time stamp that its leader gave it, and survives a restart.
//!
//! At half the delay, and a little later on each further node so that never all of them copy their database at once: entries that
//! are older are cut, whatever `log_entries_kept` says, behind a snapshot that has them; a snapshot that is older is made anew if
//! anything was applied since; both write-ahead logs are cut to nothing after each look. The other half is for that work.
//!
//! Does not cover: files moved aside ([`crate::storage::trust::forget_aside`]), files of a node that does not run, and copies that
//! the operator made.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{sleep, timeout};

use super::{snapshots::SnapshotStore, space::Space, types::Raft};
use crate::{
    blocking,
    proto::log::v1 as pb,
    storage::{LogDb, SharedState, StorageError, intake},
};

/// Between two looks, at most.
const LOOK_MAX: Duration = Duration::from_secs(600);
/// A snapshot that takes longer is waited for at the next look.
const SNAPSHOT_MAX: Duration = Duration::from_secs(600);
/// Bytes of the log that are looked at in one piece.
const READ_BYTES: usize = 1 << 20;
/// Attempts to cut a write-ahead log in one look: somebody may read it at the moment.
const CUT_ATTEMPTS: u32 = 50;
const CUT_DELAY: Duration = Duration::from_millis(20);

/// What the task works on.
pub(super) struct Retention {
    pub raft: Raft,
    pub log: LogDb,
    pub state: SharedState,
    pub snapshots: Arc<SnapshotStore>,
    pub node_id: u64,
    /// How long the files may hold what was deleted.
    pub delay: Duration,
    pub space: Space,
}

impl Retention {
    /// Runs until Raft or the files have stopped.
    pub(super) async fn run(self) {
        let age = self.delay / 2 + self.delay / 100 * u32::try_from(self.node_id % 10).unwrap_or_default();
        loop {
            sleep((self.delay / 8).min(LOOK_MAX)).await;
            let Some(cutoff) = SystemTime::now().checked_sub(age) else { continue };
            if self.look(cutoff).await.is_none() {
                return;
            }
        }
    }

    /// Cuts what is older than `cutoff`. `None`: Raft has stopped.
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
        let is_old = self.snapshots.made().is_some_and(|made| made < cutoff) && snapshot < applied;
        let is_due = is_old || old.is_some_and(|old| old > snapshot);
        if is_due && !self.space.has_room(None) {
            // A copy that fails for lack of space would end the node. What a snapshot has already is cut all the same.
            tracing::warn!("What was deleted stays in files for now: there is no space for a snapshot");
        } else if is_due {
            self.raft.trigger().snapshot().await.ok()?;
            self.wait_for_snapshot(applied).await?;
        }
        if let Some(old) = old {
            // Only what a snapshot has is cut: what is missing is cut at the next look.
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
        if let Err(error) = self.log.cut_write_ahead_log() {
            return self.failed("the write-ahead log of log.db cannot be cut", &error);
        }
        for _ in 0..CUT_ATTEMPTS {
            let state = self.state.clone();
            match blocking::run(move || state.cut_write_ahead_log()).await {
                Ok(Ok(true)) => return Some(()),
                Ok(Ok(false)) => sleep(CUT_DELAY).await,
                Ok(Err(error)) => return self.failed("the write-ahead log of chat.db cannot be cut", &error),
                Err(error) => return self.failed("the write-ahead log of chat.db cannot be cut", &error),
            }
        }
        tracing::debug!("The write-ahead log of chat.db is being read all the time: it is cut at the next look");
        Some(())
    }

    /// The node ends of it, and says so: this only says that deleted messages stay.
    fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> Option<()> {
        tracing::warn!(%error, "What was deleted is not removed from all files: {what}");
        None
    }
}

/// The last entry of the log, of those up to `applied`, before the first one that is stamped later than `cutoff_ms`. `None`: the
/// first stamped one is later already.
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
                // Has no content of people's. It goes with the next one that has.
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
