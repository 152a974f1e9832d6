//! `log.db`: the Raft log, the vote, and the identity of this node.
//!
//! Owns the only durable copy of this node's commitments to other nodes. Invariants:
//!
//! - There is one writer and one FIFO queue ([`writer`]). An operation is never durable before an operation that was
//!   queued earlier.
//! - *Appended* and *durable* are different states. An append returns when its entries are readable; its callback runs
//!   after they are fsynced. Only durable entries may be acknowledged.
//! - The log is contiguous: it holds the indexes `first ..= last` without gaps. The newest entries stay in memory
//!   ([`tail`]), because replication and apply read each of them again. Older entries are read from the file.
//! - The end of the durable log is also noted in a second file ([`end`]), so that a start detects lost entries.
//! - After a failed write, nothing more is written or reported as durable. The node has to stop.
//!
//! Does not cover: the meaning of entries, and when to append, truncate or purge. Raft decides that.

mod end;
mod scan;
mod schema;
mod tail;
mod writer;

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use rusqlite::Connection;

use super::{
    StorageError,
    background::{Background, Threads, Worker},
    cache_size::CacheSize,
    in_flight::InFlight,
};
use end::{End, Recovered};
use proto::log::v1 as pb;
use tail::Tail;
use trace::TraceContext;
use writer::{Operation, Writer};

pub use schema::Identity;
pub use writer::GroupCommit;

/// Completion callback. The writer calls it once with the result of a write. It must not block.
pub type Done = Box<dyn FnOnce(Result<(), Arc<StorageError>>) + Send>;

/// A handle to the log. Clones share the same log.
#[derive(Clone)]
pub struct LogDb {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Reads entries that have left the tail. Separate from the writer's connection, so that a read never waits for an
    /// fsync.
    reader: Mutex<Connection>,
    queue: mpsc::Sender<Operation>,
    durable: Durable,
    /// Set once, when the log is opened.
    writer: OnceLock<Arc<dyn Worker>>,
    identity: Mutex<Option<Identity>>,
    in_flight: Arc<InFlight>,
}

/// The readable state of the log, durable or not.
struct State {
    tail: Tail,
    /// Index of the first entry, in the file or in memory.
    first: u64,
    purged: Option<pb::LogId>,
    vote: Option<pb::Vote>,
    committed: Option<pb::LogId>,
}

/// How far the log is fsynced.
pub(super) struct Durable {
    progress: Mutex<Progress>,
    /// Encoded bytes appended since the log was opened. Used to decide when a snapshot is due.
    appended_bytes: AtomicU64,
}

#[derive(Default)]
struct Progress {
    /// Entries before this index are durable.
    end: u64,
    failed: Option<Arc<StorageError>>,
    /// Callbacks that wait for the entry at an index.
    waiting: Vec<(u64, Done)>,
}

impl Progress {
    fn reached(&self, index: u64) -> Result<bool, StorageError> {
        match &self.failed {
            Some(error) => Err(StorageError::Failed(Arc::clone(error))),
            None => Ok(self.end > index),
        }
    }
}

impl LogDb {
    /// Opens or creates `log.db` in `dir`, with a dedicated writer thread. `on_group` is called after every group
    /// commit and must not block.
    ///
    /// # Errors
    /// The file cannot be opened, belongs to another program or a newer version, contains damaged entries, or holds
    /// less than was durable.
    pub fn open(dir: &Path, on_group: Box<dyn Fn(&GroupCommit) + Send>) -> Result<Self, StorageError> {
        Self::open_in_background(dir, on_group, &Threads)
    }

    /// Like [`LogDb::open`], but the writer runs in `background`.
    ///
    /// # Errors
    /// As for [`LogDb::open`], or the writer cannot be started there.
    pub fn open_in_background(
        dir: &Path,
        on_group: Box<dyn Fn(&GroupCommit) + Send>,
        background: &dyn Background,
    ) -> Result<Self, StorageError> {
        let path = dir.join("log.db");
        let (connection, checkpoints) = schema::open(&path)?;
        let loaded = schema::load(&connection)?;
        let reader = schema::open_reader(&path)?;
        let (queue, operations) = mpsc::channel();
        let end = tail::end(loaded.last);
        let at = |index| schema::position(&connection, &loaded, index);
        let noted = End::open(dir, &Recovered { last: loaded.last.or(loaded.purged), vote: loaded.vote, at: &at })?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                tail: Tail::new(loaded.last, CacheSize::default().log),
                first: loaded.first,
                purged: loaded.purged,
                vote: loaded.vote,
                committed: loaded.committed,
            }),
            reader: Mutex::new(reader),
            queue,
            durable: Durable {
                progress: Mutex::new(Progress { end, ..Progress::default() }),
                appended_bytes: AtomicU64::new(0),
            },
            writer: OnceLock::new(),
            identity: Mutex::new(loaded.identity),
            in_flight: Arc::default(),
        });
        let (weak, in_flight) = (Arc::downgrade(&shared), Arc::clone(&shared.in_flight));
        let mut writer =
            Writer::new((connection, checkpoints, noted), operations, weak, in_flight, on_group, loaded.purged);
        let writer = background
            .start("log-writer", Duration::ZERO, Box::new(move || writer.turn()))
            .map_err(StorageError::io("start the log writer of", &path))?;
        // No other call sets it, so it cannot be set already.
        let _ = shared.writer.set(writer);
        Ok(Self { shared })
    }

    /// Sets how much memory the newest entries take.
    pub fn set_cache_size(&self, size: CacheSize) {
        self.state().tail.limit(size.log);
    }

    /// The identity of this node; `None` until it belongs to a cluster.
    pub fn identity(&self) -> Option<Identity> {
        lock(&self.shared.identity).clone()
    }

    /// Stores the identity of this node. It takes effect when it is durable, and `done` is called then.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn begin_identity(&self, identity: Identity, done: Done) -> Result<(), StorageError> {
        self.send(Operation::Identity(identity, done))
    }

    /// Like [`LogDb::begin_identity`], but blocks until the identity is durable.
    ///
    /// # Errors
    /// The write failed.
    pub fn save_identity(&self, identity: Identity) -> Result<(), StorageError> {
        let (done, wait) = completion();
        self.begin_identity(identity, done)?;
        wait_for(&wait)
    }

    /// Whether this node has never taken part in Raft: it has neither a vote nor a log.
    pub fn is_pristine(&self) -> bool {
        let state = self.state();
        state.vote.is_none() && state.purged.is_none() && state.tail.last().is_none()
    }

    /// The newest vote, durable or not.
    pub fn vote(&self) -> Option<pb::Vote> {
        self.state().vote
    }

    /// The newest committed position that was saved.
    pub fn committed(&self) -> Option<pb::LogId> {
        self.state().committed
    }

    /// The last purged and the last existing position. They are equal when the log is empty.
    pub fn bounds(&self) -> (Option<pb::LogId>, Option<pb::LogId>) {
        let state = self.state();
        (state.purged, state.tail.last().or(state.purged))
    }

    /// Appends entries. They are readable when this returns; `done` is called when they are durable.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn append(&self, entries: Vec<pb::Entry>, done: Done) -> Result<(), StorageError> {
        self.append_traced(entries, Vec::new(), done)
    }

    /// Like [`LogDb::append`]. The [`GroupCommit`] that contains these entries also carries `traces`.
    ///
    /// # Errors
    /// As for [`LogDb::append`].
    pub fn append_traced(
        &self,
        entries: Vec<pb::Entry>,
        traces: Vec<TraceContext>,
        done: Done,
    ) -> Result<(), StorageError> {
        let mut rows = Vec::with_capacity(entries.len());
        let mut bytes = 0;
        for entry in &entries {
            let row = schema::Row::encode(entry)?;
            bytes += row.bytes.len() as u64;
            rows.push(row);
        }
        {
            // Queued under the lock, so that the queue and the tail have the same order.
            let mut state = self.state();
            if let (None, Some(row)) = (state.tail.last(), rows.first()) {
                state.first = row.id.index;
            }
            for (entry, row) in entries.into_iter().zip(&rows) {
                state.tail.push(entry, row.bytes.len());
            }
            let done = if failpoints::is_active(failpoints::ACKNOWLEDGED_BEFORE_FSYNC) {
                self.shared.durable.raise_to(state.tail.end_index());
                done(Ok(()));
                Box::new(|_| {})
            } else {
                done
            };
            self.send(Operation::Append(rows, traces, done))?;
        }
        self.shared.durable.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Stores a vote. `done` is called when it is durable; the vote must not be sent before that.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn save_vote(&self, vote: pb::Vote, done: Done) -> Result<(), StorageError> {
        if failpoints::is_active(failpoints::VOTE_NOT_PERSISTED) {
            done(Ok(()));
        } else {
            self.send(Operation::Vote(vote, done))?;
        }
        self.state().vote = Some(vote);
        Ok(())
    }

    /// Saves the commit index. It costs no fsync of its own: a later write includes it. So it is never durable before
    /// the entries that it refers to.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn save_committed(&self, committed: pb::LogId) -> Result<(), StorageError> {
        self.state().committed = Some(committed);
        self.send(Operation::Committed(committed))
    }

    /// Removes all entries after `last` (all entries for `None`). `done` is called when the removal is durable.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure, or the entry that becomes the last cannot be read.
    pub fn truncate_after(&self, last: Option<u64>, done: Done) -> Result<(), StorageError> {
        let end = last.map_or(0, |index| index + 1);
        let (_, reached) = self.bounds();
        if end >= self.state().tail.end_index() {
            return self.send(Operation::TruncateFrom(end, reached, done));
        }
        // The entry that becomes the last may have left the tail.
        let new_last = match last {
            Some(index) => self.read(index..index + 1, usize::MAX)?.first().and_then(|entry| entry.log_id),
            None => None,
        };
        let mut state = self.state();
        state.tail.truncate_after(new_last);
        self.shared.durable.lower_to(end);
        self.send(Operation::TruncateFrom(end, new_last, done))
    }

    /// Removes all entries up to and including `upto`, which may lie beyond the end of the log.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn purge(&self, mut upto: pb::LogId) -> Result<(), StorageError> {
        let mut state = self.state();
        if failpoints::is_active(failpoints::PURGED_TOO_FAR) {
            upto = state.tail.last().unwrap_or(upto);
        }
        state.purged = Some(upto);
        state.first = state.first.max(upto.index + 1);
        state.tail.purge(upto.index);
        self.send(Operation::Purge(upto))
    }

    /// Reads the existing entries of `range`, in order and without gaps. Returns at most `max_bytes`, but at least one
    /// entry.
    ///
    /// # Errors
    /// The file cannot be read, or an entry in it is missing or not intact.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<pb::Entry>, StorageError> {
        let (start, end, tail_start) = {
            let state = self.state();
            let start = range.start.max(state.first);
            let end = range.end.min(state.tail.end_index());
            if start >= end {
                return Ok(Vec::new());
            }
            if start >= state.tail.first_index() {
                return Ok(state.tail.read(start..end, max_bytes));
            }
            (start, end, state.tail.first_index())
        };
        // Entries that have left the tail are durable, so the file contains them.
        let mut entries = schema::read(&lock(&self.shared.reader), start..end.min(tail_start), max_bytes)?;
        let size: usize = entries.iter().map(prost::Message::encoded_len).sum();
        if end > tail_start && entries.len() as u64 == tail_start - start && size < max_bytes {
            let state = self.state();
            let end = end.min(state.tail.end_index());
            if (state.tail.first_index()..end).contains(&tail_start) {
                entries.extend(state.tail.read(tail_start..end, max_bytes - size));
            }
        }
        Ok(entries)
    }

    /// Asks the writer to truncate the write-ahead log, so that it retains no purged entries. It does not wait for open
    /// read transactions.
    ///
    /// # Errors
    /// The writer has stopped after an earlier failure.
    pub fn truncate_write_ahead_log(&self) -> Result<(), StorageError> {
        self.send(Operation::CutWal)
    }

    /// Whether the entry at an index is durable.
    ///
    /// # Errors
    /// The writer has stopped after a failure.
    pub fn is_durable(&self, index: u64) -> Result<bool, StorageError> {
        lock(&self.shared.durable.progress).reached(index)
    }

    /// The index after the last durable entry.
    pub fn durable_end(&self) -> u64 {
        lock(&self.shared.durable.progress).end
    }

    /// Calls `done` when the entry at `index` is durable, immediately if it already is, or with the error when the
    /// writer fails.
    pub fn when_durable(&self, index: u64, done: Done) {
        let mut progress = lock(&self.shared.durable.progress);
        match (&progress.failed, progress.end > index) {
            (None, false) => progress.waiting.push((index, done)),
            (failed, _) => {
                let result = failed.clone().map_or(Ok(()), Err);
                drop(progress);
                done(result);
            }
        }
    }

    /// Calls `done` with the error when the writer fails. Never calls it if the writer does not fail.
    pub fn when_failed(&self, done: Done) {
        // No entry can have this index.
        self.when_durable(u64::MAX, done);
    }

    /// Age of the write that is in progress; `None` if there is none.
    pub fn stalled(&self) -> Option<Duration> {
        self.shared.in_flight.age()
    }

    /// Encoded bytes appended since the log was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.shared.durable.appended_bytes.load(Ordering::Relaxed)
    }

    /// Writes all queued operations and stops the writer. Later writes fail.
    pub fn close(&self) {
        let _ = self.shared.queue.send(Operation::Stop);
        if let Some(writer) = self.shared.writer.get() {
            writer.finish();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    fn send(&self, operation: Operation) -> Result<(), StorageError> {
        self.shared.queue.send(operation).map_err(|_| match &lock(&self.shared.durable.progress).failed {
            Some(error) => StorageError::Failed(Arc::clone(error)),
            None => StorageError::Stopped("the log writer was closed".into()),
        })?;
        if let Some(writer) = self.shared.writer.get() {
            writer.wake();
        }
        Ok(())
    }
}

impl Durable {
    fn raise_to(&self, end: u64) {
        let mut progress = lock(&self.progress);
        progress.end = progress.end.max(end);
        let end = progress.end;
        let reached: Vec<_> = progress.waiting.extract_if(.., |(index, _)| *index < end).collect();
        drop(progress);
        for (_, done) in reached {
            done(Ok(()));
        }
    }

    fn lower_to(&self, end: u64) {
        let mut progress = lock(&self.progress);
        progress.end = progress.end.min(end);
    }

    fn fail(&self, error: Arc<StorageError>) {
        let waiting = {
            let mut progress = lock(&self.progress);
            progress.failed = Some(Arc::clone(&error));
            std::mem::take(&mut progress.waiting)
        };
        for (_, done) in waiting {
            done(Err(Arc::clone(&error)));
        }
    }
}

/// A completion for the writer, and the receiver of its result.
fn completion() -> (Done, mpsc::Receiver<Result<(), Arc<StorageError>>>) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done: Done = Box::new(move |result| {
        // The caller may have stopped waiting. The result is then not needed.
        let _ = sender.send(result);
    });
    (done, receiver)
}

fn wait_for(receiver: &mpsc::Receiver<Result<(), Arc<StorageError>>>) -> Result<(), StorageError> {
    match receiver.recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(StorageError::Failed(error)),
        Err(_) => Err(StorageError::Stopped("the log writer was closed".into())),
    }
}

/// A panic while a lock is held ends the process, so a poisoned lock occurs only in tests.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
