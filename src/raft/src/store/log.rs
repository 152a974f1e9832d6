//! The log storage for openraft, on top of [`storage::LogDb`].
//!
//! Does not cover: the writer of the log and its fsyncs (`storage`).

use std::{fmt::Debug, io, ops::Bound, ops::RangeBounds, sync::Arc};

use openraft::{
    OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

use crate::{
    traced::Traced,
    transport::convert,
    types::{Entry, LogId, TypeConfig, Vote},
};
use storage::{Done, FirstFailure, LogDb, StorageError};

/// Most bytes of entries in one replication message. Below the peers' message limit by more than one entry can add.
const REPLICATION_BYTES_MAX: usize = 4 << 20;
/// Most bytes of entries read at once otherwise.
const READ_BYTES_MAX: usize = 64 << 20;

/// The adapter, which has no state of its own.
#[derive(Clone)]
pub struct LogStore {
    log: LogDb,
    failure: FirstFailure,
    traced: Arc<Traced>,
}

impl LogStore {
    /// An adapter of `log`. Failures are noted in `failure`, and `traced` records the appended entries.
    pub(crate) fn new(log: LogDb, failure: FirstFailure, traced: Arc<Traced>) -> Self {
        Self { log, failure, traced }
    }

    fn failed(&self, error: StorageError) -> io::Error {
        self.failure.note("", &error);
        io::Error::other(error)
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = self.log.read(start..end, max_bytes).map_err(|error| self.failed(error))?;
        entries.into_iter().map(|entry| convert::entry(entry).map_err(io::Error::other)).collect()
    }

    async fn durably(&self, write: impl FnOnce(&LogDb, Done) -> Result<(), StorageError>) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // The receiver is gone if Raft has stopped.
            let _ = sender.send(result);
        });
        write(&self.log, done).map_err(|error| self.failed(error))?;
        match receiver.await {
            Ok(result) => result.map_err(|error| self.failed(StorageError::Failed(error))),
            Err(_) => Err(io::Error::other("the log writer stopped")),
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let mut entries = Vec::new();
        loop {
            let part = self.read(start, end, READ_BYTES_MAX)?;
            let Some(last) = part.last() else { return Ok(entries) };
            start = last.log_id.index + 1;
            entries.extend(part);
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.vote().map(convert::vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, REPLICATION_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let (purged, last) = self.log.bounds();
        Ok(LogState { last_purged_log_id: purged.map(convert::log_id), last_log_id: last.map(convert::log_id) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.durably(|log, done| log.save_vote(convert::vote_pb(vote), done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        match committed {
            Some(id) => {
                self.traced.committed(id.index);
                self.log.save_committed(convert::log_id_pb(&id)).map_err(|error| self.failed(error))
            }
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(convert::log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(|entry| convert::entry_pb(&entry)).collect();
        let traces = self.traced.appended(&entries);
        let store = self.clone();
        let done: Done = Box::new(move |result| {
            callback.io_completed(result.map_err(|error| store.failed(StorageError::Failed(error))));
        });
        self.log.append_traced(entries, traces, done).map_err(|error| self.failed(error))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.traced.truncated_from(last.map_or(0, |id| id.index + 1));
        self.durably(|log, done| log.truncate_after(last.map(|id| id.index), done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge(convert::log_id_pb(&upto)).map_err(|error| self.failed(error))
    }
}
