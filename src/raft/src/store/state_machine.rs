//! The state machine for openraft, on top of [`storage::StateMachine`].
//!
//! Invariants: an entry is applied only after it is durable in this node's own log. A client is answered, and
//! subscribers are notified, only after the entry is applied, so that a read after that includes it.
//!
//! Does not cover: what a command does to the state (`storage`), and comparing the states of the nodes (`audit`).

use std::{io, sync::Arc, time::Instant};

use futures_util::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use tokio::sync::{oneshot, watch};

use crate::{
    audit::Auditor,
    observer::Observer,
    store::snapshots::{self, Snapshot, SnapshotData},
    traced::Traced,
    transport::convert,
    types::{LogId, Outcomes, Payload, SnapshotMeta, StoredMembership, TypeConfig},
};
use storage::{
    Applied, AppliedEntry, AppliedPayload, Divergence, Done, FirstFailure, LogDb, MalformedCommand, Readers,
    SharedState, StorageError, codec,
};
use trace::blocking;

/// Most entries in one transaction.
const ENTRIES_MAX: usize = 1024;
/// Payload bytes at which a transaction is closed.
const BYTES_MAX: usize = 8 << 20;
/// Most payload bytes that are applied without a thread of their own: a few dozen messages, well below a millisecond.
const BYTES_HERE_MAX: usize = 8 << 10;

/// openraft with this state machine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachineAdapter>;

/// Reports how far this node's log is durable.
pub trait Durability: Send + Sync + 'static {
    /// Whether the entry at an index is durable.
    ///
    /// # Errors
    /// The log can no longer be written.
    fn is_durable(&self, index: u64) -> Result<bool, StorageError>;
    /// Calls `done` when the entry at an index is durable, or when it is certain that it never will be.
    fn when_durable(&self, index: u64, done: Done);
}

impl Durability for LogDb {
    fn is_durable(&self, index: u64) -> Result<bool, StorageError> {
        self.is_durable(index)
    }

    fn when_durable(&self, index: u64, done: Done) {
        self.when_durable(index, done);
    }
}

/// The adapter between openraft and the state. Applied entries go to `auditor`, then to `traced`, `sink` and `applied`.
pub struct StateMachineAdapter {
    pub(crate) state: SharedState,
    /// The state never gets ahead of it.
    pub(crate) durability: Arc<dyn Durability>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) sink: Arc<dyn Observer>,
    pub(crate) auditor: Arc<Auditor>,
    pub(crate) applied: watch::Sender<Option<LogId>>,
    pub(crate) failure: FirstFailure,
    pub(crate) traced: Arc<Traced>,
}

impl StateMachineAdapter {
    /// Applies entries and notifies the observers.
    async fn apply_chunk(&self, chunk: Chunk) -> io::Result<()> {
        let (Some(first), Some(last)) = (chunk.entries.first(), chunk.entries.last()) else { return Ok(()) };
        let (first, last, entries) = (first.log_id.index, last.log_id, chunk.entries.len());
        let attempt = self.apply_here(last.index, chunk.bytes, chunk.entries).map_err(io::Error::other);
        let result = match attempt {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(entries)) => self.apply_aside(last.index, entries).await,
            Err(error) => Err(error),
        };
        let (applied, began, ended) = result.inspect_err(|error| self.failure.note_io("chat.db: ", error))?;
        if applied.malformed > 0 {
            self.report_malformed(&applied);
        }
        if let Some(divergence) = self.auditor.applied(&applied) {
            return Err(self.mark_diverged(divergence).await);
        }
        // Recorded before the subscribers are notified, since the work for them comes afterwards.
        self.traced.applied((first, last.index), (began, ended));
        self.sink.applied(applied.events, &applied.closed_sessions, applied.revision, applied.clock);
        self.sink.measured(entries, ended.saturating_duration_since(began));
        self.applied.send_replace(Some(convert::log_id(last)));
        for (responder, outcomes) in chunk.responders.into_iter().zip(applied.outcomes) {
            if let Some(responder) = responder {
                responder.send(Outcomes(outcomes));
            }
        }
        Ok(())
    }

    fn report_malformed(&self, applied: &Applied) {
        self.sink.malformed(applied.malformed);
        for MalformedCommand { index, position, problem } in &applied.malformed_shown {
            tracing::error!(
                index,
                position,
                problem,
                "Rejected a malformed command in the log. The member that appended it cannot be trusted"
            );
        }
    }

    /// Marks this node's state as wrong, so that it is not used any more. The returned error ends Raft on this node.
    async fn mark_diverged(&self, divergence: Divergence) -> io::Error {
        let Divergence { mark, revision, own, theirs, .. } = divergence;
        tracing::error!(
            mark, %revision, digest = %own, majority = %theirs,
            "This node's state differs from that of a majority; stopping"
        );
        let state = self.state.clone();
        blocking::run(move || state.mark_diverged(&divergence)).await.map_or_else(|error| error, io::Error::other)
    }

    /// Applies a small chunk at once, since a detour through another thread would take longer. Returns the entries if
    /// they are too many, or if applying them would have to wait.
    fn apply_here(&self, last: u64, bytes: usize, entries: Vec<AppliedEntry>) -> Result<Attempt, StorageError> {
        if bytes > BYTES_HERE_MAX || !self.durability.is_durable(last)? {
            return Ok(Err(entries));
        }
        let started = Instant::now();
        Ok(match self.state.try_apply(entries) {
            Ok(applied) => Ok((applied?, started, Instant::now())),
            Err(entries) => Err(entries),
        })
    }

    /// Applies entries on a blocking thread, once they are durable.
    async fn apply_aside(&self, last: u64, entries: Vec<AppliedEntry>) -> io::Result<(Applied, Instant, Instant)> {
        let (done, durable) = oneshot::channel();
        self.durability.when_durable(
            last,
            Box::new(move |result| {
                // The receiver is gone if Raft has stopped.
                let _ = done.send(result);
            }),
        );
        let stopped = |_| StorageError::Stopped("the log writer was closed".into());
        durable
            .await
            .map_err(stopped)
            .and_then(|result| result.map_err(StorageError::Failed))
            .map_err(io::Error::other)?;
        let state = self.state.clone();
        blocking::io(move || {
            let started = Instant::now();
            let applied = state.apply(entries).map_err(io::Error::other)?;
            Ok((applied, started, Instant::now()))
        })
        .await
    }
}

/// The applied changes with start and end of applying them, or the entries that were not applied.
type Attempt = Result<(Applied, Instant, Instant), Vec<AppliedEntry>>;

type Responder = openraft::storage::ApplyResponder<TypeConfig>;

#[derive(Default)]
struct Chunk {
    entries: Vec<AppliedEntry>,
    responders: Vec<Option<Responder>>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, (entry, responder): EntryResponder<TypeConfig>) {
        let payload = match entry.payload {
            EntryPayload::Blank => AppliedPayload::Blank,
            EntryPayload::Normal(Payload(bytes)) => {
                // An erasure is more work than its size shows, so it always goes to another thread.
                self.bytes += match bytes.len() <= BYTES_HERE_MAX && codec::may_erase(&bytes) {
                    true => BYTES_HERE_MAX + 1,
                    false => bytes.len(),
                };
                AppliedPayload::Batch(bytes)
            }
            EntryPayload::Membership(membership) => AppliedPayload::Membership(convert::membership_pb(&membership)),
        };
        self.entries.push(AppliedEntry { log_id: convert::log_id_pb(&entry.log_id), payload });
        self.responders.push(responder);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= ENTRIES_MAX || self.bytes >= BYTES_MAX
    }
}

impl RaftStateMachine<TypeConfig> for StateMachineAdapter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.state.applied().map_err(io::Error::other)?;
        let membership = convert::stored_membership(applied.membership).map_err(io::Error::other)?;
        Ok((applied.log_id.map(convert::log_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunk = Chunk::default();
        while let Some(next) = entries.next().await {
            chunk.push(next?);
            if chunk.is_full() {
                self.apply_chunk(std::mem::take(&mut chunk)).await?;
            }
        }
        self.apply_chunk(chunk).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), sink: Arc::clone(&self.sink), failure: self.failure.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (state, readers) = (self.state.clone(), Arc::clone(&self.readers));
        let applied = blocking::io(move || {
            let received = snapshot.receive().map_err(io::Error::other)?;
            let applied = state.install_snapshot(received).map_err(io::Error::other)?;
            readers.reopen().map_err(io::Error::other)?;
            Ok(applied)
        })
        .await
        .inspect_err(|error| self.failure.note_io("installing a snapshot: ", error))?;
        let (revision, clock) = (applied.revision, applied.clock);
        self.auditor.replaced(&applied);
        self.sink.replaced(revision, clock);
        self.applied.send_replace(meta.last_log_id);
        tracing::info!(revision = revision.0, "Installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.state.applied().map_err(io::Error::other)?.log_id.is_none() {
            return Ok(None);
        }
        // openraft cuts the log behind whatever it takes for a snapshot. At a start that is the state with the entries
        // that were just applied again.
        let state = self.state.clone();
        blocking::io(move || flushed(state)).await.map(Some)
    }
}

/// Flushes the state, after which it is a snapshot of itself.
fn flushed(state: SharedState) -> io::Result<Snapshot> {
    let applied = state.flush().map_err(io::Error::other)?;
    snapshots::own(state, applied)
}

/// Makes a snapshot of the state.
pub struct Builder {
    state: SharedState,
    sink: Arc<dyn Observer>,
    failure: FirstFailure,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let state = self.state.clone();
        let began = Instant::now();
        let built = blocking::io(move || flushed(state))
            .await
            .inspect_err(|error| self.failure.note_io("building a snapshot: ", error))?;
        self.sink.snapshot_built(began.elapsed());
        Ok(built)
    }
}
