//! What a node tells about itself: log lines, metrics and traces.
//!
//! Owns the form of a log line and every metric's name, help and unit. The parts of the node get values from here
//! handed in ([`metrics::Metrics`], [`crate::trace::Tracer`]); none of them registers a metric or installs a subscriber of its own.
//!
//! Left out: serving `/metrics` (that is `web`) and deciding what is worth a log line (that is each part).

mod limit;
pub mod logs;
pub mod metrics;
mod time;
pub mod traces;
pub mod unhurried;
