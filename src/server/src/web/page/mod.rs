//! The chat page: plain files that are part of the program.
//!
//! Owns the files in `www/`, their addresses and their headers. The page itself does everything over the JSON API, with
//! any node that answers.
//!
//! Invariants:
//! - The files of a version have an address with their hash, and never change there, so browsers cache them
//!   permanently. The address of the page itself never changes, and browsers revalidate it each time. During a rolling
//!   update, the page may come from one node and its files from another. Then `boot.js`, which fits every version,
//!   reloads the page.
//! - A service worker ([`www/worker.js`](../../../src/web/page/www/worker.js)) keeps one version of the page in the
//!   browser for times when its node is down. The addresses of the worker never change either.
//! - Only these files run in the page: no inline script, no other origin, no text that becomes markup. The page
//!   connects only to the cluster's nodes.
//!
//! Does not cover: authentication (the services), and the behaviour of the page
//! ([`www/main.js`](../../../src/web/page/www/main.js) is its start, after
//! [`www/boot.js`](../../../src/web/page/www/boot.js) has loaded everything).

mod files;

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority},
    response::{IntoResponse, Response},
    routing::get,
};

use self::files::{Content, Files};
use super::{encoding::accepts_gzip, origins::Origins, routes::livez};

/// The permissions of the page, limited to those that it needs. Text never becomes a script or markup, not even through
/// the page's own scripts (`require-trusted-types-for`).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; manifest-src 'self'; \
    frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'; \
    connect-src 'self'";
/// The permissions of the document that registers the service worker. It is an invisible frame of the page. It is the
/// only document that may name a worker: a worker is registered by its address, and the page's own policy does not
/// allow text to become a script address.
const WORKER_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'self'";
/// Cached permanently, because the address contains the hash of the content.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// Revalidated each time.
const ASKED: HeaderValue = HeaderValue::from_static("no-cache");

/// The content of `/status`.
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

/// The source of the facts. Called once per request; must not block.
type Facts = Arc<dyn Fn() -> PageFacts + Send + Sync>;

/// The page with its files, `/status` (a few words about this node, for people without a browser) and `/livez`. The
/// page may call the nodes of these `origins`.
pub fn web_router(facts: impl Fn() -> PageFacts + Send + Sync + 'static, origins: Origins) -> Router {
    let facts: Facts = Arc::new(facts);
    let site = Arc::new(Site { files: Files::new(), origins });
    Router::new()
        .route("/", get(page))
        .route("/assets/{version}/{name}", get(file))
        .route("/worker.html", get(worker))
        .route("/register.js", get(worker))
        .route("/worker.js", get(worker))
        .with_state(site)
        .route("/status", get(status).with_state(facts))
        .route("/livez", get(livez))
}

struct Site {
    files: Files,
    origins: Origins,
}

async fn page(State(site): State<Arc<Site>>, uri: Uri, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has the host in the address.
    let host = host.or_else(|| uri.authority().map(Authority::as_str)).unwrap_or_default();
    let mut policy = POLICY.to_owned();
    for source in site.origins.sources(host) {
        policy.push(' ');
        policy.push_str(&source);
    }
    let mut response = sent(site.files.page(), &headers, ASKED);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers
        .insert("permissions-policy", HeaderValue::from_static("camera=(), microphone=(), geolocation=(), payment=()"));
    response
}

async fn file(
    State(site): State<Arc<Site>>,
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    match site.files.get(&version, &name) {
        Some((content, true)) => sent(content, &headers, KEPT),
        Some((content, false)) => sent(content, &headers, ASKED),
        // A cache on the way must not keep this answer longer than it is true.
        None => (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, ASKED)]).into_response(),
    }
}

/// The service worker and the files that register it. Revalidated each time, so that a new version takes over at the
/// next visit.
async fn worker(State(site): State<Arc<Site>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(content) = site.files.worker(uri.path().trim_start_matches('/')) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = sent(content, &headers, ASKED);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(WORKER_POLICY));
    response
}

/// Builds the response of a file. The headers fix its type, restrict it to this site, and suppress the referrer.
fn sent(content: &Content, asked: &HeaderMap, cache: HeaderValue) -> Response {
    let is_gzip = accepts_gzip(asked);
    let mut response = Response::new(if is_gzip { content.gzip.clone() } else { content.plain.clone() }.into());
    let headers = response.headers_mut();
    if is_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content.kind));
    headers.insert(header::CACHE_CONTROL, cache);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

async fn status(State(facts): State<Facts>) -> String {
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
