//! Every metric of the node, registered once, in a registry that this module's [`Metrics`] owns. Each group of metrics
//! is a module with the methods that set it.
//!
//! Names follow the Prometheus conventions: prefix `chat_`, base units (seconds, bytes), `_total` for counters. Metrics
//! of the process have the standard names (`process_`). Labels are `method`, `code`, `fault`, `peer`, `file`,
//! `outcome`, `limit`, `port` and `reason`. All metrics have the constant label `chat_node`. A user, a conversation or
//! any other unbounded id is never a label. The parts of a node receive clones of single metrics; none of them
//! registers one.
//!
//! Metrics that only a leader can determine are absent on other nodes, as a zero would be wrong.
//!
//! There are no exemplars, because the text format of the `prometheus` crate does not support them. A trace is found by
//! the id in a log line or an error.

mod calls;
mod consensus;
mod delivery;
mod files;
mod made;
mod runtime;

use std::{collections::HashMap, time::SystemTime};

use prometheus::{Encoder as _, IntCounter, IntGauge, Registry, TextEncoder};

use made::MetricBuilder;

pub use calls::CallMetrics;
pub use consensus::{LeaderFigures, RaftFigures, RaftMetrics};
pub use delivery::DeliveryMetrics;
pub use files::StorageMetrics;
pub use runtime::{RuntimeMetrics, TraceMetrics};

/// The media type of the text of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From the fastest fsync of an NVMe drive to a stalled network disk.
const DISK_SECONDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0];
/// From an answer out of memory to the longest deadline.
const CALL_SECONDS: [f64; 15] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The metrics of one node. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    /// Consensus.
    pub raft: RaftMetrics,
    /// Calls of clients and their results.
    pub calls: CallMetrics,
    /// Subscriptions.
    pub delivery: DeliveryMetrics,
    /// Files and their volume.
    pub storage: StorageMetrics,
    /// The asynchronous runtime.
    pub runtime: RuntimeMetrics,
    /// Exported spans.
    pub traces: TraceMetrics,
    /// 1 while the node reports that it is ready.
    pub ready: IntGauge,
    /// Revision of the state.
    pub revision: IntGauge,
    /// Log lines that were lost.
    pub log_lines_lost: IntCounter,
}

/// The label with the node's name on every series. It is not `node`, because a scrape in Kubernetes often sets that to
/// the machine's name, and Prometheus keeps the scrape's value.
const NODE_LABEL: &str = "chat_node";

impl Metrics {
    /// All metrics at zero, with `chat_node` as a constant label.
    pub fn new(node: &str) -> Self {
        let labels = HashMap::from([(NODE_LABEL.to_owned(), node.to_owned())]);
        let registry =
            Registry::new_custom(Some("chat".to_owned()), Some(labels.clone())).expect("the prefix is not empty");
        let process = Registry::new_custom(None, Some(labels)).expect("no prefix");
        made::register_process(&process);
        let new = MetricBuilder { registry: &registry };
        new.info(
            "build_info",
            "Always 1; the label is the running version.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )
        .set(1.0);
        new.info("start_time_seconds", "Start time of the process, in seconds since the Unix epoch.", &[])
            .set(unix_seconds());
        Self {
            raft: RaftMetrics::new(&new),
            calls: CallMetrics::new(&new),
            delivery: DeliveryMetrics::new(&new),
            storage: StorageMetrics::new(&new),
            runtime: RuntimeMetrics::new(&new),
            traces: TraceMetrics::new(&new),
            ready: new.gauge("ready", "1 while this node reports that it is ready for clients, else 0."),
            revision: new.gauge("revision", "Revision of this node's state."),
            log_lines_lost: new.counter(
                "log_lines_lost_total",
                "Log lines that were dropped because the reader of standard error was too slow or gone.",
            ),
            registry,
            process,
        }
    }

    /// All metrics in the text format ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        let mut out = Vec::new();
        match TextEncoder::new().encode(&families, &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            // A comment is valid in the format, and the missing metrics trigger the alerts that watch for absence.
            Err(error) => format!("# metrics could not be encoded: {}\n", error.to_string().replace('\n', " ")),
        }
    }
}

/// The time, in seconds since the Unix epoch.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
