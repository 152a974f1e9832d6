//! The composition root: builds the parts of a node, starts them, and drains them in order.
//!
//! Order of the start: files, peer port (so that the other nodes can bootstrap with this node or reach it), identity,
//! Raft, client port. The order of the stop is in `drain`.

mod drain;
mod error;
mod files;
mod host;
mod incoming;
mod observe;
pub mod offline;
mod ports;
mod protection;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn, map_request},
    response::Response,
};
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::{Code, Status, service::Routes, transport::server::TcpConnectInfo};

use crate::{
    api::{self, ApiParts, ApiSettings, ChatApi},
    chat::limits,
    config::{Config, Join, JoinToken},
    delivery::{Hub, Watch},
    net::{
        Listener,
        gate::{Gate, Owner, Ticket},
        proxies::Behind,
        receive::Receiver,
        serve::{Http, Spoken, no_proof, serve as serve_http},
        tls::{self, Port, Protocol, Tls},
    },
    raft::{
        self, Node, PeerService,
        bootstrap::{Advertised, Bootstrap},
        peers::{Credentials, Peers},
    },
    storage::{FirstFailure, LogDb, Readers, StorageError, Threads, private},
    telemetry::{
        logs,
        metrics::{self, Metrics},
    },
    trace::Tracer,
    web::{self, Readiness},
};
use incoming::{GatedPort, http2};
use observe::{Counted, Fanout, Ready};

use drain::{Serving, aborted};
use host::{Machine, listen_for_signals};

pub use error::ServerError;
pub use host::{Host, LocalPorts};
pub use ports::{PATIENCE as PORT_PATIENCE, wait_until_free};

/// Keepalive interval of idle client connections. A half-open connection is closed after this and the next timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Timeout for the answer to a keepalive ping.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Flow-control window of a stream: the largest request with its length prefix.
const STREAM_WINDOW_BYTES: u32 = limits::REQUEST_BYTES_MAX as u32 + 1024;
/// Flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
/// Limit for the headers of a request: the token, the trace, the deadline.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Connections to the admin socket.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Runs a node until SIGTERM, SIGINT or SIGHUP, or until it fails. `tracer` records the processing of messages.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config, tracer: Tracer) -> Result<(), ServerError> {
    let stop = listen_for_signals()?;
    let mut asked = stop.clone();
    tokio::spawn(async move {
        if asked.wait_for(|asked| *asked).await.is_ok() {
            logs::stopping();
        }
    });
    run_on(Machine { stop, background: Arc::new(Threads), tracer }, config).await
}

/// Runs a node on a host until a stop is requested or the node fails.
///
/// # Errors
/// See [`ServerError`].
pub async fn run_on<H: Host>(host: H, config: Config) -> Result<(), ServerError> {
    let dir = config.data_dir.clone();
    let files_max = incoming::files()?;
    serve(host, config, files_max).await.map_err(|error| error.or_full(&dir))
}

async fn serve<H: Host>(host: H, config: Config, files_max: usize) -> Result<(), ServerError> {
    let (metrics, tracer) = (Metrics::new(&config.name), host.tracer());
    let stop = Stop(host.stop());
    let files = files::open(&config, &metrics, &tracer, &host.background()).await?;
    if let Some(identity) = files.log.identity().filter(|identity| identity.name != config.name) {
        return Err(ServerError::WrongName { configured: config.name, stored: identity.name });
    }
    let Some(ports) = stop.or(Ports::bind(&host, &config, files_max)).await.transpose()? else { return Ok(()) };
    let applied = files.state.applied()?;
    let counted = Arc::new(Counted(metrics.clone()));
    let watch = Watch { observer: counted.clone(), tracer: tracer.clone() };
    let hub = Hub::watched(applied.revision, applied.clock, watch);
    let ready = Ready::new(metrics.clone());
    let node_cell: Arc<OnceLock<Node>> = Arc::default();
    let peer_tls = protection::peer_tls(&config).await?;
    let is_trusting = protection::check(&config, peer_tls.is_some(), &metrics)?;
    let present = |cluster: &str, id| {
        Credentials::new(cluster, id, &config.name, &config.peer_advertise).map_err(|_| ServerError::Credentials)
    };
    let unnamed = present("", 0)?;
    let bootstrap = Bootstrap::new(files.log.clone(), advertised(&config), unnamed).after_loss(files.lost);
    let bootstrap = bootstrap.with_token(config.joining.token.as_ref().map(JoinToken::expose));
    let peer_service = PeerService::new(bootstrap.clone());
    let (close_peers, peers_closed) = watch::channel(false);
    let peer_gate = GatedPort::Peers.gate(&metrics);
    let peer_server = serve_peers(peer_tls.clone(), ports.peer, peer_gate, peer_service.clone(), peers_closed.clone());
    let _background = spawn_background(&config, &peer_tls, &metrics);
    let services = web::Services::default();
    let receiver: Arc<Receiver> = Arc::default();
    let page = page(&config, &hub, &node_cell, &services, &receiver);
    let (close_clients, clients_closed) = watch::channel(false);
    let web = ports.local.map(|local| {
        let stops = (clients_closed.clone(), peers_closed);
        serve_web(&config, local, ports.connections, (page, &receiver), &ready, &metrics, stops)
    });

    let peers = Arc::new(Peers::new(protection::dialer(peer_tls.as_ref(), || host.dialer())?));
    tracing::info!("Waiting for the cluster: {}", awaited(&config));
    let joined = tokio::select! {
        joined = join(&config, &bootstrap, &peers, &files.log) => joined?,
        () = stop.asked() => {
            tracing::info!("Stopped before this node belonged to a cluster");
            return Ok(());
        }
    };
    let credentials = present(&joined.identity.cluster_id, joined.identity.node_id)?;
    let readers = Arc::clone(&files.readers);
    let (node_id, to_ask) = (joined.identity.node_id, members_to_ask(&config));
    let parts = raft::Parts {
        bootstrap: bootstrap.clone(),
        identity: joined.identity,
        settings: raft_settings(&config),
        log: files.log,
        state: files.state,
        readers: files.readers,
        data_dir: config.data_dir.clone(),
        sink: Arc::new(Fanout { hub: hub.clone(), metrics: metrics.clone() }),
        peers: Arc::clone(&peers),
        credentials,
        seed_addresses: to_ask.clone(),
        failure: files.failure.clone(),
        tracer: tracer.clone(),
    };
    let started = raft::start(parts).await;
    let (node, snapshots) = started.inspect_err(|_| files::note_damage(&config.data_dir, &files.failure))?;
    peer_service.run(node.clone(), snapshots);
    if let Some(members) = joined.members {
        node.initialize(members).await?;
    }
    let _ = node_cell.set(node.clone());
    host.started(&node);
    tracing::info!("Server started with {} peers", config.initial_nodes.len().saturating_sub(1));

    let client_gate = GatedPort::Clients(ports.connections).gate(&metrics);
    receiver.watch(&client_gate);
    let observing = observe::follow(node.clone(), hub.clone(), ready.clone(), metrics, tracer.clone());
    let api = chat_api(&config, &node, readers, &hub, counted, tracer, receiver);
    let clients =
        serve_clients(&config, (ports.client, client_gate), &api, &services, &ready, clients_closed.clone()).await?;
    let admin = if web.is_some() { Some(serve_admin(&config.data_dir, &api, clients_closed)?) } else { None };
    // It makes the node ready, so everything has to be listened on by now.
    let observer = tokio::spawn(observing);
    let failure = tokio::select! {
        () = stop.asked() => None,
        reason = node.failed() => Some(reason),
        reason = state_failed(files.state_failed, &files.failure) => Some(reason),
        error = stray(&config, &bootstrap, &peers) => return Err(error),
        () = node.has_fellows(), if peer_tls.is_none() && !is_trusting => return Err(ServerError::Unprotected),
        () = node.removed(&to_ask) => return Err(ServerError::Removed { name: config.name, node_id }),
    };
    aborted(observer).await;
    ready.set(Readiness::NotReady("stopping".into()));
    if let Some(reason) = failure {
        return Err(failed(config.data_dir, &files.failure, reason));
    }
    let (page, probes) = web.unzip();
    let serving = Serving { node, hub, clients, page, close_clients, admin, peers: peer_server, close_peers, probes };
    serving.drain(&config).await;
    Ok(())
}

/// The background tasks of the node, until the set is dropped: reload certificates, watch the files.
fn spawn_background(config: &Config, peer_tls: &Option<Arc<Tls>>, metrics: &Metrics) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(observe::follow_files(config.data_dir.clone(), metrics.clone()));
    tasks.spawn(files::forget_aside(config.data_dir.clone(), config.erase_after));
    let peers = if config.peer_tls.is_some() { "peers (CHAT_PEER_TLS_CERT)" } else { "peers (CHAT_PEER_SECRET_FILE)" };
    let ports = [("clients", "clients (CHAT_TLS_CERT)", &config.tls), ("peers", peers, peer_tls)];
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

fn raft_settings(config: &Config) -> raft::Settings {
    let initial = config.initial_nodes.iter().map(|node| node.name.clone());
    raft::Settings {
        heartbeat: config.heartbeat,
        election_min: config.election_min,
        election_max: config.election_max,
        snapshot_log_bytes: config.snapshot_log_bytes,
        expected_nodes: initial.chain(config.joining.expected_nodes.iter().cloned()).collect(),
        digest_interval: config.digest_interval,
        log_entries_kept: config.log_entries_kept,
        erase_after: config.erase_after,
        rates: raft::Rates {
            messages: config.capacity.messages_per_s,
            bytes: config.capacity.bytes_per_s,
            changes: config.capacity.changes_per_s,
        },
        quota: (config.capacity.messages_max, config.capacity.bytes_max),
        space_reserve_bytes: config.capacity.reserve_bytes,
    }
}

/// The final error after a failure. Damage is recorded for the next start.
fn failed(path: PathBuf, first: &FirstFailure, reason: String) -> ServerError {
    files::note_damage(&path, first);
    files::note_end(&path);
    if first.get().is_some_and(|failure| failure.full) {
        return ServerError::Full { path, reason };
    }
    ServerError::Raft(raft::StartError::Fatal(reason))
}

/// The stop signal of the node.
struct Stop(watch::Receiver<bool>);

impl Stop {
    async fn asked(&self) {
        // The sender outlives all receivers.
        let _ = self.0.clone().wait_for(|asked| *asked).await;
    }

    /// The result of `work`; `None` if a stop was requested first.
    async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.asked() => None,
        }
    }
}

/// The ports of a node. All are bound before anything is started, so that an occupied port prevents the start.
struct Ports<L> {
    client: L,
    peer: L,
    local: Option<LocalPorts>,
    /// The connection limit for clients, and for browsers.
    connections: usize,
}

impl<L: Listener> Ports<L> {
    async fn bind<H: Host<Listener = L>>(host: &H, config: &Config, files_max: usize) -> Result<Self, ServerError> {
        let failed = |key, address| move |source| ServerError::Listen { key, address, source };
        let (client, peer) = (config.listen, config.peer_listen);
        // Concurrently, as each may have to wait.
        let (client, peer, local) = tokio::try_join!(
            async { host.listen(client).await.map_err(failed("CHAT_LISTEN", client)) },
            async { host.listen(peer).await.map_err(failed("CHAT_PEER_LISTEN", peer)) },
            host.local_ports(config),
        )?;
        Ok(Self { client, peer, local, connections: incoming::connections(files_max) })
    }
}

/// The result of joining or bootstrapping a cluster.
struct Joined {
    identity: crate::storage::Identity,
    /// The members to initialize Raft with. Set only on the node that bootstraps the cluster.
    members: Option<std::collections::BTreeMap<u64, raft::NodeRecord>>,
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

/// The names and peer addresses of the initial nodes.
fn initial_nodes(config: &Config) -> Vec<(String, String)> {
    config.initial_nodes.iter().map(|node| (node.name.clone(), node.peer_address.clone())).collect()
}

/// Peer addresses of nodes that may be members of the cluster, without this node's own.
fn members_to_ask(config: &Config) -> Vec<String> {
    let initial = config.initial_nodes.iter().filter(|node| node.name != config.name);
    let mut addresses: Vec<String> = initial.map(|node| node.peer_address.clone()).collect();
    if let Some(Join::Ask(more)) = &config.join {
        addresses.extend(more.iter().filter(|address| **address != config.peer_advertise).cloned());
    }
    addresses
}

/// Waits until this node has an identity. The first of the initial nodes assigns the identities of all.
async fn join(config: &Config, bootstrap: &Bootstrap, peers: &Peers, log: &LogDb) -> Result<Joined, ServerError> {
    tokio::select! {
        joined = belong(config, bootstrap, peers) => joined,
        error = log_failed(log) => Err(ServerError::Storage(error)),
    }
}

async fn belong(config: &Config, bootstrap: &Bootstrap, peers: &Peers) -> Result<Joined, ServerError> {
    let initial = initial_nodes(config);
    // The others are contacted before anything is served. Usually they are either running or absent.
    if let Some(Some((own, theirs))) = bootstrap.compare(peers, &initial).await {
        return Err(ServerError::OtherCluster { path: config.data_dir.clone(), own, theirs });
    }
    let is_founder = initial.first().is_some_and(|(name, _)| *name == config.name);
    let members = if is_founder { bootstrap.run(peers, &initial).await } else { None };
    let to_ask = members_to_ask(config);
    let identity = tokio::select! {
        identity = bootstrap.identity() => identity,
        () = bootstrap.join(peers, &to_ask) => bootstrap.identity().await,
    };
    Ok(Joined { identity, members })
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

/// Returns the reason when the state can no longer be written.
async fn state_failed(mut failed: watch::Receiver<bool>, failure: &FirstFailure) -> String {
    match failed.wait_for(|failed| *failed).await {
        Ok(_) => failure.get().map(|failure| failure.reason.clone()).unwrap_or_default(),
        // The state was dropped, so the node is stopping.
        Err(_) => std::future::pending().await,
    }
}

/// Returns when the data directory turns out to belong to another cluster than the other nodes.
async fn stray(config: &Config, bootstrap: &Bootstrap, peers: &Peers) -> ServerError {
    match bootstrap.other_cluster(peers, &initial_nodes(config)).await {
        Some((own, theirs)) => ServerError::OtherCluster { path: config.data_dir.clone(), own, theirs },
        None => std::future::pending().await,
    }
}

async fn shutdown_requested(mut stop: watch::Receiver<bool>) {
    // A dropped sender also means a stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn serve_peers(
    tls: Option<Arc<Tls>>,
    listener: impl Listener,
    gate: Gate,
    service: PeerService,
    stop: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let port = Port::new(listener, tls, Protocol::Grpc);
    let router = Routes::new(service.into_server()).into_axum_router().layer(from_fn(prove_member));
    let http = Http {
        spoken: Spoken::Grpc,
        keep_alive: Some((Duration::from_secs(1), Duration::from_secs(2))),
        windows: Some((8 << 20, 16 << 20)),
        is_bulk: true,
        ..Http::default()
    };
    tokio::spawn(async move {
        let proofs = |stream: &tls::Stream<_>| Some(stream.peer());
        serve_http(http2(port, gate), http, router, Arc::default(), proofs, shutdown_requested(stop)).await;
    })
}

/// Counts a connection of the peer port as a member's after an accepted call. Calls of strangers are rejected, with or
/// without TLS.
async fn prove_member(request: Request, next: Next) -> Response {
    let ticket = request.extensions().get::<Arc<Ticket>>().cloned();
    let response = next.run(request).await;
    let is_accepted = Status::from_header_map(response.headers()).is_none_or(|status| status.code() == Code::Ok);
    if let Some(ticket) = ticket.filter(|_| is_accepted) {
        ticket.prove(Owner::of(ticket.from().ip()));
    }
    response
}

/// The configured hosts, and the listen address unless it is a wildcard.
fn web_hosts(config: &Config) -> Vec<String> {
    let ip = Some(config.web_listen.ip()).filter(|ip| !ip.is_unspecified());
    let ip = ip.map(|ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    config.web_hosts.iter().cloned().chain(ip).collect()
}

/// The settings and routes for browsers.
fn page(
    config: &Config,
    hub: &Hub,
    node: &Arc<OnceLock<Node>>,
    services: &web::Services,
    receiver: &Arc<Receiver>,
) -> Router {
    let (name, address, hub, node) = (config.name.clone(), config.advertise.clone(), hub.clone(), Arc::clone(node));
    let (members, proxies) = (Arc::clone(&node), Arc::clone(&config.proxies));
    let access = web::WebAccess {
        own: config.web_advertise.clone(),
        hosts: web_hosts(config),
        // A wildcard address includes loopback, where a forwarded port ends.
        on_loopback: config.web_listen.ip().is_loopback() || config.web_listen.ip().is_unspecified(),
        tls: config.tls.is_some(),
        trusts_proxy: Some(Arc::new(move |ip| proxies.forwards_requests(ip))),
    };
    let origins = web::Origins::new(move || observe::web_addresses(members.get()), access);
    let json = web::json_router(Arc::clone(services), &origins, Arc::clone(receiver));
    let routes =
        web::web_router(move || observe::facts(&name, &address, node.get(), &hub), origins.clone()).merge(json);
    web::guarded(routes, &origins, config.hsts.as_secs())
}

fn serve_web(
    config: &Config,
    ports: LocalPorts,
    connections: usize,
    (page, receiver): (Router, &Receiver),
    ready: &Ready,
    metrics: &Metrics,
    (page_stop, probe_stop): (watch::Receiver<bool>, watch::Receiver<bool>),
) -> (JoinHandle<()>, JoinHandle<()>) {
    let metrics = metrics.clone();
    let (page_gate, probe_gate) = (GatedPort::Web(connections).gate(&metrics), GatedPort::Metrics.gate(&metrics));
    receiver.watch(&page_gate);
    let probes = web::metrics_router(metrics::CONTENT_TYPE, move || metrics.encode(), ready.reasons());
    let proxies = Arc::clone(&config.proxies);
    let page_port = Port::new(Behind::new(ports.web, Arc::clone(&proxies)), config.tls.clone(), Protocol::Http);
    let page = tokio::spawn(web::serve(page_port, page_gate, page, proxies, shutdown_requested(page_stop)));
    let probes = tokio::spawn(web::serve_probes(ports.metrics, probe_gate, probes, shutdown_requested(probe_stop)));
    (page, probes)
}

fn chat_api(
    config: &Config,
    node: &Node,
    readers: Arc<Readers>,
    hub: &Hub,
    observer: Arc<Counted>,
    tracer: Tracer,
    receiver: Arc<Receiver>,
) -> ChatApi {
    let settings = ApiSettings {
        reflection: config.reflection,
        session_idle: config.session_idle,
        registrations_per_hour: (config.registrations_per_address, config.registrations_per_hour),
        ..ApiSettings::new(config.name.clone(), config.session_lifetime, config.hash_parallelism, config.election_max)
    };
    ChatApi::new(ApiParts { node: node.clone(), readers, hub: hub.clone(), settings, observer, tracer, receiver })
}

async fn serve_clients(
    config: &Config,
    (listener, gate): (impl Listener, Gate),
    api: &ChatApi,
    services: &web::Services,
    ready: &Ready,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, ServerError> {
    let routes = api::client_routes(api, ready.healthy(), shutdown_requested(stop.clone()))
        .await
        .map_err(|error| ServerError::Task(format!("gRPC reflection: {error}")))?;
    // The only place that sets the cell. The same services answer browsers.
    let _ = services.set(routes.clone().into_axum_router());
    let proxies = Arc::clone(&config.proxies);
    let port = Port::new(Behind::new(listener, Arc::clone(&proxies)), config.tls.clone(), Protocol::Grpc);
    let http = Http {
        spoken: Spoken::Grpc,
        keep_alive: Some((KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)),
        streams_max: Some(limits::REQUESTS_PER_CONNECTION_MAX),
        windows: Some((STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES)),
        header_bytes_max: Some(HEADER_BYTES_MAX),
        is_bulk: false,
    };
    let router = routes.into_axum_router();
    Ok(tokio::spawn(async move {
        serve_http(http2(port, gate), http, router, proxies, no_proof, shutdown_requested(stop)).await
    }))
}

fn serve_admin(dir: &Path, api: &ChatApi, stop: watch::Receiver<bool>) -> Result<JoinHandle<()>, ServerError> {
    let path = dir.join("admin.sock");
    let failed = |source| ServerError::Storage(StorageError::Io { context: "listen on", path: path.clone(), source });
    // The data directory is locked, so an existing socket is left over from a process that has ended.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    private::restrict(&path).map_err(failed)?;
    // Its callers own the node: their calls count against no budget, and running calls are not displaced.
    let router = api::admin_routes(api).into_axum_router().layer(map_request(async |mut request: Request| {
        if let Some(ticket) = request.extensions_mut().remove::<Arc<Ticket>>() {
            ticket.prove(ticket.owner());
        }
        request.extensions_mut().remove::<TcpConnectInfo>();
        request
    }));
    let http = Http { spoken: Spoken::Grpc, is_bulk: true, ..Http::default() };
    let port = http2(listener, Gate::uncounted(ADMIN_CONNECTIONS_MAX));
    Ok(tokio::spawn(
        async move { serve_http(port, http, router, Arc::default(), no_proof, shutdown_requested(stop)).await },
    ))
}
