//! The state machine as the threads of a node share it: applied at once, committed soon.
//!
//! Nobody needs a commit of `chat.db` for safety: the log holds every entry, on a majority of disks. It is needed for the
//! readers, who see what is committed. So entries are staged, and committed when somebody wants to read, or at the latest
//! [`COMMIT_WITHIN`] later, in the background; a page that many entries change is then written once for all of them.
//! (etcd treats its database the same way: a batch transaction, committed every 100 ms.) Invariants:
//!
//! - Whoever has learned of a change (from an answer, an event, the applied position) and then reads, sees it:
//!   [`SharedState::settle`] comes before each read transaction.
//! - After a failure nothing is applied, committed or read any more: what has been told may be gone from this file until
//!   it is applied again, so the node has to stop. It is told so once.
//!
//! Left out: the order of entries, and their durability: the log's business.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};
use std::time::{Duration, Instant};

use super::apply::{Applied, AppliedEntry, AppliedState, StateMachine};
use super::background::{Background, Threads, Turn, Worker};
use super::divergence::Divergence;
use super::error::StorageError;
use super::underway::Underway;

/// What was applied is committed at the latest so much later.
const COMMIT_WITHIN: Duration = Duration::from_millis(100);
/// Who applies commits by itself after so long. The committing thread does not get a turn then: the node is catching up,
/// and a reader should not wait for ever larger transactions.
const OVERDUE: Duration = Duration::from_millis(200);

/// Told of commits and of the failure that ended all. Called from any thread: it must not block.
pub trait CommitObserver: Send + Sync + 'static {
    /// A transaction was committed.
    fn committed(&self, took: Duration);
    /// The first failure: from now on every call fails.
    fn failed(&self, error: &StorageError);
}

/// For those who see failures where they call, and need no figures.
impl CommitObserver for () {
    fn committed(&self, _took: Duration) {}
    fn failed(&self, _error: &StorageError) {}
}

/// A handle. Clones share the state machine.
#[derive(Clone)]
pub struct SharedState {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    machine: Mutex<Guarded>,
    /// Calls that changed something, and how many of them are committed: what a reader compares without the lock.
    staged: AtomicU64,
    committed: AtomicU64,
    observer: Box<dyn CommitObserver>,
    /// What commits in time; set once, at the start.
    committer: OnceLock<Arc<dyn Worker>>,
    underway: Underway,
}

struct Guarded {
    machine: StateMachine,
    /// When the first entry of the open transaction was staged.
    since: Option<Instant>,
    failure: Option<String>,
}

impl SharedState {
    /// Shares a state machine, and commits on a thread of its own, which ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(machine: StateMachine, observer: Box<dyn CommitObserver>) -> Result<Self, StorageError> {
        Self::committing(machine, observer, &Threads, COMMIT_WITHIN)
    }

    /// The same, with the commits in `background`.
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
        let guarded = Guarded { machine, since: None, failure: None };
        let shared = Arc::new(Shared {
            dir: dir.clone(),
            machine: Mutex::new(guarded),
            staged: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            observer,
            committer: OnceLock::new(),
            underway: Underway::default(),
        });
        let weak = Arc::downgrade(&shared);
        let work = Box::new(move || commit_in_time(&weak));
        let committer =
            background.start("state-commit", within, work).map_err(StorageError::io("start the committer of", &dir))?;
        // Only set here.
        let _ = shared.committer.set(committer);
        Ok(Self { shared })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.shared.dir
    }

    /// What was applied so far.
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
        let applied = self.shared.stage(&mut guarded, entries)?;
        if guarded.since.is_some_and(|since| since.elapsed() >= OVERDUE) {
            self.shared.commit(&mut guarded)?;
        }
        Ok(applied)
    }

    /// Applies entries unless another thread is using the state machine; `Err` gives them back then. Writes no file
    /// unless the pages changed exceed SQLite's cache, and reads only what is not in it.
    pub fn try_apply(&self, entries: Vec<AppliedEntry>) -> Result<Result<Applied, StorageError>, Vec<AppliedEntry>> {
        match self.shared.machine.try_lock() {
            Ok(mut guarded) => Ok(self.shared.stage(&mut guarded, entries)),
            Err(TryLockError::Poisoned(_)) => Ok(Err(panicked())),
            Err(TryLockError::WouldBlock) => Err(entries),
        }
    }

    /// Makes sure that all that was applied before this call is committed.
    ///
    /// # Errors
    /// The commit, or anything before it, failed.
    pub fn settle(&self) -> Result<(), StorageError> {
        let staged = self.shared.staged.load(Ordering::Acquire);
        if self.shared.committed.load(Ordering::Acquire) >= staged {
            return Ok(());
        }
        self.shared.commit(&mut *self.shared.lock()?)
    }

    /// Commits what was applied and cuts the write-ahead log to nothing, so that it keeps nothing that was overwritten since.
    /// False: it is being read; try again.
    ///
    /// # Errors
    /// The commit or the checkpoint, or anything before it, failed.
    pub fn cut_write_ahead_log(&self) -> Result<bool, StorageError> {
        let mut guarded = self.shared.lock()?;
        self.shared.commit(&mut guarded)?;
        self.shared.guard(&mut guarded, |machine| machine.cut_write_ahead_log())
    }

    /// How long the commit that is under way has taken so far; `None` when there is none.
    pub fn stalled(&self) -> Option<Duration> {
        self.shared.underway.age()
    }

    /// Ends the use of this state: a reader has met damage. Nothing is applied, committed or read any more, and the observer
    /// is told.
    pub fn fail(&self, error: &StorageError) {
        if let Ok(mut guarded) = self.shared.lock() {
            guarded.failure.get_or_insert_with(|| error.to_string());
            self.shared.staged.store(u64::MAX, Ordering::Release);
        }
        self.shared.observer.failed(error);
    }

    /// Ends the use of this state: it is known to differ from that of the other nodes. First nothing is applied, committed
    /// or read any more; then it is noted in the data directory, so that no later start serves it; then the observer is
    /// told. Returns the error to stop with.
    pub fn condemn(&self, divergence: &Divergence) -> StorageError {
        let mut details = divergence.to_string();
        if let Ok(mut guarded) = self.shared.lock() {
            guarded.failure.get_or_insert_with(|| details.clone());
            self.shared.staged.store(u64::MAX, Ordering::Release);
        }
        let path = self.directory().to_owned();
        if let Err(error) = divergence.write(&path) {
            // The digest does not become right again: the next comparison finds it out once more.
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
    pub fn install_snapshot(&self, file: &Path) -> Result<AppliedState, StorageError> {
        let mut guarded = self.shared.lock()?;
        self.shared.guard(&mut guarded, |machine| machine.install_snapshot(file))?;
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
        // Before anybody can learn of it.
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
        self.underway.run(|| self.guard(guarded, StateMachine::commit))?;
        self.all_committed(guarded);
        if staged {
            self.observer.committed(started.elapsed());
        }
        Ok(())
    }

    /// Runs `work` unless an earlier call failed. Remembers its failure.
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
            // No reader may take the file for what was told to others.
            self.staged.store(u64::MAX, Ordering::Release);
            self.observer.failed(error);
        }
        result
    }

    fn all_committed(&self, guarded: &mut Guarded) {
        guarded.since = None;
        // Only changed under the lock, which is held.
        self.committed.store(self.staged.load(Ordering::Relaxed), Ordering::Release);
    }
}

/// A turn of the committer. It holds nothing in between, so that the last handle can go.
fn commit_in_time(shared: &Weak<Shared>) -> Turn {
    let Some(shared) = shared.upgrade() else { return Turn::End };
    // A failure has been told to the observer, and so will be whatever comes after a panic.
    let _ = shared.lock().and_then(|mut guarded| shared.commit(&mut guarded));
    Turn::Wait
}

fn panicked() -> StorageError {
    StorageError::Stopped("applying an entry panicked".into())
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
