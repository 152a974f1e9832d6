//! The second stage: the ports are bound. The other nodes, browsers and probes are served.

use std::sync::Arc;

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::{
    core::Core,
    joined::Joined,
    parts::{Links, Membership, Servers},
};
use crate::{
    Host, LocalPorts, ServerError,
    config::{Config, Join, JoinToken},
    files::{self, Files},
    incoming::{self, GatedPort},
    observe, protection,
    scrub::Scrub,
    serving,
};
use net::{
    Listener,
    tls::{self, Tls},
};
use raft::{
    PeerService,
    bootstrap::{Advertised, Bootstrap},
    peers::Peers,
};
use storage::{LogDb, StorageError};

/// The ports of a node. All are bound before anything is started, so that an occupied port prevents the start.
struct Ports<L> {
    client: L,
    peer: L,
    local: Option<LocalPorts>,
}

impl<L: Listener> Ports<L> {
    async fn bind<H: Host<Listener = L>>(host: &H, config: &Config) -> Result<Self, ServerError> {
        let failed = |key, address| move |source| ServerError::Listen { key, address, source };
        let (client, peer) = (config.listen, config.peer_listen);
        // Concurrently, as each may have to wait.
        let (client, peer, local) = tokio::try_join!(
            async { host.listen(client).await.map_err(failed("CHAT_LISTEN", client)) },
            async { host.listen(peer).await.map_err(failed("CHAT_PEER_LISTEN", peer)) },
            host.local_ports(config),
        )?;
        Ok(Self { client, peer, local })
    }
}

/// A node that others can reach, and that may not belong to a cluster yet.
pub(super) struct Bound<H: Host> {
    host: H,
    core: Core,
    client_port: H::Listener,
    /// The connection limit for clients, and for browsers.
    connections: usize,
    servers: Servers,
    links: Links,
    /// Dropped last.
    files: Files,
}

impl<H: Host> Bound<H> {
    pub(super) async fn bind(host: H, core: Core, files: Files, files_max: usize) -> Result<Option<Self>, ServerError> {
        let binding = core.stop.or(Ports::bind(&host, &core.config)).await;
        let Some(ports) = binding.transpose()? else { return Ok(None) };
        let connections = incoming::connections(files_max);
        let tls = protection::peer_tls(&core.config).await?;
        let links = links(&host, &core, &files, tls.as_ref())?;
        let service = links.peer_service.clone();
        let servers = serve(&core, &files, (ports.peer, tls), service, (ports.local, connections));
        Ok(Some(Self { host, core, files, client_port: ports.client, connections, servers, links }))
    }

    /// Waits until the node belongs to a cluster. `None`: a stop was requested first.
    pub(super) async fn join(self) -> Result<Option<Joined<H>>, ServerError> {
        tracing::info!("Waiting for the cluster: {}", awaited(&self.core.config));
        let membership = tokio::select! {
            membership = belong(&self.core, &self.links) => membership?,
            error = log_failed(&self.files.log) => return Err(ServerError::Storage(error)),
            () = self.core.stop.asked() => {
                tracing::info!("Stopped before this node belonged to a cluster");
                return Ok(None);
            }
        };
        let Self { host, core, files, client_port, connections, servers, links } = self;
        Ok(Some(Joined { host, core, files, client_port, connections, servers, links, membership }))
    }
}

fn links<H: Host>(host: &H, core: &Core, files: &Files, tls: Option<&Arc<Tls>>) -> Result<Links, ServerError> {
    let config = &core.config;
    let is_trusting = protection::check(config, tls.is_some(), &core.metrics)?;
    let bootstrap = Bootstrap::new(files.log.clone(), advertised(config), core.credentials("", 0)?)
        .after_loss(files.lost)
        .with_token(config.join_token.as_ref().map(JoinToken::expose));
    let peers = Arc::new(Peers::new(protection::dialer(tls, || host.dialer())?));
    let peer_service = PeerService::new(bootstrap.clone());
    Ok(Links { bootstrap, peer_service, peers, is_protected: tls.is_some(), is_trusting })
}

fn serve(
    core: &Core,
    files: &Files,
    (peer_port, tls): (impl Listener, Option<Arc<Tls>>),
    service: PeerService,
    (local, connections): (Option<LocalPorts>, usize),
) -> Servers {
    let background = spawn_background(core, files, tls.as_ref());
    let (close_peers, peers_closed) = watch::channel(false);
    let gate = GatedPort::Peers.gate(&core.metrics);
    let peers = serving::peers(tls, peer_port, gate, service, peers_closed.clone());
    let (close_clients, clients_closed) = watch::channel(false);
    let local = local.map(|local| {
        let stops = (clients_closed.clone(), peers_closed);
        serving::browsers_and_probes(core, local, connections, stops)
    });
    Servers { peers, close_peers, local, close_clients, clients_closed, background }
}

/// The background tasks of the node, until the set is dropped: reload certificates, watch the files.
fn spawn_background(core: &Core, files: &Files, peer_tls: Option<&Arc<Tls>>) -> JoinSet<()> {
    let (config, metrics) = (&core.config, &core.metrics);
    let mut tasks = JoinSet::new();
    tasks.spawn(observe::follow_files(config.data_dir.clone(), metrics.clone()));
    tasks.spawn(files::forget_aside(config.data_dir.clone(), config.erase_after));
    let scrub = Scrub {
        data_dir: config.data_dir.clone(),
        state: files.state.clone(),
        failure: files.failure.clone(),
        interval: config.scrub_interval,
        metrics: metrics.clone(),
    };
    tasks.spawn(scrub.run());
    let peers = if config.peer_tls.is_some() { "peers (CHAT_PEER_TLS_CERT)" } else { "peers (CHAT_PEER_SECRET_FILE)" };
    let ports = [("clients", "clients (CHAT_TLS_CERT)", config.tls.as_ref()), ("peers", peers, peer_tls)];
    for (port, what, tls) in ports {
        let Some(tls) = tls else { continue };
        tasks.spawn(tls::follow(Arc::clone(tls), what));
        tasks.spawn(observe::follow_certificates(Arc::clone(tls), port, metrics.clone()));
    }
    tasks
}

fn advertised(config: &Config) -> Advertised {
    Advertised {
        name: config.name.clone(),
        peer_address: config.peer_advertise.clone(),
        client_address: config.advertise.clone(),
        web_address: config.web_advertise.clone(),
    }
}

/// What a node without a cluster waits for, as text.
fn awaited(config: &Config) -> String {
    match &config.join {
        Some(Join::Ask(members)) => format!("it asks {}", members.join(", ")),
        Some(Join::Invitation) => "an operator has to add this node".to_owned(),
        None if config.initial_nodes.len() < 2 => "this node is the only one".to_owned(),
        None => format!("{} initial nodes", config.initial_nodes.len()),
    }
}

/// Waits until this node has an identity. The first of the initial nodes assigns the identities of all.
async fn belong(core: &Core, links: &Links) -> Result<Membership, ServerError> {
    let (config, initial, Links { bootstrap, peers, .. }) = (&core.config, core.initial_nodes(), links);
    // The others are contacted before anything is served. Usually they are either running or absent.
    if let Some(Some((own, theirs))) = bootstrap.compare(peers, &initial).await {
        return Err(ServerError::OtherCluster { path: config.data_dir.clone(), own, theirs });
    }
    let is_founder = initial.first().is_some_and(|(name, _)| *name == config.name);
    let founders = if is_founder { bootstrap.run(peers, &initial).await } else { None };
    let to_ask = core.members_to_ask();
    let identity = tokio::select! {
        identity = bootstrap.identity() => identity,
        () = bootstrap.join(peers, &to_ask) => bootstrap.identity().await,
    };
    Ok(Membership { identity, founders })
}

/// Returns when the log can no longer be written. Once Raft runs, it detects this itself.
async fn log_failed(log: &LogDb) -> StorageError {
    let (done, failed) = oneshot::channel();
    log.when_failed(Box::new(move |result| drop(done.send(result))));
    match failed.await {
        Ok(Err(error)) => StorageError::Failed(error),
        // The log was closed.
        Ok(Ok(())) | Err(_) => std::future::pending().await,
    }
}
