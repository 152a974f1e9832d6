//! HTTP: probes and metrics for machines, the calls of `chat.v1` as JSON, and the chat page.
//!
//! Owns the routes of the metrics port and of the web port, and how both are served: the number of connections is
//! bounded, and a connection without progress is closed ([`serve`]). The calls are those of the gRPC services,
//! translated (`json`). The page (`page`) consists of files that use these calls, on this node or, when it fails, on
//! another ([`Origins`]). [`guarded`] rejects requests for other hosts and from the pages of other sites before any
//! route.
//!
//! Does not cover: the sources of the data. They are passed in as closures and as a watched [`Readiness`], so that
//! nothing here depends on consensus or metrics.

mod arrival;
mod encoding;
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
