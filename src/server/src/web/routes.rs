//! The routes of the metrics port.
//!
//! `/livez` only states that the process answers. A probe that required a quorum would restart the survivors of a
//! failure. `/readyz` states whether this node should receive requests.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

/// Whether this node should receive requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// The node should receive requests.
    Ready,
    /// The node should not, for this reason (one line, shown by `/readyz`).
    NotReady(String),
}

/// Produces the text of `/metrics`. Called once per request; must not block.
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

pub(super) async fn livez() -> &'static str {
    "ok"
}

async fn readyz(State(readiness): State<watch::Receiver<Readiness>>) -> Response {
    // Cloned first, so that the watch is not locked while the answer is written.
    let now = readiness.borrow().clone();
    match now {
        Readiness::Ready => "ok".into_response(),
        Readiness::NotReady(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}
