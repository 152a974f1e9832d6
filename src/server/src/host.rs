//! The environment of a node: its listeners, its connections to other nodes, its background work, and its stop signal.
//!
//! [`Machine`] is a process on a real machine. The simulation implements another one, on a simulated network and clock.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{ServerError, ports};
use crate::config::Config;
use net::{Dialer, Listener};
use raft::Node;
use storage::Background;
use trace::Tracer;

/// The environment that a node needs.
pub trait Host: Send + Sync {
    /// The type of its listeners.
    type Listener: Listener;

    /// Listens on an address.
    ///
    /// # Errors
    /// The address cannot be bound.
    fn listen(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// The ports for browsers and probes; `None` where they are not needed. Then there is no admin socket either.
    ///
    /// # Errors
    /// One of them cannot be bound.
    fn local_ports(&self, config: &Config) -> impl Future<Output = Result<Option<LocalPorts>, ServerError>> + Send;

    /// The dialer for connections to other nodes.
    fn dialer(&self) -> Dialer;

    /// The executor of background work on the files.
    fn background(&self) -> Arc<dyn Background>;

    /// True when the node has to stop. Its sender outlives the node.
    fn stop(&self) -> watch::Receiver<bool>;

    /// Records the processing of messages.
    fn tracer(&self) -> Tracer {
        Tracer::off()
    }

    /// Called when the node has become a member of its cluster.
    fn started(&self, node: &Node);
}

/// The ports for browsers, and for probes and metrics.
pub struct LocalPorts {
    pub(super) web: TcpListener,
    pub(super) metrics: TcpListener,
}

/// A process on a real machine.
pub(super) struct Machine {
    pub stop: watch::Receiver<bool>,
    pub background: Arc<dyn Background>,
    pub tracer: Tracer,
}

impl Host for Machine {
    type Listener = TcpListener;

    async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        ports::listen(address).await
    }

    async fn local_ports(&self, config: &Config) -> Result<Option<LocalPorts>, ServerError> {
        let bind = async |key, address| {
            ports::listen(address).await.map_err(|source| ServerError::Listen { key, address, source })
        };
        let (web, metrics) = tokio::try_join!(
            bind("CHAT_WEB_LISTEN", config.web_listen),
            bind("CHAT_METRICS_LISTEN", config.metrics_listen),
        )?;
        Ok(Some(LocalPorts { web, metrics }))
    }

    fn dialer(&self) -> Dialer {
        Dialer::default()
    }

    fn background(&self) -> Arc<dyn Background> {
        Arc::clone(&self.background)
    }

    fn stop(&self) -> watch::Receiver<bool> {
        self.stop.clone()
    }

    fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    fn started(&self, _node: &Node) {}
}

/// True after SIGTERM, SIGINT, or SIGHUP (a closed terminal). SIGHUP reloads nothing, because certificates and secrets
/// are reloaded automatically.
pub(super) fn listen_for_signals() -> Result<watch::Receiver<bool>, ServerError> {
    let failed = |error: io::Error| ServerError::Task(format!("signals: {error}"));
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
        sender.send_replace(true);
        // Kept alive, so that the receivers see the value and not the end of the channel.
        sender.closed().await;
    });
    Ok(receiver)
}
