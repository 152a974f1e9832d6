//! The last stage, a planned stop, in order: report not ready, transfer leadership, end the streams, finish the calls,
//! stop Raft, close the log.
//!
//! Calls that wait for a leader, a majority or a revision end within about a second of the transfer, all others within
//! `CHAT_DRAIN_TIMEOUT_MS`.
//!
//! Does not cover: a node that has failed.

use std::time::Duration;

use futures_util::future::{self, OptionFuture};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{core::Core, parts::Servers};
use crate::files::{self, Files};
use raft::Node;

/// Time limit for the transfer of leadership at a stop.
const TRANSFER_MAX: Duration = Duration::from_secs(2);
/// Time limit for calls that wait for a leader, a majority or a revision, once leadership was transferred.
const WAITS_MAX: Duration = Duration::from_secs(1);
/// Time limit for closing the log at a stop.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// A node that no longer accepts work.
pub(super) struct Draining {
    pub core: Core,
    pub node: Node,
    pub servers: Servers,
    pub clients: JoinHandle<()>,
    pub admin: Option<JoinHandle<()>>,
    /// Dropped last.
    pub files: Files,
}

impl Draining {
    /// Ends everything, in the order of the module.
    pub(super) async fn drain(self) {
        let Self { files, core, node, servers, clients, admin } = self;
        let (config, (page, probes)) = (&core.config, servers.local.unzip());
        tracing::info!("Stopping: transferring leadership, then finishing calls");
        let deadline = Instant::now() + config.drain_timeout;
        let has_leader = node.transfer_before_stop(deadline.min(Instant::now() + TRANSFER_MAX)).await;
        let waiting = node.clone();
        tokio::spawn(async move { waiting.end_waits(if has_leader { WAITS_MAX } else { Duration::ZERO }).await });
        core.hub.stop();
        servers.close_clients.send_replace(true);
        // A panic has been reported already.
        let finished = future::join3(clients, OptionFuture::from(page), OptionFuture::from(admin));
        if timeout_at(deadline, finished).await.is_err() {
            tracing::warn!("Some calls did not finish in time and were cut off");
        }
        // The node may have been elected just before the stop was requested.
        node.transfer_before_stop(Instant::now() + TRANSFER_MAX).await;
        files::note_end(&config.data_dir);
        // Another process may have locked the log.
        if timeout(SHUTDOWN_MAX, node.shutdown()).await.is_err() {
            tracing::warn!("The log could not be closed in time; the next start recovers it");
        }
        servers.close_peers.send_replace(true);
        // The other nodes may keep their connections open indefinitely.
        let ended = future::join(servers.peers, OptionFuture::from(probes));
        let _ = timeout(Duration::from_millis(200), ended).await;
        // Nothing here uses the directory when it is unlocked.
        drop((node, core, servers.background));
        drop(files);
        tracing::info!("Stopped");
    }
}
