//! The state machine: the effect of each command on the rows of `chat.db`.
//!
//! [`StateMachine::stage`] applies entries within a transaction that stays open. [`StateMachine::commit`] commits the
//! rows, the id of the last entry, the membership, the revision, the clock and the digest at once. Invariants:
//!
//! - Deterministic: the result depends only on the state and the entries, never on the order of a hash table.
//! - Every change that events or revisions expose has its own revision, and at most one event. Rejections, repeats,
//!   session use, expired rows, join tokens and the steps of an erasure that only overwrite leave the revision
//!   unchanged.
//! - A command does a bounded amount of work. The only exception is `DeleteAccount`, which is no longer proposed.
//! - A failure restores the state of the last commit. Entries staged since then have to be applied again.
//! - No command can violate an SQLite constraint: that would stop every node at the same entry permanently.
//!
//! Split by subject: `accounts`, `sessions`, `registration`, `joining` (join tokens), `privacy`, `messages` (sends),
//! `marks` (receipts and deletions), `erasure` (of an account, in bounded steps), `usage` (and quotas), `malformed`
//! (bytes that are not a command), `applier` (decodes and dispatches commands), `cache` (rows kept in memory between
//! calls), `state` (what was applied), `settings` (rows that queries read, too), `file` (creates and opens the file).

mod accounts;
mod applier;
mod cache;
mod erasure;
mod file;
mod joining;
mod malformed;
mod marks;
mod messages;
mod privacy;
pub(super) mod registration;
mod sessions;
pub(super) mod settings;
mod state;
mod usage;

pub use self::applier::MalformedCommand;
pub use self::state::AppliedState;
pub(super) use self::state::{read_state, write_state};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;

use self::applier::Applier;
use self::applier::Quota;
use self::cache::Caches;
use super::cache_size::CacheSize;
use super::db::{self, Checkpoints, execute};
use super::error::{Context, StorageError};
use super::recent::Versions;
use super::{divergence, installation, locks};
use chat::{AccountId, ConversationId, DigestReport, Event, Outcome, Revision, SessionId, StateDigest, TimeMs};
use proto::log::v1 as pb;

/// An entry of the log that a majority has committed.
#[derive(Debug, Clone)]
pub struct AppliedEntry {
    /// Its id.
    pub log_id: pb::LogId,
    /// Its content.
    pub payload: AppliedPayload,
}

/// The content of an [`AppliedEntry`].
#[derive(Debug, Clone)]
pub enum AppliedPayload {
    /// Nothing; the first entry of a new leader.
    Blank,
    /// An encoded `log.v1.Batch`.
    Batch(Bytes),
    /// The membership of the cluster.
    Membership(pb::Membership),
}

/// The result of [`StateMachine::stage`].
#[derive(Debug)]
pub struct Applied {
    /// One list for each entry, with one outcome for each proposal. Empty for entries without proposals.
    pub outcomes: Vec<Vec<Outcome>>,
    /// Events, in the order of their revisions.
    pub events: Vec<Arc<Event>>,
    /// Sessions that ended. Their subscriptions have to be closed.
    pub closed_sessions: Vec<SessionId>,
    /// The revision after the last entry.
    pub revision: Revision,
    /// The clock after the last entry.
    pub clock: TimeMs,
    /// The digest of that revision.
    pub digest: StateDigest,
    /// Digests noted at marks, in the order of the log.
    pub noted: Vec<NotedDigest>,
    /// Digests reported by nodes, in the order of the log.
    pub reported: Vec<DigestReport>,
    /// Number of commands rejected because they are not valid in any version.
    pub malformed: u64,
    /// The first of those, at most eight.
    pub malformed_shown: Vec<MalformedCommand>,
}

/// The digest of the state at a mark in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct NotedDigest {
    /// Log index of the entry with the mark.
    pub mark: u64,
    /// The revision at the mark.
    pub revision: Revision,
    /// The digest of that revision.
    pub digest: StateDigest,
    /// The membership of the cluster at the mark.
    pub membership: pb::Membership,
}

/// The single writer of `chat.db`.
pub struct StateMachine {
    pub(super) dir: PathBuf,
    /// `None` after a failed rollback, or after the installation of a snapshot failed half-way.
    pub(super) conn: Option<Connection>,
    checkpoints: Checkpoints,
    cache_size: CacheSize,
    applied: AppliedState,
    /// The state as of the last commit.
    committed: AppliedState,
    caches: Caches,
    /// Conversations that the open transaction has changed, in the cache only.
    dirty: Vec<ConversationId>,
    /// Accounts whose usage is newer in the cache than in the database.
    dirty_usage: Vec<AccountId>,
}

impl StateMachine {
    /// Opens `<dir>/chat.db` and creates missing files. Completes or removes the remains of an interrupted snapshot.
    ///
    /// # Errors
    /// The file is damaged, of another program or a later version, or known to differ from the other nodes' state.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        installation::prepare_directory(dir)?;
        divergence::refuse(dir)?;
        let (conn, checkpoints, applied) = file::open(dir)?;
        let cache_size = CacheSize::default();
        Ok(Self {
            dir: dir.to_owned(),
            caches: Caches::of(&conn, cache_size.rows)?,
            cache_size,
            conn: Some(conn),
            checkpoints,
            committed: applied.clone(),
            applied,
            dirty: Vec::new(),
            dirty_usage: Vec::new(),
        })
    }

    /// Sets how much memory the caches take: those of the applier, of its connection, and of the readers that are
    /// opened for this state machine.
    ///
    /// # Errors
    /// The connection does not take the setting.
    pub fn set_cache_size(&mut self, size: CacheSize) -> Result<(), StorageError> {
        self.cache_size = size;
        self.caches.limit(size.rows);
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        db::keep_pages(conn, size.writer).context("set the size of the page cache")
    }

    /// How much memory the caches take.
    pub(super) fn cache_size(&self) -> CacheSize {
        self.cache_size
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The applied state, committed or not. It is kept in memory.
    pub fn applied(&self) -> &AppliedState {
        &self.applied
    }

    /// Applies entries and commits them, all or none.
    ///
    /// # Errors
    /// As for [`Self::stage`] and [`Self::commit`]. The state is then that of the last commit.
    pub fn apply(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let applied = self.stage(entries)?;
        self.commit()?;
        Ok(applied)
    }

    /// Applies entries without committing them. Other connections do not see them before [`StateMachine::commit`]. A
    /// crash discards them, and they are applied again from the log.
    ///
    /// # Errors
    /// An entry does not follow the last one or cannot be applied, or the database failed. The state is then that of
    /// the last commit, without anything staged since.
    pub fn stage(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let result = self.stage_all(entries);
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    /// Commits the staged entries. Does nothing if there are none.
    ///
    /// # Errors
    /// The database failed. The state is then that of the last commit, which may be this one: a checkpoint follows it.
    pub fn commit(&mut self) -> Result<(), StorageError> {
        self.commit_after(|| ())?;
        self.checkpoint()
    }

    /// Checkpoints the write-ahead log if commits have made it large enough. To be called after each commit.
    ///
    /// # Errors
    /// The database failed.
    pub(super) fn checkpoint(&self) -> Result<(), StorageError> {
        let Some(conn) = &self.conn else { return Ok(()) };
        self.checkpoints.after_commit(conn).context("checkpoint the state")
    }

    /// Like [`Self::commit`], without the checkpoint. After `lock` was called, and until this has returned, no reader
    /// may begin.
    pub(super) fn commit_after(&mut self, lock: impl FnOnce()) -> Result<(), StorageError> {
        if !self.is_staged() {
            return Ok(());
        }
        let result = self.write_and_commit(lock);
        match result {
            Ok(()) => {
                self.committed.clone_from(&self.applied);
                self.caches.trim();
            }
            Err(_) => self.roll_back(),
        }
        result
    }

    /// Commits, and writes everything that is `recent` to its table. For those that read the tables themselves.
    ///
    /// # Errors
    /// The database failed. The state is then that of the last commit.
    pub fn write_all_back(&mut self) -> Result<(), StorageError> {
        self.commit()?;
        self.begin()?;
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        let written = self.caches.write_all_back(conn);
        let committed = written.and_then(|changes| {
            self.caches.recent().publish(changes);
            execute(conn, "COMMIT", []).context("commit what was written back").map(drop)
        });
        committed.inspect_err(|_| self.roll_back())?;
        self.checkpoint()
    }

    /// Checkpoints and truncates the write-ahead log. Returns `false` if a reader prevents that.
    pub(super) fn truncate_write_ahead_log(&self) -> Result<bool, StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        db::truncate_wal(conn).context("cut the write-ahead log of chat.db")
    }

    /// Whether staged entries wait to be committed.
    pub fn is_staged(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| !conn.is_autocommit())
    }

    /// Begins a transaction unless one is open. Waits while another process holds a lock on the database.
    ///
    /// # Errors
    /// [`StorageError::Locked`] after a minute; or the database failed.
    pub(super) fn begin(&self) -> Result<(), StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        if !conn.is_autocommit() {
            return Ok(());
        }
        let begun = execute(conn, "BEGIN IMMEDIATE", []).context("begin to apply entries");
        begun.map(drop).map_err(|error| locks::name_holder(&db::database_path(&self.dir), error))
    }

    /// Like [`Self::begin`], but without waiting. Returns `false` if another process holds a lock on the database.
    pub(super) fn try_begin(&self) -> Result<bool, StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        if !conn.is_autocommit() {
            return Ok(true);
        }
        let wait = |time| conn.busy_timeout(time).context("set the time to wait for a lock");
        wait(Duration::ZERO)?;
        let begun = execute(conn, "BEGIN IMMEDIATE", []).context("begin to apply entries");
        wait(locks::RUNNING_MAX)?;
        match begun {
            Ok(_) => Ok(true),
            Err(error) if error.is_locked() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn stage_all(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        self.begin()?;
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        let mut applier = Applier {
            conn,
            caches: &mut self.caches,
            revision: self.applied.revision,
            clock: self.applied.clock,
            chain: self.applied.chain,
            fold: None,
            trace: None,
            events: Vec::new(),
            closed_sessions: Vec::new(),
            mark: None,
            reported: Vec::new(),
            malformed: 0,
            malformed_shown: Vec::new(),
            dirty: &mut self.dirty,
            dirty_usage: &mut self.dirty_usage,
            quota: Quota::default(),
        };
        let mut noted = Vec::new();
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(last) = self.applied.log_id.filter(|last| entry.log_id.index <= last.index) {
                return Err(StorageError::OutOfOrder { found: entry.log_id.index, applied: last.index });
            }
            outcomes.push(match entry.payload {
                AppliedPayload::Blank => Vec::new(),
                AppliedPayload::Batch(bytes) => applier.batch(entry.log_id.index, bytes)?,
                AppliedPayload::Membership(membership) => {
                    self.applied.membership =
                        pb::StoredMembership { log_id: Some(entry.log_id), membership: Some(membership) };
                    Vec::new()
                }
            });
            self.applied.log_id = Some(entry.log_id);
            if let Some((revision, digest)) = applier.mark.take() {
                let membership = self.applied.membership.membership.clone().unwrap_or_default();
                noted.push(NotedDigest { mark: entry.log_id.index, revision, digest, membership });
            }
        }
        let Applier { revision, clock, chain, events, closed_sessions, reported, .. } = applier;
        let Applier { malformed, malformed_shown, .. } = applier;
        (self.applied.revision, self.applied.clock, self.applied.chain) = (revision, clock, chain);
        let digest = chain.digest;
        Ok(Applied {
            outcomes,
            events,
            closed_sessions,
            revision,
            clock,
            digest,
            noted,
            reported,
            malformed,
            malformed_shown,
        })
    }

    fn write_and_commit(&mut self, lock: impl FnOnce()) -> Result<(), StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        self.dirty.sort_unstable();
        let changes = self.caches.store(conn, &self.dirty)?;
        self.dirty.clear();
        // Sorted, because neighboring rows share pages.
        self.dirty_usage.sort_unstable();
        for account in self.dirty_usage.drain(..) {
            if !failpoints::is_active(failpoints::USAGE_NOT_STORED) {
                self.caches.usage(conn, account)?.write(conn, account)?;
            }
        }
        if failpoints::is_active(failpoints::APPLIED_TWICE_AFTER_A_CRASH) {
            let behind = AppliedState { log_id: self.committed.log_id, ..self.applied.clone() };
            write_state(conn, &behind)?;
        } else {
            write_state(conn, &self.applied)?;
        }
        lock();
        self.caches.recent().publish(changes);
        execute(conn, "COMMIT", []).context("commit applied entries")?;
        Ok(())
    }

    /// Restores the state of the last commit.
    fn roll_back(&mut self) {
        self.dirty.clear();
        self.dirty_usage.clear();
        self.applied.clone_from(&self.committed);
        let Some(conn) = &self.conn else { return };
        // After some errors SQLite has already rolled back.
        let is_rolled_back = conn.is_autocommit() || execute(conn, "ROLLBACK", []).is_ok();
        match Caches::of(conn, self.cache_size.rows) {
            Ok(caches) if is_rolled_back => self.caches = caches,
            // The connection is unusable.
            _ => self.conn = None,
        }
    }

    /// What differs from the tables, as of each commit that a reader sees.
    pub(super) fn recent(&self) -> &Arc<Versions> {
        self.caches.recent().versions()
    }

    /// Reopens the database after its file was replaced.
    pub(super) fn reopen(&mut self) -> Result<(), StorageError> {
        self.dirty.clear();
        self.dirty_usage.clear();
        let (conn, checkpoints, applied) = file::open(&self.dir)?;
        db::keep_pages(&conn, self.cache_size.writer).context("set the size of the page cache")?;
        self.caches = Caches::of(&conn, self.cache_size.rows)?;
        (self.conn, self.checkpoints) = (Some(conn), checkpoints);
        self.committed.clone_from(&applied);
        self.applied = applied;
        Ok(())
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        // Best effort: it only saves the next start from applying the entries again. A caller that needs the result
        // commits first.
        let _ = self.commit();
        if let Some(conn) = &self.conn {
            db::checkpoint_wal(conn);
        }
    }
}

#[cfg(test)]
mod tests;
