//! The fourth stage: Raft runs, and clients are served.

use std::path::Path;

use tokio::{sync::watch, task::JoinHandle};

use super::{
    core::Core,
    draining::Draining,
    parts::{Links, Servers},
};
use crate::{
    ServerError,
    files::{self, Files},
    web::Readiness,
};
use raft::Node;
use storage::FirstFailure;

/// A node that serves.
pub(super) struct Running {
    pub core: Core,
    pub node: Node,
    pub node_id: u64,
    pub servers: Servers,
    pub links: Links,
    pub clients: JoinHandle<()>,
    pub admin: Option<JoinHandle<()>>,
    /// Updates metrics and readiness.
    pub observer: JoinHandle<()>,
    /// Dropped last.
    pub files: Files,
}

impl Running {
    /// Waits until a stop is requested. Returns an error if the node must not go on.
    pub(super) async fn until_stopped(self) -> Result<Draining, ServerError> {
        // In this order, so that an error drops the files last.
        let Self { files, core, node, node_id, servers, links, clients, admin, observer } = self;
        let to_ask = core.members_to_ask();
        let is_unprotected = !links.is_protected && !links.is_trusting;
        let failure = tokio::select! {
            () = core.stop.asked() => None,
            reason = node.failed() => Some(reason),
            reason = state_failed(files.state_failed.clone(), &files.failure) => Some(reason),
            error = stray(&core, &links) => return Err(error),
            () = node.has_fellows(), if is_unprotected => return Err(ServerError::Unprotected),
            () = node.removed(&to_ask) => return Err(ServerError::Removed { name: core.config.name, node_id }),
        };
        aborted(observer).await;
        core.ready.set(Readiness::NotReady("stopping".into()));
        match failure {
            Some(reason) => Err(failed(&core.config.data_dir, &files.failure, reason)),
            None => Ok(Draining { core, files, node, servers, clients, admin }),
        }
    }
}

/// Aborts a task, and waits until it has ended.
async fn aborted(task: JoinHandle<()>) {
    task.abort();
    // Either a cancellation, or a panic that has been reported already.
    let _ = task.await;
}

/// The final error after a failure. Damage is recorded for the next start.
fn failed(dir: &Path, first: &FirstFailure, reason: String) -> ServerError {
    files::note_damage(dir, first);
    files::note_end(dir);
    if first.get().is_some_and(|failure| failure.full) {
        return ServerError::Full { path: dir.to_owned(), reason };
    }
    ServerError::Raft(raft::StartError::Fatal(reason))
}

/// Returns the reason when the state can no longer be written.
async fn state_failed(mut failed: watch::Receiver<bool>, failure: &FirstFailure) -> String {
    match failed.wait_for(|failed| *failed).await {
        Ok(_) => failure.get().map(|failure| failure.reason.clone()).unwrap_or_default(),
        // Not before the state is dropped, which outlives this.
        Err(_) => std::future::pending().await,
    }
}

/// Returns when the data directory turns out to belong to another cluster than the other nodes.
async fn stray(core: &Core, links: &Links) -> ServerError {
    match links.bootstrap.other_cluster(&links.peers, &core.initial_nodes()).await {
        Some((own, theirs)) => ServerError::OtherCluster { path: core.config.data_dir.clone(), own, theirs },
        None => std::future::pending().await,
    }
}
