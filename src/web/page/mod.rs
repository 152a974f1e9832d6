//! The page that people chat in: plain files that are part of the program.
//!
//! Owns the files in `www/`, the addresses they are found under and the headers that they are sent with. The page itself does
//! everything over the JSON API, from whichever node answers. Invariants:
//! - The files of a version are under an address of their own, made of their hash, and never change there: they are kept by
//!   browsers for good. The address of the page itself never changes, and it is asked for each time. While nodes are updated, it
//!   may come from one and its files from another: then `boot.js`, which fits every version, loads it again.
//! - Nothing runs in the page but these files: no inline script, no other origin, no text made into markup. It talks to the
//!   cluster's nodes and to nobody else.
//!
//! Left out: who is let in (the services decide), and what the page does ([`www/main.js`](../../../src/web/page/www/main.js) is where it
//! starts, once [`www/boot.js`](../../../src/web/page/www/boot.js) has all of it).

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
use super::{origins::Origins, routes::livez};

/// What the page must be able to do, and nothing else. A text is never made into a script or into markup: not even the page's
/// own scripts may (`require-trusted-types-for`).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; manifest-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'; \
    connect-src 'self'";
/// For good: the address has the hash of what is there.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// To be asked for each time.
const ASKED: HeaderValue = HeaderValue::from_static("no-cache");

/// What `/status` tells.
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

/// Where the facts come from. Called once per request; must not block.
type Facts = Arc<dyn Fn() -> PageFacts + Send + Sync>;

/// The page with its files, `/status` (a few words about this node, for people without a browser) and `/livez`. The page may ask the
/// nodes of these `origins`.
pub fn web_router(facts: impl Fn() -> PageFacts + Send + Sync + 'static, origins: Origins) -> Router {
    let facts: Facts = Arc::new(facts);
    let site = Arc::new(Site { files: Files::new(), origins });
    Router::new()
        .route("/", get(page))
        .route("/assets/{version}/{name}", get(file))
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
    // HTTP/2 has it in the address.
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
        // A cache on the way must not think so any longer than the node does.
        None => (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, ASKED)]).into_response(),
    }
}

/// A file is what its type says, belongs to this site, and tells no other where it was asked from.
fn sent(content: &Content, asked: &HeaderMap, cache: HeaderValue) -> Response {
    let accepted = asked.get(header::ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let is_gzip = accepted.split(',').any(|encoding| encoding.trim().eq_ignore_ascii_case("gzip"));
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
