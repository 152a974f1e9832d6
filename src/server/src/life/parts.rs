//! The parts that the stages hand on.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use raft::{NodeRecord, PeerService, bootstrap::Bootstrap, peers::Peers};
use storage::Identity;

/// The servers that run before the node belongs to a cluster, and what ends them.
pub(super) struct Servers {
    pub peers: JoinHandle<()>,
    pub close_peers: watch::Sender<bool>,
    /// Browsers, and probes with metrics.
    pub local: Option<(JoinHandle<()>, JoinHandle<()>)>,
    pub close_clients: watch::Sender<bool>,
    pub clients_closed: watch::Receiver<bool>,
    /// Tasks that end when this is dropped.
    pub background: JoinSet<()>,
}

/// What connects the node to the others.
pub(super) struct Links {
    pub bootstrap: Bootstrap,
    pub peer_service: PeerService,
    pub peers: Arc<Peers>,
    /// Whether the peer port is protected.
    pub is_protected: bool,
    /// Whether the configuration trusts every host.
    pub is_trusting: bool,
}

/// The identity of a node in its cluster.
pub(super) struct Membership {
    pub identity: Identity,
    /// The members to initialize Raft with. Set only on the node that bootstraps the cluster.
    pub founders: Option<BTreeMap<u64, NodeRecord>>,
}
