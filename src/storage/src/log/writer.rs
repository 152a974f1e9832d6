//! The writer of `log.db`.
//!
//! It implements group commit: it takes all queued operations, writes them in one transaction, commits (one fsync), and
//! only then calls back. All waiting callers share the cost of the fsync.

use std::{
    path::PathBuf,
    sync::{Arc, Weak, mpsc},
    time::{Duration, Instant},
};

use prost::Message as _;
use rusqlite::{Connection, TransactionBehavior, params};

use super::{
    Done, Identity, Shared,
    end::End,
    lock,
    schema::{self, IdentityRecord, Row},
};
use crate::{
    StorageError,
    background::Turn,
    db::{self, Checkpoints},
    error::Context as _,
    in_flight::InFlight,
    locks,
};
use proto::log::v1 as pb;
use trace::TraceContext;

/// Maximum operations in one transaction. Bounds how long the first of them waits for the last.
const GROUP_MAX: usize = 1024;
/// Minimum interval between writes of the committed position. After a restart it only saves the node a request to the
/// leader.
const COMMITTED_EVERY: Duration = Duration::from_secs(1);
/// Maximum rows deleted in one transaction after a purge, so that a large purge does not delay appends.
const PURGE_ROWS_MAX: u64 = 2000;
/// Bytes of rows after which a transaction deletes no more, because all deleted bytes are overwritten with zeros.
const PURGE_BYTES: u64 = 1 << 20;

/// An operation for the writer.
pub(super) enum Operation {
    Append(Vec<Row>, Vec<TraceContext>, Done),
    Vote(pb::Vote, Done),
    Committed(pb::LogId),
    /// Removes the entries from an index on. The second field is the position of the last entry that remains.
    TruncateFrom(u64, Option<pb::LogId>, Done),
    Purge(pb::LogId),
    Identity(Identity, Done),
    CutWal,
    Stop,
}

/// One group commit, for metrics and traces.
#[derive(Debug, Clone)]
pub struct GroupCommit {
    /// Number of entries in it.
    pub entries: usize,
    /// Number of operations taken from the queue for it.
    pub operations: usize,
    /// Time at which the transaction began.
    pub began: Instant,
    /// Time at which all rows were written and the commit began.
    pub written: Instant,
    /// Time at which it was durable.
    pub durable: Instant,
    /// Traces of the commands in it.
    pub traces: Vec<TraceContext>,
}

pub(super) struct Writer {
    path: PathBuf,
    connection: Connection,
    checkpoints: Checkpoints,
    end: End,
    queue: mpsc::Receiver<Operation>,
    shared: Weak<Shared>,
    in_flight: Arc<InFlight>,
    on_group: Box<dyn Fn(&GroupCommit) + Send>,
    /// Committed position that is not written yet. It is part of a later transaction: alone it is not worth an fsync,
    /// nor another page in each group.
    committed: Option<pb::LogId>,
    /// Time of the last write of the committed position.
    committed_written: Option<Instant>,
    /// Rows before this index are to be deleted, a few with each transaction.
    delete_before: u64,
    /// Rows before this index have been deleted.
    deleted_before: u64,
}

impl Drop for Writer {
    fn drop(&mut self) {
        db::checkpoint_wal(&self.connection);
    }
}

impl Writer {
    pub(super) fn new(
        (connection, checkpoints, end): (Connection, Checkpoints, End),
        queue: mpsc::Receiver<Operation>,
        shared: Weak<Shared>,
        in_flight: Arc<InFlight>,
        on_group: Box<dyn Fn(&GroupCommit) + Send>,
        purged: Option<pb::LogId>,
    ) -> Self {
        // The first deletion also removes rows that a crash after a purge left behind.
        let delete_before = purged.map_or(0, |id| id.index + 1);
        Self {
            path: connection.path().map(PathBuf::from).unwrap_or_default(),
            connection,
            checkpoints,
            end,
            queue,
            shared,
            in_flight,
            on_group,
            committed: None,
            committed_written: None,
            delete_before,
            deleted_before: 0,
        }
    }

    /// Writes one group of queued operations. The last turn is the one that writes [`Operation::Stop`] or in which a
    /// write fails.
    pub(super) fn turn(&mut self) -> Turn {
        let mut group: Vec<_> = self.queue.try_iter().take(GROUP_MAX).collect();
        if group.is_empty() {
            if self.deleted_before >= self.delete_before {
                return Turn::Wait;
            }
            // No operation is waiting, so this turn only deletes purged rows.
            let in_flight = Arc::clone(&self.in_flight);
            return match in_flight.run(|| self.write(&[])) {
                Ok(_) => Turn::More,
                Err(error) => {
                    self.fail(group, error);
                    Turn::End
                }
            };
        }
        match self.flush(&mut group) {
            Ok(turn) => turn,
            Err(error) => {
                self.fail(group, error);
                Turn::End
            }
        }
    }

    /// Writes a group and calls back. On an error the operations remain in `group`.
    fn flush(&mut self, group: &mut Vec<Operation>) -> Result<Turn, StorageError> {
        let began = Instant::now();
        let stop = group.iter().any(|operation| matches!(operation, Operation::Stop));
        for operation in group.iter() {
            if let Operation::Committed(id) = operation {
                self.committed = Some(*id);
            }
        }
        let only_committed = group.iter().all(|operation| matches!(operation, Operation::Committed(_)));
        if only_committed && !stop {
            group.clear();
            return Ok(Turn::More);
        }
        let in_flight = Arc::clone(&self.in_flight);
        let (entries, written) = in_flight.run(|| {
            self.note_what_goes(group)?;
            let written = self.write(group)?;
            self.note_what_is_durable(group, stop)?;
            Ok::<_, StorageError>(written)
        })?;
        let mut commit = GroupCommit {
            entries,
            operations: group.len(),
            began,
            written,
            durable: Instant::now(),
            traces: Vec::new(),
        };
        if let Some(shared) = self.shared.upgrade() {
            advance(&shared, group);
        }
        let mut cut = false;
        for operation in group.drain(..) {
            match operation {
                Operation::Append(_, traces, done) => {
                    commit.traces.extend(traces);
                    done(Ok(()));
                }
                Operation::Vote(_, done) | Operation::TruncateFrom(_, _, done) => done(Ok(())),
                Operation::Identity(identity, done) => {
                    if let Some(shared) = self.shared.upgrade() {
                        *lock(&shared.identity) = Some(identity);
                    }
                    done(Ok(()));
                }
                Operation::CutWal => cut = true,
                Operation::Committed(_) | Operation::Purge(_) | Operation::Stop => {}
            }
        }
        if cut {
            // A part of the write-ahead log that is being read is truncated next time.
            db::truncate_wal(&self.connection).context("cutting the write-ahead log of log.db")?;
        }
        (self.on_group)(&commit);
        Ok(if stop { Turn::End } else { Turn::More })
    }

    /// Lowers the noted end of the log before entries are removed.
    fn note_what_goes(&mut self, group: &[Operation]) -> Result<(), StorageError> {
        for operation in group {
            if let Operation::TruncateFrom(_, kept, _) = operation {
                self.end.lower(*kept)?;
            }
        }
        Ok(())
    }

    /// Raises the noted end of the log, after the commit and before any callback.
    fn note_what_is_durable(&mut self, group: &[Operation], stop: bool) -> Result<(), StorageError> {
        let (mut last, mut vote) = (None::<pb::LogId>, None);
        for operation in group {
            match operation {
                Operation::Append(rows, ..) => last = rows.last().map(|row| row.id).or(last),
                Operation::TruncateFrom(cut, kept, _) if last.is_some_and(|last| last.index >= *cut) => last = *kept,
                Operation::Purge(upto) if last.is_none_or(|last| last.index < upto.index) => last = Some(*upto),
                Operation::Vote(newest, _) => vote = Some(*newest),
                _ => {}
            }
        }
        self.end.raise(last, vote)?;
        if stop { self.end.flush() } else { Ok(()) }
    }

    /// Returns the number of appended entries, and the time at which the commit began.
    fn write(&mut self, group: &[Operation]) -> Result<(usize, Instant), StorageError> {
        let context = "writing log.db";
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context(context)
            .map_err(|error| locks::name_holder(&self.path, error))?;
        let mut entries = 0;
        for operation in group {
            match operation {
                Operation::Append(rows, ..) => {
                    for row in rows {
                        row.insert(&transaction).context(context)?;
                    }
                    entries += rows.len();
                }
                Operation::Vote(vote, _) => {
                    schema::put_meta(&transaction, "vote", &vote.encode_to_vec()).context(context)?;
                }
                Operation::TruncateFrom(end, ..) => {
                    transaction.execute("DELETE FROM entry WHERE idx >= ?1", params![end]).context(context)?;
                }
                Operation::Purge(upto) => {
                    schema::put_meta(&transaction, "purged", &upto.encode_to_vec()).context(context)?;
                    self.delete_before = self.delete_before.max(upto.index + 1);
                }
                Operation::Identity(identity, _) => {
                    let record = IdentityRecord::from(identity.clone());
                    schema::put_meta(&transaction, "identity", &record.encode_to_vec()).context(context)?;
                }
                Operation::Committed(_) | Operation::CutWal | Operation::Stop => {}
            }
        }
        let due = self.committed_written.is_none_or(|at| at.elapsed() >= COMMITTED_EVERY);
        if (due || group.iter().any(|operation| matches!(operation, Operation::Stop)))
            && let Some(id) = self.committed.take()
        {
            self.committed_written = Some(Instant::now());
            schema::put_meta(&transaction, "committed", &id.encode_to_vec()).context(context)?;
        }
        if self.deleted_before < self.delete_before {
            // An append after a purge beyond the end must not collide with rows that are still to be deleted. Those
            // rows all lie before the purge point, and all appends lie after it.
            let end = purge_end(&transaction, self.delete_before).context(context)?;
            transaction
                .prepare_cached("DELETE FROM entry WHERE idx < ?1")
                .and_then(|mut statement| statement.execute([end]))
                .context(context)?;
            self.deleted_before = end;
        }
        let written = Instant::now();
        transaction.commit().and_then(|()| self.checkpoints.after_commit(&self.connection)).context(context)?;
        Ok((entries, written))
    }

    fn fail(&self, group: Vec<Operation>, error: StorageError) {
        let error = Arc::new(error);
        if let Some(shared) = self.shared.upgrade() {
            shared.durable.fail(Arc::clone(&error));
        }
        let queued = std::iter::from_fn(|| self.queue.try_recv().ok());
        for operation in group.into_iter().chain(queued) {
            match operation {
                Operation::Append(_, _, done)
                | Operation::Vote(_, done)
                | Operation::TruncateFrom(_, _, done)
                | Operation::Identity(_, done) => done(Err(Arc::clone(&error))),
                Operation::Committed(_) | Operation::Purge(_) | Operation::CutWal | Operation::Stop => {}
            }
        }
    }
}

/// The index up to which one transaction deletes rows before `before`.
fn purge_end(connection: &Connection, before: u64) -> rusqlite::Result<u64> {
    let sql = "SELECT idx, length(bytes) FROM entry WHERE idx < ?1 ORDER BY idx LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![before, PURGE_ROWS_MAX])?;
    let (mut count, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        count += 1;
        bytes += row.get::<_, u64>(1)?;
        if count == PURGE_ROWS_MAX || bytes >= PURGE_BYTES {
            return Ok(row.get::<_, u64>(0)? + 1);
        }
    }
    Ok(before)
}

/// Updates the durable end of the log after a group. Entries may be written and reported as durable after a truncation
/// has already removed them from memory.
fn advance(shared: &Shared, group: &[Operation]) {
    for operation in group {
        match operation {
            Operation::Append(rows, ..) => {
                if let Some(last) = rows.last() {
                    lock(&shared.state).tail.set_durable(last.id.index + 1);
                    shared.durable.raise_to(last.id.index + 1);
                }
            }
            Operation::TruncateFrom(end, ..) => {
                lock(&shared.state).tail.limit_durable(*end);
                shared.durable.lower_to(*end);
            }
            _ => {}
        }
    }
}
