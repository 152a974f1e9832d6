//! HTTP: probes and metrics for machines, the calls of `chat.v1` as JSON, the page that people chat in.
//!
//! Owns the routes of the metrics port and of the web port and the way both are served: the number of connections is
//! bounded, and one that gets nothing done is cut off ([`serve`]). The calls are those of the gRPC services, translated
//! (`json`). The page (`page`) is files that use these calls, on this node or, when it dies, on another ([`Origins`]).
//! [`guarded`] refuses other hosts and the pages of others before any route. Left out: where the facts come from. They are
//! handed in as closures and as a watched [`Readiness`], so that nothing here knows the consensus or the metrics.

mod guard;
mod json;
mod origins;
mod page;
mod routes;
mod serve;

pub use guard::guarded;
pub use json::{Services, json_router};
pub use origins::{Origins, TrustsProxy, WebAccess};
pub use page::{PageFacts, web_router};
pub use routes::{Readiness, metrics_router};
pub use serve::{serve, serve_probes};
