//! Observability of a node: log lines, metrics and traces.
//!
//! Owns the format of log lines, and the name, help and unit of every metric. The parts of the node receive handles
//! from here ([`metrics::Metrics`], [`trace::Tracer`]). None of them registers a metric or installs a
//! subscriber.
//!
//! Does not cover: serving `/metrics` (`web`), and the decision what to log (each part).

mod limit;
pub mod logs;
pub mod metrics;
mod time;
pub mod traces;
