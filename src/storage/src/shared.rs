//! The state machine as shared by the threads of a node: entries are applied at once and committed soon after.
//!
//! Safety does not require a commit of `chat.db`, because the log holds every entry on a majority of disks. Only
//! readers require it, because they see committed data. So entries are staged, and committed when a reader asks, or at
//! the latest [`COMMIT_WITHIN`] later, in the background. A page that many entries change is then written once for all
//! of them. (etcd treats its database the same way, with a batch transaction that is committed every 100 ms.)
//! Invariants:
//!
//! - A caller that has observed a change (in a response, an event, or the applied position) also reads it:
//!   [`SharedState::commit_staged`] precedes each read transaction.
//! - A reader's transaction and its rows that are `recent` belong to the same commit: a commit makes both visible with
//!   the lock of [`Published`], and a reader takes both with it.
//! - After a failure nothing is applied, committed or read any more. Acknowledged changes may be missing from this file
//!   until they are applied again, so the node has to stop. The observer is notified of the failure.
//!
//! Does not cover: the order of entries and their durability. The log is responsible for both.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak,
};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::apply::{Applied, AppliedEntry, AppliedState, StateMachine};
use super::background::{Background, Threads, Turn, Worker};
use super::cache_size::CacheSize;
use super::divergence::Divergence;
use super::error::{Context as _, StorageError};
use super::image::StateImage;
use super::in_flight::InFlight;
use super::pages::{self, VerifiedPages};
use super::recent::{RecentRows, Versions};
use super::snapshot::Received;
use super::{db, schema};

/// Maximum delay between applying an entry and committing it.
const COMMIT_WITHIN: Duration = Duration::from_millis(100);
/// Age of the open transaction at which applying entries also commits it. The committer gets no turn in this case: the
/// node is catching up, and a reader should not have to wait for ever larger transactions.
const OVERDUE: Duration = Duration::from_millis(200);

/// Observes commits, and the failure that ends the use of the state. Called from any thread; must not block.
pub trait CommitObserver: Send + Sync + 'static {
    /// A transaction was committed.
    fn committed(&self, took: Duration);
    /// The first failure. From now on every call fails.
    fn failed(&self, error: &StorageError);
}

/// For callers that handle returned errors and need no metrics.
impl CommitObserver for () {
    fn committed(&self, _took: Duration) {}
    fn failed(&self, _error: &StorageError) {}
}

/// A handle to the state machine. Clones share it.
#[derive(Clone)]
pub struct SharedState {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    machine: Mutex<Guarded>,
    /// Number of calls that changed something, and how many of them are committed. A reader compares them without the
    /// lock.
    staged: AtomicU64,
    committed: AtomicU64,
    observer: Box<dyn CommitObserver>,
    /// The worker that commits in the background. Set once, at the start.
    committer: OnceLock<Arc<dyn Worker>>,
    published: RwLock<Published>,
    cache_size: CacheSize,
    in_flight: InFlight,
    /// Flushes run without the lock, beside commits.
    flush_in_flight: InFlight,
}

/// What readers need besides the file.
struct Published {
    recent: Arc<Versions>,
    /// Incremented when the file is replaced.
    file: u64,
}

struct Guarded {
    machine: StateMachine,
    /// Time at which the first entry of the open transaction was staged.
    since: Option<Instant>,
    failure: Option<String>,
}

impl SharedState {
    /// Shares a state machine. A dedicated thread commits; it ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(machine: StateMachine, observer: Box<dyn CommitObserver>) -> Result<Self, StorageError> {
        Self::committing(machine, observer, &Threads, COMMIT_WITHIN)
    }

    /// Like [`SharedState::new`], but commits in `background`.
    ///
    /// # Errors
    /// The work cannot be started there.
    pub fn in_background(
        machine: StateMachine,
        observer: Box<dyn CommitObserver>,
        background: &dyn Background,
    ) -> Result<Self, StorageError> {
        Self::committing(machine, observer, background, COMMIT_WITHIN)
    }

    fn committing(
        machine: StateMachine,
        observer: Box<dyn CommitObserver>,
        background: &dyn Background,
        within: Duration,
    ) -> Result<Self, StorageError> {
        let dir = machine.directory().to_owned();
        let published = RwLock::new(Published { recent: machine.recent().clone(), file: 0 });
        let cache_size = machine.cache_size();
        let guarded = Guarded { machine, since: None, failure: None };
        let shared = Arc::new(Shared {
            dir: dir.clone(),
            machine: Mutex::new(guarded),
            staged: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            observer,
            committer: OnceLock::new(),
            published,
            cache_size,
            in_flight: InFlight::default(),
            flush_in_flight: InFlight::default(),
        });
        let weak = Arc::downgrade(&shared);
        let work = Box::new(move || commit_in_time(&weak));
        let committer =
            background.start("state-commit", within, work).map_err(StorageError::io("start the committer of", &dir))?;
        // No other call sets it, so it cannot be set already.
        let _ = shared.committer.set(committer);
        Ok(Self { shared })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.shared.dir
    }

    /// How much memory the caches take.
    pub(super) fn cache_size(&self) -> CacheSize {
        self.shared.cache_size
    }

    /// The applied state, committed or not.
    ///
    /// # Errors
    /// An earlier call failed.
    pub fn applied(&self) -> Result<AppliedState, StorageError> {
        self.shared.guard(&mut *self.shared.lock()?, |machine| Ok(machine.applied().clone()))
    }

    /// Applies entries; see [`StateMachine::stage`].
    ///
    /// # Errors
    /// This call or an earlier one failed.
    pub fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let mut guarded = self.shared.lock()?;
        // Only this call waits for a lock of another process. The wait is visible as a slow write.
        self.shared.in_flight.run(|| self.shared.guard(&mut guarded, |machine| machine.begin()))?;
        let applied = self.shared.stage(&mut guarded, entries)?;
        if guarded.since.is_some_and(|since| since.elapsed() >= OVERDUE) {
            self.shared.commit(&mut guarded)?;
        }
        Ok(applied)
    }

    /// Applies entries unless another thread uses the state machine, or another process holds a lock on its file. `Err`
    /// returns the entries in that case. Writes no file unless the changed pages exceed SQLite's cache, and reads only
    /// pages that are not in the cache.
    pub fn try_apply(&self, entries: Vec<AppliedEntry>) -> Result<Result<Applied, StorageError>, Vec<AppliedEntry>> {
        match self.shared.machine.try_lock() {
            Ok(mut guarded) => match self.shared.guard(&mut guarded, |machine| machine.try_begin()) {
                Ok(true) => Ok(self.shared.stage(&mut guarded, entries)),
                Ok(false) => Err(entries),
                Err(error) => Ok(Err(error)),
            },
            Err(TryLockError::Poisoned(_)) => Ok(Err(panicked())),
            Err(TryLockError::WouldBlock) => Err(entries),
        }
    }

    /// Commits everything that was applied before this call.
    ///
    /// # Errors
    /// The commit, or anything before it, failed.
    pub fn commit_staged(&self) -> Result<(), StorageError> {
        let staged = self.shared.staged.load(Ordering::Acquire);
        if self.shared.committed.load(Ordering::Acquire) >= staged {
            return Ok(());
        }
        self.shared.commit(&mut *self.shared.lock()?)
    }

    /// Commits the applied entries, and flushes everything that is committed. Returns the state that is durable then.
    ///
    /// A checkpoint flushes the write-ahead log before it writes to the file, and the file before the log starts over.
    /// So whatever is committed is on disk once the log is.
    ///
    /// # Errors
    /// The commit or the flush, or anything before it, failed.
    pub fn flush(&self) -> Result<AppliedState, StorageError> {
        let path = db::write_ahead_log_path(&self.shared.dir);
        let (applied, wal) = {
            let mut guarded = self.shared.lock()?;
            self.shared.commit(&mut guarded)?;
            // With the lock, because an installation replaces the file.
            let wal = File::open(&path).map_err(StorageError::io("open", &path));
            let wal = self.shared.guard(&mut guarded, |_| wal)?;
            (guarded.machine.applied().clone(), wal)
        };
        if !failpoints::is_active(failpoints::STATE_NOT_FLUSHED) {
            let flushed = self.shared.flush_in_flight.run(|| wal.sync_all());
            flushed.map_err(StorageError::io("flush", &path)).inspect_err(|error| self.fail(error))?;
        }
        Ok(applied)
    }

    /// Moves pages from the write-ahead log to the file, beside the writer. A commit would have to do it otherwise.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn checkpoint_beside(&self) -> Result<(), StorageError> {
        let conn = self.open(db::open_writer)?;
        db::keep_wal(&conn)
            .and_then(|()| conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())))
            .context("checkpoint the state")
    }

    /// Begins the read transaction of `conn`, which is connected to the file with this number (see [`Self::file`]).
    /// Returns what is recent in it, or `None` if the file was replaced.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn begin_read(&self, conn: &Connection, file: u64) -> Result<Option<RecentRows>, StorageError> {
        let published = self.shared.published();
        if self.shared.staged.load(Ordering::Acquire) == u64::MAX {
            return Err(StorageError::Stopped("the state is not used any more".into()));
        }
        if published.file != file {
            return Ok(None);
        }
        // A transaction is that of its first read.
        let first = conn.prepare_cached("SELECT 1 FROM state").and_then(|mut first| first.query_row([], |_| Ok(())));
        first.context("begin to read")?;
        Ok(Some(published.recent.now()))
    }

    /// The number of the file. It changes when a snapshot is installed.
    pub(super) fn file(&self) -> u64 {
        self.shared.published().file
    }

    /// Opens a connection to the file. With the lock, because none may be opened during an installation.
    fn open(&self, open: fn(&Path) -> Result<Connection, StorageError>) -> Result<Connection, StorageError> {
        let guarded = self.shared.lock()?;
        if let Some(failure) = &guarded.failure {
            return Err(StorageError::Stopped(failure.clone()));
        }
        let path = db::database_path(&self.shared.dir);
        let conn = open(&path)?;
        // The first read opens the write-ahead log. Its name may refer to another file later.
        schema::check(&conn, &path)?;
        Ok(conn)
    }

    /// An image of everything that was applied before this call.
    ///
    /// # Errors
    /// The commit, or anything before it, failed. The file cannot be read.
    pub fn image(&self) -> Result<StateImage, StorageError> {
        let mut guarded = self.shared.lock()?;
        self.shared.commit(&mut guarded)?;
        // With the lock, because no connection may be opened during an installation.
        StateImage::open(&self.shared.dir)
    }

    /// Verifies the checksums of pages of `chat.db`, from the one with the number `first` on, at most `most`. Those in
    /// the write-ahead log are not read from the file, where they are going to be replaced. Ends the use of this state
    /// if a page is damaged.
    ///
    /// # Errors
    /// A page is damaged, the file cannot be read, or an earlier call failed.
    pub fn verify_pages(&self, first: u32, most: u32) -> Result<VerifiedPages, StorageError> {
        let conn = self.open(db::open_reader)?;
        conn.execute_batch("BEGIN").context("begin to read the state")?;
        if failpoints::is_active(failpoints::STATE_NOT_SCRUBBED) {
            return Ok(VerifiedPages { count: most, of: first });
        }
        pages::verify(&conn, first, most).inspect_err(|error| {
            if error.is_corruption() {
                self.fail(error);
            }
        })
    }

    /// Commits the applied entries and truncates the write-ahead log, so that it retains no overwritten data. Returns
    /// `false` if a reader prevents the truncation; the caller should retry.
    ///
    /// # Errors
    /// The commit or the checkpoint, or anything before it, failed.
    pub fn truncate_write_ahead_log(&self) -> Result<bool, StorageError> {
        let mut guarded = self.shared.lock()?;
        self.shared.commit(&mut guarded)?;
        self.shared.guard(&mut guarded, |machine| machine.truncate_write_ahead_log())
    }

    /// Age of the commit or flush that is in progress; `None` if there is none.
    pub fn stalled(&self) -> Option<Duration> {
        self.shared.in_flight.age().max(self.shared.flush_in_flight.age())
    }

    /// Ends the use of this state after a reader has found damage. Nothing is applied, committed or read any more.
    /// Notifies the observer.
    pub fn fail(&self, error: &StorageError) {
        if let Ok(mut guarded) = self.shared.lock() {
            guarded.failure.get_or_insert_with(|| error.to_string());
            self.shared.staged.store(u64::MAX, Ordering::Release);
        }
        self.shared.observer.failed(error);
    }

    /// Ends the use of this state because it is known to differ from that of the other nodes. It stops applying,
    /// committing and reading, then records the divergence in the data directory, so that no later start serves the
    /// state, and then notifies the observer. Returns the error to stop with.
    pub fn mark_diverged(&self, divergence: &Divergence) -> StorageError {
        let mut details = divergence.to_string();
        if let Ok(mut guarded) = self.shared.lock() {
            guarded.failure.get_or_insert_with(|| details.clone());
            self.shared.staged.store(u64::MAX, Ordering::Release);
        }
        let path = self.directory().to_owned();
        if let Err(error) = divergence.write(&path) {
            // A digest that differs never matches again, so the next comparison detects it once more.
            details = format!("{details}; this could not be noted for the next start: {error}");
        }
        let error = StorageError::Diverged { path, details };
        self.shared.observer.failed(&error);
        error
    }

    /// Replaces the whole state; see [`StateMachine::install_snapshot`].
    ///
    /// # Errors
    /// The installation, or anything before it, failed.
    pub fn install_snapshot(&self, snapshot: Received) -> Result<AppliedState, StorageError> {
        let mut guarded = self.shared.lock()?;
        // Until it is done, readers go on with the earlier file.
        self.shared.guard(&mut guarded, |machine| machine.install_snapshot(snapshot))?;
        let mut published = self.shared.publish();
        published.file += 1;
        published.recent = guarded.machine.recent().clone();
        drop(published);
        self.shared.all_committed(&mut guarded);
        Ok(guarded.machine.applied().clone())
    }
}

impl Shared {
    fn lock(&self) -> Result<MutexGuard<'_, Guarded>, StorageError> {
        self.machine.lock().map_err(|_| panicked())
    }

    fn stage(&self, guarded: &mut Guarded, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let applied = self.guard(guarded, |machine| machine.stage(entries))?;
        // Incremented before any caller can observe the change.
        self.staged.fetch_add(1, Ordering::Release);
        guarded.since.get_or_insert_with(|| {
            if let Some(committer) = self.committer.get() {
                committer.wake();
            }
            Instant::now()
        });
        Ok(applied)
    }

    fn commit(&self, guarded: &mut Guarded) -> Result<(), StorageError> {
        let started = Instant::now();
        let staged = guarded.machine.is_staged();
        // No reader begins before the commit is done, so that it sees both the rows and what is recent, or neither; or
        // before a failure is noted.
        self.in_flight.run(|| {
            let mut published = None;
            let committed = self.guard(guarded, |machine| machine.commit_after(|| published = Some(self.publish())));
            drop(published);
            committed?;
            self.all_committed(guarded);
            // Readers need not wait for it.
            self.guard(guarded, |machine| machine.checkpoint())
        })?;
        if staged {
            self.observer.committed(started.elapsed());
        }
        Ok(())
    }

    /// Runs `work` unless an earlier call failed, and remembers its failure.
    fn guard<T>(
        &self,
        guarded: &mut Guarded,
        work: impl FnOnce(&mut StateMachine) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if let Some(failure) = &guarded.failure {
            return Err(StorageError::Stopped(failure.clone()));
        }
        let result = work(&mut guarded.machine);
        if let Err(error) = &result {
            guarded.failure = Some(error.to_string());
            // A reader must not take the file for the acknowledged state.
            self.staged.store(u64::MAX, Ordering::Release);
            self.observer.failed(error);
        }
        result
    }

    fn published(&self) -> RwLockReadGuard<'_, Published> {
        // A panic while it was held has poisoned the state machine, too.
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) -> RwLockWriteGuard<'_, Published> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_committed(&self, guarded: &mut Guarded) {
        guarded.since = None;
        // Both counters change only under the lock, which is held here.
        self.committed.store(self.staged.load(Ordering::Relaxed), Ordering::Release);
    }
}

/// A turn of the committer. It holds no reference between turns, so that the last handle can be dropped.
fn commit_in_time(shared: &Weak<Shared>) -> Turn {
    let Some(shared) = shared.upgrade() else { return Turn::End };
    // The observer has been notified of a failure. Any call after a panic fails.
    let _ = shared.lock().and_then(|mut guarded| shared.commit(&mut guarded));
    Turn::Wait
}

fn panicked() -> StorageError {
    StorageError::Stopped("applying an entry panicked".into())
}

#[cfg(test)]
mod tests;
