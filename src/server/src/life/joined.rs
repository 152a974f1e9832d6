//! The third stage: the node has an identity in its cluster.

use std::sync::Arc;

use super::{
    core::Core,
    parts::{Links, Membership, Servers},
    running::Running,
};
use crate::{
    Host, ServerError,
    api::{ApiParts, ApiSettings, AttemptRates, ChatApi},
    config::Config,
    files::{self, Files},
    observe::{self, Fanout},
    serving,
};
use raft::Node;
use storage::Readers;

/// A node that belongs to a cluster, and whose Raft does not run yet.
pub(super) struct Joined<H: Host> {
    pub host: H,
    pub core: Core,
    pub client_port: H::Listener,
    /// The connection limit for clients, and for browsers.
    pub connections: usize,
    pub servers: Servers,
    pub links: Links,
    pub membership: Membership,
    /// Dropped last.
    pub files: Files,
}

impl<H: Host> Joined<H> {
    /// Starts Raft, and serves clients.
    pub(super) async fn run(self) -> Result<Running, ServerError> {
        // In this order, so that an error drops the files last.
        let Self { files, host, core, client_port, connections, servers, links, membership } = self;
        let (readers, node_id) = (Arc::clone(&files.readers), membership.identity.node_id);
        let node = start_raft(&core, &files, &links, membership).await?;
        host.started(&node);
        tracing::info!("Server started with {} peers", core.config.initial_nodes.len().saturating_sub(1));
        let api = chat_api(&core, &node, readers);
        let closed = servers.clients_closed.clone();
        let clients = serving::clients(&core, client_port, connections, &api, closed.clone()).await?;
        let admin = match servers.local {
            Some(_) => Some(serving::admin(&core.config.data_dir, &api, closed)?),
            None => None,
        };
        // It makes the node ready, so everything has to be listened on by now.
        let observing = observe::follow(
            node.clone(),
            core.hub.clone(),
            core.ready.clone(),
            core.metrics.clone(),
            core.tracer.clone(),
        );
        let observer = tokio::spawn(observing);
        Ok(Running { core, files, node, node_id, servers, links, clients, admin, observer })
    }
}

async fn start_raft(core: &Core, files: &Files, links: &Links, membership: Membership) -> Result<Node, ServerError> {
    let credentials = core.credentials(&membership.identity.cluster_id, membership.identity.node_id)?;
    let parts = raft::Parts {
        bootstrap: links.bootstrap.clone(),
        identity: membership.identity,
        settings: raft_settings(&core.config),
        log: files.log.clone(),
        state: files.state.clone(),
        readers: Arc::clone(&files.readers),
        data_dir: core.config.data_dir.clone(),
        sink: Arc::new(Fanout { hub: core.hub.clone(), metrics: core.metrics.clone() }),
        peers: Arc::clone(&links.peers),
        credentials,
        seed_addresses: core.members_to_ask(),
        failure: files.failure.clone(),
        tracer: core.tracer.clone(),
    };
    let started = raft::start(parts).await;
    let node = started.inspect_err(|_| files::note_damage(&core.config.data_dir, &files.failure))?;
    links.peer_service.run(node.clone());
    if let Some(founders) = membership.founders {
        node.initialize(founders).await?;
    }
    // The only place that sets the cell.
    let _ = core.node.set(node.clone());
    Ok(node)
}

fn raft_settings(config: &Config) -> raft::Settings {
    let initial = config.initial_nodes.iter().map(|node| node.name.clone());
    raft::Settings {
        heartbeat: config.heartbeat,
        election_min: config.election_min,
        election_max: config.election_max,
        snapshot_log_bytes: config.snapshot_log_bytes,
        expected_nodes: initial.chain(config.expected_nodes.iter().cloned()).collect(),
        digest_interval: config.digest_interval,
        log_kept: raft::LogKept { entries: config.log_entries_kept, bytes: config.log_bytes_kept },
        erase_after: config.erase_after,
        rates: raft::Rates {
            messages: config.account_messages_per_s,
            bytes: config.account_bytes_per_s,
            changes: config.account_changes_per_s,
        },
        quota: (config.account_messages_max, config.account_bytes_max),
        space_reserve_bytes: config.space_reserve_bytes,
    }
}

fn chat_api(core: &Core, node: &Node, readers: Arc<Readers>) -> ChatApi {
    let config = &core.config;
    let settings = ApiSettings {
        reflection: config.reflection,
        session_idle: config.session_idle,
        attempts_per_hour: AttemptRates {
            logins_per_address: config.login_attempts_per_address,
            registrations_per_address: config.registrations_per_address,
            registrations: config.registrations_per_hour,
        },
        ..ApiSettings::new(config.name.clone(), config.session_lifetime, config.hash_parallelism, config.election_max)
    };
    ChatApi::new(ApiParts {
        node: node.clone(),
        readers,
        hub: core.hub.clone(),
        settings,
        observer: core.counted.clone(),
        tracer: core.tracer.clone(),
        receiver: Arc::clone(&core.receiver),
    })
}
