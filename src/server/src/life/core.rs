//! What all stages of a node's life share.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::{
    ServerError,
    config::{Config, Join},
    delivery::Hub,
    observe::{Counted, Ready},
    telemetry::metrics::Metrics,
    web,
};
use net::receive::Receiver;
use raft::{Node, peers::Credentials};
use trace::Tracer;

/// What all stages share.
pub(crate) struct Core {
    pub config: Config,
    pub metrics: Metrics,
    pub tracer: Tracer,
    pub stop: Stop,
    pub hub: Hub,
    pub ready: Ready,
    pub counted: Arc<Counted>,
    /// Set once the node runs.
    pub node: Arc<OnceLock<Node>>,
    /// Set once clients are served. Browsers are answered by the same services.
    pub services: web::Services,
    pub receiver: Arc<Receiver>,
}

impl Core {
    pub(super) fn credentials(&self, cluster: &str, node_id: u64) -> Result<Credentials, ServerError> {
        let Config { name, peer_advertise, .. } = &self.config;
        Credentials::new(cluster, node_id, name, peer_advertise).map_err(|_| ServerError::Credentials)
    }

    /// The names and peer addresses of the initial nodes.
    pub(super) fn initial_nodes(&self) -> Vec<(String, String)> {
        self.config.initial_nodes.iter().map(|node| (node.name.clone(), node.peer_address.clone())).collect()
    }

    /// Peer addresses of nodes that may be members of the cluster, without this node's own.
    pub(super) fn members_to_ask(&self) -> Vec<String> {
        let Config { initial_nodes, join, name, peer_advertise, .. } = &self.config;
        let initial = initial_nodes.iter().filter(|node| node.name != *name);
        let mut addresses: Vec<String> = initial.map(|node| node.peer_address.clone()).collect();
        if let Some(Join::Ask(more)) = join {
            addresses.extend(more.iter().filter(|address| *address != peer_advertise).cloned());
        }
        addresses
    }
}

/// The stop signal of the node.
pub(crate) struct Stop(pub(super) watch::Receiver<bool>);

impl Stop {
    pub(super) async fn asked(&self) {
        // The sender outlives all receivers.
        let _ = self.0.clone().wait_for(|asked| *asked).await;
    }

    /// The result of `work`; `None` if a stop was requested first.
    pub(super) async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.asked() => None,
        }
    }
}
