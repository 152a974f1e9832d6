//! The beginning and the end of a node: bootstrap, snapshots on request, the stop, failures.
//!
//! Does not cover: assembling a node (`start`), and the waits that end with a stop (`node::waits`).

use std::{collections::BTreeMap, path::Path};

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use super::Node;
use crate::{
    error::{ReadError, StartError},
    types::NodeRecord,
};
use storage::{LogDb, SharedState};
use trace::blocking;

impl Node {
    /// Bootstraps a cluster of `members` from this node. Does nothing if the node was initialized before.
    ///
    /// # Errors
    /// Raft rejected the members, or has stopped.
    pub async fn initialize(&self, members: BTreeMap<u64, NodeRecord>) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        if raft.is_initialized().await.map_err(|fatal| StartError::Fatal(fatal.to_string()))? {
            return Ok(());
        }
        raft.initialize(members).await.map_err(|error| StartError::Fatal(error.to_string()))
    }

    /// The log and the state of this node, for tests that check the node from inside its process.
    pub fn files(&self) -> (&LogDb, &SharedState) {
        (&self.inner.disk.log, &self.inner.disk.state)
    }

    /// The directory of this node's files.
    pub(crate) fn data_dir(&self) -> &Path {
        self.inner.disk.state.directory()
    }

    /// Builds a snapshot on this node and waits for it. Returns the index of the last entry in it.
    ///
    /// # Errors
    /// The deadline passed, or the node is stopping.
    pub async fn snapshot(&self, deadline: Instant) -> Result<u64, ReadError> {
        let wanted = self.inner.applied.borrow().map_or(0, |id| id.index);
        self.inner.raft.trigger().snapshot().await.map_err(|_| ReadError::Stopped)?;
        let limit = deadline.saturating_duration_since(Instant::now());
        let wait = self.inner.raft.wait(Some(limit));
        match wait.metrics(|metrics| metrics.snapshot.is_some_and(|id| id.index >= wanted), "snapshot").await {
            Ok(metrics) => Ok(metrics.snapshot.map_or(0, |id| id.index)),
            Err(_) => Err(ReadError::Deadline),
        }
    }

    /// Stops Raft, then flushes the rest of the log. Proposals in flight end with an unknown outcome.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "Raft did not stop cleanly");
        }
        let log = self.inner.disk.log.clone();
        if let Err(error) = blocking::run(move || log.close()).await {
            tracing::error!(%error, "The log was not closed cleanly");
        }
    }

    /// Waits until Raft stops by itself, which is always a failure, and returns the reason.
    pub async fn failed(&self) -> String {
        // The server metrics change least often of all openraft metrics, so that waiting for them does not cost a
        // wake-up per write. Their sender is dropped when the core has stopped.
        let mut alive = self.inner.raft.server_metrics();
        while alive.changed().await.is_ok() {}
        if let Some(failure) = self.inner.failure.get() {
            return failure.reason.clone();
        }
        match &self.inner.raft.metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "Raft stopped".into(),
        }
    }

    /// Record of the first failure of this node's files.
    #[cfg(test)]
    pub(crate) fn failure(&self) -> &storage::FirstFailure {
        &self.inner.failure
    }
}
