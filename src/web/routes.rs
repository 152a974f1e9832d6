//! The routes of both ports.
//!
//! `/livez` says that the process answers and nothing more: a probe that asks for a quorum would restart the survivors
//! of a failure. `/readyz` says whether this node should be sent requests.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

/// Whether this node should be sent requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It should.
    Ready,
    /// It should not, for this reason (one line, shown by `/readyz`).
    NotReady(String),
}

/// What the status page tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFacts {
    /// This node's name.
    pub name: String,
    /// `leader`, `follower`, ...
    pub role: String,
    /// The leader's name and address; `None` while there is none.
    pub leader: Option<String>,
    /// Revision of this node's state.
    pub revision: u64,
    /// `host:port` where clients find this node's gRPC services.
    pub grpc_address: String,
}

/// Where the status page's facts come from. Called once per request; must not block.
type Facts = Arc<dyn Fn() -> PageFacts + Send + Sync>;

/// Makes the text of `/metrics`. Called once per request; must not block.
type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The routes of the metrics port: `/metrics` (as `content_type`), `/livez`, `/readyz`.
pub fn metrics_router(
    content_type: &'static str,
    metrics: impl Fn() -> String + Send + Sync + 'static,
    readiness: watch::Receiver<Readiness>,
) -> Router {
    let metrics: Metrics = Arc::new(metrics);
    let exposition = get(move |State(metrics): State<Metrics>| async move {
        ([(header::CONTENT_TYPE, content_type)], metrics()).into_response()
    });
    Router::new()
        .route("/metrics", exposition.with_state(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz).with_state(readiness))
}

/// The routes of the web port: the status page and `/livez`.
pub fn web_router(facts: impl Fn() -> PageFacts + Send + Sync + 'static) -> Router {
    let facts: Facts = Arc::new(facts);
    Router::new().route("/", get(page).with_state(facts)).route("/livez", get(livez))
}

async fn livez() -> &'static str {
    "ok"
}

async fn readyz(State(readiness): State<watch::Receiver<Readiness>>) -> Response {
    // Cloned first: the watch must not stay locked while the answer is written.
    let now = readiness.borrow().clone();
    match now {
        Readiness::Ready => "ok".into_response(),
        Readiness::NotReady(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn page(State(facts): State<Facts>) -> String {
    let PageFacts { name, role, leader, revision, grpc_address } = facts();
    let leader = leader.unwrap_or_else(|| "none at the moment".to_owned());
    let mut page = format!("quorum-chat node {name}\n\n");
    for (what, value) in
        [("role", role), ("leader", leader), ("revision", revision.to_string()), ("gRPC", grpc_address)]
    {
        let _ = writeln!(page, "{what:<9} {value}");
    }
    page
}
