//! The planned stop of a node, in order: report not ready, transfer leadership, end the streams, finish the calls, stop
//! Raft, close the log.
//!
//! Calls that wait for a leader, a majority or a revision end within about a second of the transfer, all others within
//! `CHAT_DRAIN_TIMEOUT_MS`.
//!
//! Does not cover: a node that has failed.

use std::time::Duration;

use futures_util::future::{self, OptionFuture};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::files;
use crate::{config::Config, delivery::Hub, raft::Node};

/// Time limit for the transfer of leadership at a stop.
const TRANSFER_MAX: Duration = Duration::from_secs(2);
/// Time limit for calls that wait for a leader, a majority or a revision, once leadership was transferred.
const WAITS_MAX: Duration = Duration::from_secs(1);
/// Time limit for closing the log at a stop.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// Aborts a task, and waits until it has ended.
pub(super) async fn aborted(task: JoinHandle<()>) {
    task.abort();
    // Either a cancellation, or a panic that has been reported already.
    let _ = task.await;
}

/// The services of a node, all of which a drain ends.
pub(super) struct Serving {
    pub node: Node,
    pub hub: Hub,
    pub clients: JoinHandle<()>,
    pub page: Option<JoinHandle<()>>,
    pub close_clients: watch::Sender<bool>,
    pub admin: Option<JoinHandle<()>>,
    pub peers: JoinHandle<()>,
    pub close_peers: watch::Sender<bool>,
    pub probes: Option<JoinHandle<()>>,
}

impl Serving {
    /// Ends everything in order; see the module.
    pub(super) async fn drain(self, config: &Config) {
        tracing::info!("Stopping: transferring leadership, then finishing calls");
        let deadline = Instant::now() + config.drain_timeout;
        let has_leader = self.node.transfer_before_stop(deadline.min(Instant::now() + TRANSFER_MAX)).await;
        let node = self.node.clone();
        tokio::spawn(async move { node.end_waits(if has_leader { WAITS_MAX } else { Duration::ZERO }).await });
        self.hub.stop();
        self.close_clients.send_replace(true);
        // A panic has been reported already.
        let finished = future::join3(self.clients, OptionFuture::from(self.page), OptionFuture::from(self.admin));
        if timeout_at(deadline, finished).await.is_err() {
            tracing::warn!("Some calls did not finish in time and were cut off");
        }
        // The node may have been elected just before the stop was requested.
        self.node.transfer_before_stop(Instant::now() + TRANSFER_MAX).await;
        files::note_end(&config.data_dir);
        // Another process may have locked the log.
        if timeout(SHUTDOWN_MAX, self.node.shutdown()).await.is_err() {
            tracing::warn!("The log could not be closed in time; the next start recovers it");
        }
        self.close_peers.send_replace(true);
        // The other nodes may keep their connections open indefinitely.
        let ended = future::join(self.peers, OptionFuture::from(self.probes));
        let _ = timeout(Duration::from_millis(200), ended).await;
        tracing::info!("Stopped");
    }
}
