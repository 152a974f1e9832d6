//! openraft's state machine, on [`crate::storage::StateMachine`].
//!
//! Invariants: an entry is applied only after it is durable in this node's own log; a client is answered, and a
//! subscriber told, only after the transaction has committed.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    convert,
    snapshots::{SnapshotHandle, SnapshotStore},
    types::{LogId, Outcomes, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    chat::{Event, Revision, SessionId, TimeMs},
    storage::{Applied, AppliedEntry, AppliedPayload, Readers, StateMachine, StorageError},
};

/// Most entries in one transaction.
const ENTRIES_MAX: usize = 1024;
/// Payload bytes at which a transaction is closed.
const BYTES_MAX: usize = 8 << 20;

/// Who is told what was applied, after it is committed. Called from the one thread that applies: it must not block.
pub trait AppliedSink: Send + Sync + 'static {
    /// Changes were committed. `revision` and `clock` are those of the state afterwards.
    fn applied(&self, events: Vec<Arc<Event>>, closed_sessions: &[SessionId], revision: Revision, clock: TimeMs);
    /// The state was replaced by a snapshot: what happened in between is only in the database.
    fn replaced(&self, revision: Revision, clock: TimeMs);
    /// A transaction was committed, of so many entries.
    fn committed(&self, entries: usize, took: Duration);
}

/// Blocks until the entry at an index is durable in this node's log.
pub type WaitDurable = Arc<dyn Fn(u64) -> Result<(), StorageError> + Send + Sync>;

/// The adapter.
pub struct StateMachineAdapter {
    state: Arc<Mutex<StateMachine>>,
    wait_durable: WaitDurable,
    readers: Arc<Readers>,
    snapshots: Arc<SnapshotStore>,
    sink: Arc<dyn AppliedSink>,
    applied: watch::Sender<Option<LogId>>,
}

impl StateMachineAdapter {
    /// An adapter of `state`, which is not to get ahead of what `wait_durable` lets pass. What is applied is told to
    /// `sink` and `applied`.
    pub fn new(
        state: StateMachine,
        wait_durable: WaitDurable,
        readers: Arc<Readers>,
        snapshots: Arc<SnapshotStore>,
        sink: Arc<dyn AppliedSink>,
        applied: watch::Sender<Option<LogId>>,
    ) -> Self {
        applied.send_replace(state.applied().log_id.map(convert::log_id));
        Self { state: Arc::new(Mutex::new(state)), wait_durable, readers, snapshots, sink, applied }
    }

    /// Applies entries in one transaction, on a blocking thread.
    async fn apply_chunk(&self, chunk: Chunk) -> io::Result<()> {
        let Some(last) = chunk.entries.last().map(|entry| entry.log_id) else { return Ok(()) };
        let (state, wait_durable) = (Arc::clone(&self.state), Arc::clone(&self.wait_durable));
        let entries = chunk.entries.len();
        let (applied, took): (Applied, Duration) = blocking(move || {
            wait_durable(last.index).map_err(io::Error::other)?;
            let started = Instant::now();
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let applied = state.apply(chunk.entries).map_err(io::Error::other)?;
            Ok((applied, started.elapsed()))
        })
        .await?;
        self.sink.applied(applied.events, &applied.closed_sessions, applied.revision, applied.clock);
        self.sink.committed(entries, took);
        self.applied.send_replace(Some(convert::log_id(last)));
        for (responder, outcomes) in chunk.responders.into_iter().zip(applied.outcomes) {
            if let Some(responder) = responder {
                responder.send(Outcomes(outcomes));
            }
        }
        Ok(())
    }
}

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
                self.bytes += bytes.len();
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

impl RaftStateMachine<TypeConfig> for StateMachineAdapter {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = state.applied();
        let membership = convert::stored_membership(applied.membership.clone()).map_err(io::Error::other)?;
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
        Some(Builder { snapshots: Arc::clone(&self.snapshots) })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { snapshots: Arc::clone(&self.snapshots) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, handle: SnapshotHandle) -> Result<(), io::Error> {
        let (state, readers) = (Arc::clone(&self.state), Arc::clone(&self.readers));
        let path = handle.path.clone();
        let (revision, clock) = blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.install_snapshot(&path).map_err(io::Error::other)?;
            readers.reopen().map_err(io::Error::other)?;
            Ok((state.applied().revision, state.applied().clock))
        })
        .await?;
        self.snapshots.adopt(meta.clone(), handle);
        self.sink.replaced(revision, clock);
        self.applied.send_replace(meta.last_log_id);
        tracing::info!(revision = revision.0, "A snapshot was installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.current())
    }
}

/// Builds snapshots beside the state machine: it reads the database through a connection of its own.
pub struct Builder {
    snapshots: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let snapshots = Arc::clone(&self.snapshots);
        blocking(move || snapshots.build()).await
    }
}
