//! The composition root: builds the parts of a node, starts them, and drains them in order.
//!
//! Order of the start: files, peer port (so that the others can found or reach this node), identity, Raft, client
//! port. Order of the stop: not ready, hand over leadership, end the streams, finish the calls, stop Raft, close the log.
//! Every wait of the stop is bounded by `CHAT_DRAIN_TIMEOUT_MS`.

mod error;
mod incoming;
mod observe;

use std::{
    fs::{self, File, TryLockError},
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    api::{self, ApiParts, ApiSettings, ChatApi},
    chat::limits,
    config::{Config, Secret},
    delivery::Hub,
    raft::{
        self, Node, PeerService,
        bootstrap::{Advertised, Founding},
        peers::{Credentials, Peers},
    },
    storage::{GroupCommit, LogDb, Readers, StateMachine, StorageError},
    telemetry::metrics::{self, Metrics},
    web::{self, Readiness},
};
use incoming::{PEER_CONNECTIONS_MAX, client_connections, incoming};
use observe::{Fanout, Ready};

pub use error::ServerError;

/// Connections that read the state at the same time.
const READERS: usize = 4;
/// Log entries kept behind a snapshot: some minutes of a busy cluster.
const LOG_ENTRIES_KEPT: u64 = 20_000;
/// Between two signs of life on an idle client connection; a half-open one is cut off after it and the next time-out.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For the answer to a sign of life.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client may send ahead of being read, for a request: those are at most as large, with their length.
const STREAM_WINDOW_BYTES: u32 = limits::REQUEST_BYTES_MAX as u32 + 1024;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
/// A request's headers: the token, the trace, the deadline.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// A call that has not begun to be answered by then is given up: its request never came to an end, as all else has a
/// deadline of 10 s.
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// Longest hand-over of leadership at a stop.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// The files of a node, open and locked.
struct Files {
    log: LogDb,
    state: StateMachine,
    readers: Arc<Readers>,
    /// Held as long as the node runs: two nodes on one directory would destroy it.
    _lock: File,
}

/// Runs a node until SIGTERM or SIGINT, or until it fails.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config) -> Result<(), ServerError> {
    let metrics = Metrics::new(&config.name);
    let stop = Stop::listen()?;
    let files = open_files(&config, &metrics).await?;
    if let Some(identity) = files.log.identity().filter(|identity| identity.name != config.name) {
        return Err(ServerError::WrongName { configured: config.name, stored: identity.name });
    }
    let ports = Ports::bind(&config).await?;
    let hub = Hub::new(files.state.applied().revision, files.state.applied().clock);
    let ready = Ready::new();
    let node_cell: Arc<OnceLock<Node>> = Arc::default();
    let secret = config.peer_secret.as_ref().map(Secret::expose);
    let unnamed = Credentials::new("", 0, secret).map_err(|_| ServerError::Secret)?;
    let advertised = Advertised {
        name: config.name.clone(),
        client_address: config.advertise.clone(),
        web_address: config.web_advertise.clone(),
    };
    let founding = Founding::new(files.log.clone(), advertised, unnamed);
    let peer_service = PeerService::new(founding.clone());
    let (close_peers, peers_closed) = watch::channel(false);
    let peer_server = serve_peers(ports.peer, peer_service.clone(), peers_closed.clone());
    let web = serve_web(&config, ports.web, ports.metrics, &hub, &node_cell, &ready, &metrics, &peers_closed);

    let peers = Arc::new(Peers::default());
    tracing::info!("Waiting for the cluster: {} initial nodes", config.initial_nodes.len());
    let joined = tokio::select! {
        joined = join(&config, &founding, &peers) => joined?,
        () = stop.asked() => {
            tracing::info!("Stopped before this node belonged to a cluster");
            return Ok(());
        }
    };
    let credentials = Credentials::new(&joined.identity.cluster_id, joined.identity.node_id, secret)
        .map_err(|_| ServerError::Secret)?;
    let readers = Arc::clone(&files.readers);
    let parts = raft::Parts {
        identity: joined.identity,
        settings: raft::Settings {
            heartbeat: config.heartbeat,
            election_min: config.election_min,
            election_max: config.election_max,
            snapshot_log_bytes: config.snapshot_log_bytes,
            log_entries_kept: LOG_ENTRIES_KEPT,
        },
        log: files.log,
        state: files.state,
        readers: files.readers,
        data_dir: config.data_dir.clone(),
        sink: Arc::new(Fanout { hub: hub.clone(), metrics: metrics.clone() }),
        peers: Arc::clone(&peers),
        credentials,
    };
    let (node, snapshots) = raft::start(parts).await?;
    peer_service.run(node.clone(), snapshots);
    if let Some(members) = joined.members {
        node.initialize(members).await?;
    }
    // Only read from here on: nobody else sets it.
    let _ = node_cell.set(node.clone());
    tracing::info!("Server started with {} peers", config.initial_nodes.len().saturating_sub(1));

    let observer = tokio::spawn(observe::follow(node.clone(), hub.clone(), ready.clone(), metrics));
    let (close_clients, clients_closed) = watch::channel(false);
    let clients = serve_clients(&config, ports.client, &node, readers, &hub, &ready, &clients_closed).await?;

    let failure = tokio::select! {
        () = stop.asked() => None,
        reason = node.failed() => Some(reason),
        error = stray(&config, &founding, &peers) => return Err(error),
    };
    observer.abort();
    ready.set(Readiness::NotReady("stopping".into()));
    if let Some(reason) = failure {
        return Err(ServerError::Raft(raft::StartError::Fatal(reason)));
    }
    tracing::info!("Stopping: leadership is handed over, then calls are finished");
    let deadline = Instant::now() + config.drain_timeout;
    node.step_aside(deadline.min(Instant::now() + HAND_OVER_MAX)).await;
    hub.stop();
    close_clients.send_replace(true);
    let drained = tokio::time::timeout_at(deadline, clients.finished()).await;
    if drained.is_err() {
        tracing::warn!("Some calls were not finished in time and are cut off");
    }
    node.shutdown().await;
    close_peers.send_replace(true);
    // The others may keep their connections open for as long as they like.
    let _ = timeout(Duration::from_millis(200), peer_server).await;
    let _ = timeout(Duration::from_millis(200), web).await;
    tracing::info!("Stopped");
    Ok(())
}

/// SIGTERM and SIGINT, listened for from the start.
struct Stop(watch::Receiver<bool>);

impl Stop {
    fn listen() -> Result<Self, ServerError> {
        let failed = |error: std::io::Error| ServerError::Task(format!("signals: {error}"));
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            sender.send_replace(true);
            // Kept, so that the receivers see the value and not the end of the channel.
            sender.closed().await;
        });
        Ok(Self(receiver))
    }

    async fn asked(&self) {
        // The sender stays until all receivers are gone.
        let _ = self.0.clone().wait_for(|asked| *asked).await;
    }
}

async fn open_files(config: &Config, metrics: &Metrics) -> Result<Files, ServerError> {
    let dir = config.data_dir.clone();
    let (fsync, group) = (metrics.log_fsync_seconds.clone(), metrics.log_group_entries.clone());
    let on_group = Box::new(move |commit: &GroupCommit| {
        fsync.observe(commit.took.as_secs_f64());
        group.observe(commit.entries as f64);
    });
    let opening = spawn_blocking(move || {
        let lock = lock(&dir)?;
        let log = LogDb::open(&dir, on_group)?;
        let state = StateMachine::open(&dir)?;
        let readers = Arc::new(Readers::open(&dir, READERS)?);
        Ok(Files { log, state, readers, _lock: lock })
    });
    opening.await.map_err(|error| ServerError::Task(error.to_string()))?
}

fn lock(dir: &Path) -> Result<File, ServerError> {
    let failed = |source| ServerError::DataDir { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServerError::DataDirInUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The ports of a node, bound before anything is started, so that a port in use stops the start.
struct Ports {
    client: TcpListener,
    peer: TcpListener,
    web: TcpListener,
    metrics: TcpListener,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Self, ServerError> {
        async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { key, address, source })
        }
        Ok(Self {
            client: bind("CHAT_LISTEN", config.listen).await?,
            peer: bind("CHAT_PEER_LISTEN", config.peer_listen).await?,
            web: bind("CHAT_WEB_LISTEN", config.web_listen).await?,
            metrics: bind("CHAT_METRICS_LISTEN", config.metrics_listen).await?,
        })
    }
}

/// What a node becomes a member with.
struct Joined {
    identity: crate::storage::Identity,
    /// Set on the founder: the members to initialize Raft with.
    members: Option<std::collections::BTreeMap<u64, raft::NodeRecord>>,
}

/// Names and peer addresses.
fn initial_nodes(config: &Config) -> Vec<(String, String)> {
    config.initial_nodes.iter().map(|node| (node.name.clone(), node.peer_address.clone())).collect()
}

/// Waits until this node has an identity. The first of the initial nodes makes one for all.
async fn join(config: &Config, founding: &Founding, peers: &Peers) -> Result<Joined, ServerError> {
    let initial = initial_nodes(config);
    // The others are asked before anything is served. Most often they have started, or are not there at all.
    if let Some(Some((own, theirs))) = founding.compare(peers, &initial).await {
        return Err(ServerError::OtherCluster { path: config.data_dir.clone(), own, theirs });
    }
    let is_founder = initial.first().is_some_and(|(name, _)| *name == config.name);
    let members = if is_founder { founding.found(peers, &initial).await } else { None };
    Ok(Joined { identity: founding.identity().await, members })
}

/// Returns when it turns out that the data directory is of another cluster than the other nodes'.
async fn stray(config: &Config, founding: &Founding, peers: &Peers) -> ServerError {
    match founding.other_cluster(peers, &initial_nodes(config)).await {
        Some((own, theirs)) => ServerError::OtherCluster { path: config.data_dir.clone(), own, theirs },
        None => std::future::pending().await,
    }
}

async fn told(mut stop: watch::Receiver<bool>) {
    // A dropped sender means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn serve_peers(listener: TcpListener, service: PeerService, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(1)))
            .http2_keepalive_timeout(Some(Duration::from_secs(2)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(service.into_server())
            .serve_with_incoming_shutdown(incoming(listener, PEER_CONNECTIONS_MAX), told(stop));
        if let Err(error) = server.await {
            tracing::error!(%error, "The peer port stopped");
        }
    })
}

#[expect(clippy::too_many_arguments, reason = "the composition root hands every part on once")]
fn serve_web(
    config: &Config,
    web: TcpListener,
    metrics_listener: TcpListener,
    hub: &Hub,
    node: &Arc<OnceLock<Node>>,
    ready: &Ready,
    metrics: &Metrics,
    stop: &watch::Receiver<bool>,
) -> JoinHandle<()> {
    let (name, address, hub, node) = (config.name.clone(), config.advertise.clone(), hub.clone(), Arc::clone(node));
    let page = web::web_router(move || observe::facts(&name, &address, node.get(), &hub));
    let metrics = metrics.clone();
    let probes = web::metrics_router(metrics::CONTENT_TYPE, move || metrics.encode(), ready.reasons());
    let (page_stop, probe_stop) = (stop.clone(), stop.clone());
    tokio::spawn(async move {
        let (page, probes) = tokio::join!(
            web::serve(web, page, told(page_stop)),
            web::serve(metrics_listener, probes, told(probe_stop)),
        );
        for error in [page, probes].into_iter().filter_map(Result::err) {
            tracing::error!(%error, "An HTTP port stopped");
        }
    })
}

/// The servers of clients and of the operator.
struct ClientServers {
    clients: JoinHandle<()>,
    admin: JoinHandle<()>,
}

impl ClientServers {
    async fn finished(self) {
        // A panic has been reported already.
        let _ = self.clients.await;
        let _ = self.admin.await;
    }
}

async fn serve_clients(
    config: &Config,
    listener: TcpListener,
    node: &Node,
    readers: Arc<Readers>,
    hub: &Hub,
    ready: &Ready,
    stop: &watch::Receiver<bool>,
) -> Result<ClientServers, ServerError> {
    let settings =
        ApiSettings::new(config.name.clone(), config.session_lifetime, config.hash_parallelism, config.election_max);
    let api = ChatApi::new(ApiParts { node: node.clone(), readers, hub: hub.clone(), settings });
    let routes = api::client_routes(&api, ready.healthy())
        .await
        .map_err(|error| ServerError::Task(format!("gRPC reflection: {error}")))?;
    let client_stop = stop.clone();
    let clients = tokio::spawn(async move {
        let server = Server::builder()
            .concurrency_limit_per_connection(limits::REQUESTS_PER_CONNECTION_MAX as usize)
            .max_concurrent_streams(limits::REQUESTS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .timeout(REQUEST_MAX)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming(listener, client_connections()), told(client_stop));
        if let Err(error) = server.await {
            tracing::error!(%error, "The client port stopped");
        }
    });
    let admin = serve_admin(&config.data_dir, &api, stop.clone())?;
    Ok(ClientServers { clients, admin })
}

fn serve_admin(dir: &Path, api: &ChatApi, stop: watch::Receiver<bool>) -> Result<JoinHandle<()>, ServerError> {
    let path = dir.join("admin.sock");
    let failed = |source| ServerError::Storage(StorageError::Io { context: "listen on", path: path.clone(), source });
    // The data directory is locked, so a socket in it is left over from a process that is gone.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let routes = api::admin_routes(api);
    Ok(tokio::spawn(async move {
        let server = Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), told(stop));
        if let Err(error) = server.await {
            tracing::error!(%error, "The admin socket stopped");
        }
    }))
}
