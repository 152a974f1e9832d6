//! Where a node runs: what it listens on, how it reaches the others, what works for it in the background, who stops it.
//!
//! [`Machine`] is a process on a real machine. The simulation has another one, on simulated network and time.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{ServerError, ports};
use crate::{
    config::Config,
    net::{Dialer, Listener},
    raft::Node,
    storage::Background,
    trace::Tracer,
};

/// What a node needs of the place where it runs.
pub trait Host: Send + Sync {
    /// Takes connections.
    type Listener: Listener;

    /// Listens on an address.
    ///
    /// # Errors
    /// It cannot be listened on.
    fn listen(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// The ports for those beside the node; `None` where there is nobody, and then there is no admin socket either.
    ///
    /// # Errors
    /// One cannot be listened on.
    fn local_ports(&self, config: &Config) -> impl Future<Output = Result<Option<LocalPorts>, ServerError>> + Send;

    /// Connects to other nodes.
    fn dialer(&self) -> Dialer;

    /// Runs what the files need beside their callers.
    fn background(&self) -> Arc<dyn Background>;

    /// Turns true when the node is to stop. Its sender outlives the node.
    fn stop(&self) -> watch::Receiver<bool>;

    /// Records what is done for messages.
    fn tracer(&self) -> Tracer {
        Tracer::off()
    }

    /// The node takes part in its cluster.
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
        Ok(Some(LocalPorts {
            web: bind("CHAT_WEB_LISTEN", config.web_listen).await?,
            metrics: bind("CHAT_METRICS_LISTEN", config.metrics_listen).await?,
        }))
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

/// Turns true with SIGTERM, SIGINT, or SIGHUP (a terminal that was closed). The latter has nothing to load again:
/// certificates and secrets are looked at by themselves.
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
        // Kept, so that the receivers see the value and not the end of the channel.
        sender.closed().await;
    });
    Ok(receiver)
}
