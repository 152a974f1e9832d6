//! The thread that writes `log.db`.
//!
//! It takes everything that is queued, writes it in one transaction, commits (one fsync), and only then calls back:
//! group commit, so that the cost of an fsync is shared by all who wait for one.

use std::{
    sync::{Arc, Weak, mpsc},
    time::{Duration, Instant},
};

use prost::Message as _;
use rusqlite::{Connection, TransactionBehavior, params};

use super::{
    Done, Identity, Shared, lock,
    schema::{self, IdentityRecord, Row},
};
use crate::{
    proto::log::v1 as pb,
    storage::{StorageError, error::Context as _},
};

/// Most operations in one transaction: bounds how long the first of them waits for the last.
const GROUP_MAX: usize = 1024;
/// The committed position is written this often at most: after a restart it only spares the node to ask the leader.
const COMMITTED_EVERY: Duration = Duration::from_secs(1);
/// Rows deleted in one transaction after a purge, so that a large purge does not hold up appends.
const PURGE_ROWS_MAX: u64 = 2000;

/// What is to be written.
pub(super) enum Operation {
    Append(Vec<Row>, Done),
    Vote(pb::Vote, Done),
    Committed(pb::LogId),
    TruncateFrom(u64, Done),
    Purge(pb::LogId),
    Identity(Identity, Done),
    Stop,
}

/// What one commit wrote, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct GroupCommit {
    /// Entries in it.
    pub entries: usize,
    /// Time from the start of the transaction until it was durable.
    pub took: Duration,
    /// Operations taken from the queue for it.
    pub operations: usize,
}

/// Whether the writer goes on after a group.
enum Flushed {
    /// All is written.
    Continue,
    /// It was told to stop.
    Stop,
}

pub(super) struct Writer {
    connection: Connection,
    queue: mpsc::Receiver<Operation>,
    shared: Weak<Shared>,
    on_group: Box<dyn Fn(&GroupCommit) + Send>,
    /// Written with a later transaction: alone it is not worth an fsync, nor another page in each group.
    committed: Option<pb::LogId>,
    /// When it was written last.
    committed_written: Option<Instant>,
    /// Rows before this index are to be deleted, a few with each transaction.
    delete_before: u64,
    /// Rows before this index have been deleted.
    deleted_before: u64,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        queue: mpsc::Receiver<Operation>,
        shared: Weak<Shared>,
        on_group: Box<dyn Fn(&GroupCommit) + Send>,
        purged: Option<pb::LogId>,
    ) -> Self {
        // Rows that a crash left behind a purge are found by the first deletion.
        let delete_before = purged.map_or(0, |id| id.index + 1);
        Self {
            connection,
            queue,
            shared,
            on_group,
            committed: None,
            committed_written: None,
            delete_before,
            deleted_before: 0,
        }
    }

    /// Runs until it is told to stop, all handles are gone, or a write fails.
    pub(super) fn run(mut self) {
        let mut group = Vec::new();
        loop {
            let Ok(first) = self.queue.recv() else { return };
            group.push(first);
            while group.len() < GROUP_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                group.push(next);
            }
            match self.flush(&mut group) {
                Ok(Flushed::Continue) => {}
                Ok(Flushed::Stop) => return,
                Err(error) => {
                    self.fail(group, error);
                    return;
                }
            }
        }
    }

    /// Writes a group and calls back. On an error the operations stay in `group`.
    fn flush(&mut self, group: &mut Vec<Operation>) -> Result<Flushed, StorageError> {
        let started = Instant::now();
        let stop = group.iter().any(|operation| matches!(operation, Operation::Stop));
        for operation in group.iter() {
            if let Operation::Committed(id) = operation {
                self.committed = Some(*id);
            }
        }
        let only_committed = group.iter().all(|operation| matches!(operation, Operation::Committed(_)));
        if only_committed && !stop {
            group.clear();
            return Ok(Flushed::Continue);
        }
        let written = self.write(group)?;
        let commit = GroupCommit { entries: written.entries, took: started.elapsed(), operations: group.len() };
        if let (Some(end), Some(shared)) = (written.durable_end, self.shared.upgrade()) {
            lock(&shared.state).tail.set_durable(end);
            shared.durable.raise_to(end);
        }
        for operation in group.drain(..) {
            match operation {
                Operation::Append(_, done)
                | Operation::Vote(_, done)
                | Operation::TruncateFrom(_, done)
                | Operation::Identity(_, done) => done(Ok(())),
                Operation::Committed(_) | Operation::Purge(_) | Operation::Stop => {}
            }
        }
        (self.on_group)(&commit);
        Ok(if stop { Flushed::Stop } else { Flushed::Continue })
    }

    fn write(&mut self, group: &[Operation]) -> Result<Written, StorageError> {
        let context = "writing log.db";
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).context(context)?;
        let mut written = Written { entries: 0, durable_end: None };
        for operation in group {
            match operation {
                Operation::Append(rows, _) => {
                    for row in rows {
                        row.insert(&transaction).context(context)?;
                    }
                    written.entries += rows.len();
                    if let Some(last) = rows.last() {
                        written.durable_end = Some(last.index + 1);
                    }
                }
                Operation::Vote(vote, _) => {
                    schema::put_meta(&transaction, "vote", &vote.encode_to_vec()).context(context)?;
                }
                Operation::TruncateFrom(end, _) => {
                    transaction.execute("DELETE FROM entry WHERE idx >= ?1", params![end]).context(context)?;
                    written.durable_end = written.durable_end.map(|durable| durable.min(*end));
                }
                Operation::Purge(upto) => {
                    schema::put_meta(&transaction, "purged", &upto.encode_to_vec()).context(context)?;
                    self.delete_before = self.delete_before.max(upto.index + 1);
                }
                Operation::Identity(identity, _) => {
                    let record = IdentityRecord::from(identity.clone());
                    schema::put_meta(&transaction, "identity", &record.encode_to_vec()).context(context)?;
                }
                Operation::Committed(_) | Operation::Stop => {}
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
            // An append after a purge beyond the end must not collide with rows that are still to be deleted: those
            // are all before the purge point, and appends all after it.
            let deleted = transaction
                .prepare_cached(
                    "DELETE FROM entry WHERE idx IN (SELECT idx FROM entry WHERE idx < ?1 ORDER BY idx LIMIT ?2)",
                )
                .and_then(|mut statement| statement.execute(params![self.delete_before, PURGE_ROWS_MAX]))
                .context(context)?;
            if (deleted as u64) < PURGE_ROWS_MAX {
                self.deleted_before = self.delete_before;
            }
        }
        transaction.commit().context(context)?;
        Ok(written)
    }

    fn fail(&self, group: Vec<Operation>, error: StorageError) {
        let error = Arc::new(error);
        if let Some(shared) = self.shared.upgrade() {
            shared.durable.fail(Arc::clone(&error));
        }
        let queued = std::iter::from_fn(|| self.queue.try_recv().ok());
        for operation in group.into_iter().chain(queued) {
            match operation {
                Operation::Append(_, done)
                | Operation::Vote(_, done)
                | Operation::TruncateFrom(_, done)
                | Operation::Identity(_, done) => done(Err(Arc::clone(&error))),
                Operation::Committed(_) | Operation::Purge(_) | Operation::Stop => {}
            }
        }
    }
}

struct Written {
    entries: usize,
    /// Entries before this index are durable; `None` when no entry was written.
    durable_end: Option<u64>,
}
