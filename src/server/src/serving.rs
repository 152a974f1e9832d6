//! The ports of a node: what is served on each, to whom, and within which limits.
//!
//! Each function starts a server that ends with its stop signal. Does not cover: which connections are admitted
//! ([`GatedPort`]), and the routes (`api`, `web`, `raft`).

use std::{fs, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn, map_request},
    response::Response,
};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use tonic::{Code, Status, service::Routes, transport::server::TcpConnectInfo};

use crate::{
    ServerError,
    api::{self, ChatApi},
    config::Config,
    host::LocalPorts,
    incoming::{ADMIN_CONNECTIONS_MAX, GatedPort, http2},
    life::core::Core,
    observe,
    telemetry::metrics,
    web,
};
use chat::limits;
use net::{
    Listener,
    gate::{Gate, Owner, Ticket},
    proxies::Behind,
    serve::{Http, Spoken, no_proof, serve as serve_http},
    tls::{self, Port, Protocol, Tls},
};
use raft::PeerService;
use storage::{StorageError, private};

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

async fn shutdown_requested(mut stop: watch::Receiver<bool>) {
    // A dropped sender also means a stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves the other nodes.
pub(super) fn peers(
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
fn page(core: &Core) -> Router {
    let config = &core.config;
    let (name, address) = (config.name.clone(), config.advertise.clone());
    let (hub, node) = (core.hub.clone(), Arc::clone(&core.node));
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
    let json = web::json_router(Arc::clone(&core.services), &origins, Arc::clone(&core.receiver));
    let routes =
        web::web_router(move || observe::facts(&name, &address, node.get(), &hub), origins.clone()).merge(json);
    web::guarded(routes, &origins, config.hsts.as_secs())
}

/// Serves browsers, and probes with metrics. Each of the two ends with its stop signal.
pub(super) fn browsers_and_probes(
    core: &Core,
    ports: LocalPorts,
    connections: usize,
    (page_stop, probe_stop): (watch::Receiver<bool>, watch::Receiver<bool>),
) -> (JoinHandle<()>, JoinHandle<()>) {
    let (config, metrics) = (&core.config, core.metrics.clone());
    let (page_gate, probe_gate) = (GatedPort::Web(connections).gate(&metrics), GatedPort::Metrics.gate(&metrics));
    core.receiver.watch(&page_gate);
    let probes = web::metrics_router(metrics::CONTENT_TYPE, move || metrics.encode(), core.ready.reasons());
    let proxies = Arc::clone(&config.proxies);
    let page_port = Port::new(Behind::new(ports.web, Arc::clone(&proxies)), config.tls.clone(), Protocol::Http);
    let page = web::serve(page_port, page_gate, page(core), proxies, shutdown_requested(page_stop));
    let probes = web::serve_probes(ports.metrics, probe_gate, probes, shutdown_requested(probe_stop));
    (tokio::spawn(page), tokio::spawn(probes))
}

/// Serves gRPC clients, and lets browsers reach the same services.
///
/// # Errors
/// gRPC reflection could not be prepared.
pub(super) async fn clients(
    core: &Core,
    listener: impl Listener,
    connections: usize,
    api: &ChatApi,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, ServerError> {
    let (config, gate) = (&core.config, GatedPort::Clients(connections).gate(&core.metrics));
    core.receiver.watch(&gate);
    let routes = api::client_routes(api, core.ready.healthy(), shutdown_requested(stop.clone()))
        .await
        .map_err(|error| ServerError::Task(format!("gRPC reflection: {error}")))?;
    // The only place that sets the cell. The same services answer browsers.
    let _ = core.services.set(routes.clone().into_axum_router());
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

/// Serves the operator on a socket in the data directory.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn admin(dir: &Path, api: &ChatApi, stop: watch::Receiver<bool>) -> Result<JoinHandle<()>, ServerError> {
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
