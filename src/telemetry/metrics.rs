//! Every metric of the node, registered once, in one registry that this value owns.
//!
//! Names follow Prometheus: prefix `chat_`, base units (seconds, bytes), `_total` for counters. Labels are `method`,
//! `code`, and constant on all metrics `node`; never a user, a conversation or an id that grows without bound. The parts
//! of a node are handed clones of single metrics; none of them registers one.

use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, core::Collector,
};
use std::{collections::HashMap, time::SystemTime};

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From the fastest fsync of an NVMe drive to a stalled network disk.
const DISK_SECONDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0];
/// From an answer out of memory to the longest deadline.
const RPC_SECONDS: [f64; 15] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Sizes of a group commit.
const GROUP_ENTRIES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What the consensus says of itself, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RaftFigures {
    /// Current term.
    pub term: u64,
    /// This node leads.
    pub is_leader: bool,
    /// A leader is known.
    pub has_leader: bool,
    /// Index of the last entry in the log.
    pub last_log_index: u64,
    /// Index of the last entry known to be on a majority.
    pub committed_index: u64,
    /// Index of the last entry in the state machine.
    pub applied_index: u64,
}

/// The metrics of one node. Cloning gives another handle to the same values.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    raft_term: IntGauge,
    raft_is_leader: IntGauge,
    raft_has_leader: IntGauge,
    raft_last_log_index: IntGauge,
    raft_committed_index: IntGauge,
    raft_applied_index: IntGauge,
    rpc_requests: IntCounterVec,
    rpc_duration: HistogramVec,
    /// Open subscriptions.
    pub subscriptions: IntGauge,
    /// Subscriptions cut off because their reader was slow.
    pub slow_subscriber_cuts: IntCounter,
    /// Seconds that one commit of `log.db` took, fsync included.
    pub log_fsync_seconds: Histogram,
    /// Entries that one such commit held.
    pub log_group_entries: Histogram,
    /// Seconds that applying what was committed to the state took.
    pub apply_seconds: Histogram,
    /// Seconds that one commit of `chat.db` took.
    pub state_commit_seconds: Histogram,
    /// Comparisons of the states in which a majority had what this node has.
    pub digest_agreements: IntCounter,
    /// Nodes that differed from a majority, and comparisons without a majority.
    pub digest_differences: IntCounter,
    /// Seconds that the write to disk under way has taken so far.
    pub disk_stalled_seconds: Gauge,
    /// Hand-overs of leadership because this node's disk was slow.
    pub slow_disk_handovers: IntCounter,
    /// Proposals waiting to be put into the log.
    pub proposal_queue_depth: IntGauge,
}

impl Metrics {
    /// All metrics at zero, with `node` as a constant label.
    pub fn new(node: &str) -> Self {
        let labels = HashMap::from([("node".to_owned(), node.to_owned())]);
        let registry = Registry::new_custom(Some("chat".to_owned()), Some(labels)).expect("the prefix is not empty");
        let new = Maker { registry: &registry };
        let build = new.info(
            "build_info",
            "Always 1; the label tells the version that runs.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        );
        build.set(1.0);
        let started = new.info("start_time_seconds", "When the process started, in seconds since the Unix epoch.", &[]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        started.set(now.as_secs_f64());
        Self {
            raft_term: new.gauge("raft_term", "Current term of the consensus."),
            raft_is_leader: new.gauge("raft_is_leader", "1 on the node that leads, else 0."),
            raft_has_leader: new.gauge("raft_has_leader", "1 while this node knows a leader, else 0."),
            raft_last_log_index: new.gauge("raft_last_log_index", "Index of the last entry in this node's log."),
            raft_committed_index: new
                .gauge("raft_committed_index", "Index of the last entry known to be on disk on a majority."),
            raft_applied_index: new.gauge("raft_applied_index", "Index of the last entry in this node's state."),
            rpc_requests: new.counters(
                "rpc_requests_total",
                "Finished calls by method and gRPC status code.",
                &["method", "code"],
            ),
            rpc_duration: new.histograms(
                "rpc_duration_seconds",
                "Time from a call's arrival to its answer, or to the start of its stream.",
                &RPC_SECONDS,
                &["method"],
            ),
            subscriptions: new.gauge("subscriptions", "Open subscriptions on this node."),
            slow_subscriber_cuts: new
                .counter("slow_subscriber_cuts_total", "Subscriptions cut off because their reader did not keep up."),
            log_fsync_seconds: new.histogram(
                "log_fsync_seconds",
                "Time of one group commit to the log, fsync included.",
                &DISK_SECONDS,
            ),
            log_group_entries: new.histogram("log_group_entries", "Entries in one group commit.", &GROUP_ENTRIES),
            apply_seconds: new.histogram(
                "apply_seconds",
                "Time to apply one batch of committed entries to the state.",
                &DISK_SECONDS,
            ),
            state_commit_seconds: new.histogram(
                "state_commit_seconds",
                "Time of one commit of the state, checkpoint included.",
                &DISK_SECONDS,
            ),
            digest_agreements: new.counter(
                "digest_agreements_total",
                "Comparisons of the nodes' states in which a majority had what this node has.",
            ),
            digest_differences: new.counter(
                "digest_differences_total",
                "Nodes that differed from a majority when states were compared, and comparisons without a majority.",
            ),
            disk_stalled_seconds: new.info(
                "disk_stalled_seconds",
                "Time that the write to log.db or chat.db under way has taken so far; 0 when there is none.",
                &[],
            ),
            slow_disk_handovers: new.counter(
                "slow_disk_handovers_total",
                "Times that this node handed over leadership because its disk was slow and a majority's was not.",
            ),
            proposal_queue_depth: new
                .gauge("proposal_queue_depth", "Commands that wait to be put into the log, on this node."),
            registry,
        }
    }

    /// Sets the figures of the consensus.
    pub fn set_raft(&self, figures: &RaftFigures) {
        let index = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.raft_term.set(index(figures.term));
        self.raft_is_leader.set(i64::from(figures.is_leader));
        self.raft_has_leader.set(i64::from(figures.has_leader));
        self.raft_last_log_index.set(index(figures.last_log_index));
        self.raft_committed_index.set(index(figures.committed_index));
        self.raft_applied_index.set(index(figures.applied_index));
    }

    /// Counts a finished call. `method` is a method of our services and `code` a status code's name, such as
    /// `UNAVAILABLE`: both come from the program, never from the caller.
    pub fn rpc_finished(&self, method: &str, code: &str, seconds: f64) {
        self.rpc_requests.with_label_values(&[method, code]).inc();
        self.rpc_duration.with_label_values(&[method]).observe(seconds);
    }

    /// Everything, in the text format ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            // A comment is valid in the format, and missing metrics raise the alerts that watch for absence.
            Err(error) => format!("# metrics could not be encoded: {}\n", error.to_string().replace('\n', " ")),
        }
    }
}

/// Makes metrics and registers them. Names and labels are constants of this file, so neither step can fail.
struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.expect("names, labels and buckets are valid constants");
        self.registry.register(Box::new(metric.clone())).expect("each name is used once");
        metric
    }

    fn info(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        let opts = labels.iter().fold(Opts::new(name, help), |opts, (label, value)| opts.const_label(*label, *value));
        self.register(Gauge::with_opts(opts))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_with_the_node() {
        let metrics = Metrics::new("n1");
        metrics.set_raft(&RaftFigures {
            term: 3,
            is_leader: true,
            has_leader: true,
            applied_index: 7,
            ..<_>::default()
        });
        metrics.rpc_finished("SendMessage", "OK", 0.002);
        metrics.clone().subscriptions.inc();
        metrics.log_fsync_seconds.observe(0.001);
        let text = metrics.encode();
        for line in [
            "chat_raft_term{node=\"n1\"} 3",
            "chat_raft_is_leader{node=\"n1\"} 1",
            "chat_raft_applied_index{node=\"n1\"} 7",
            "chat_rpc_requests_total{code=\"OK\",method=\"SendMessage\",node=\"n1\"} 1",
            "chat_rpc_duration_seconds_count{method=\"SendMessage\",node=\"n1\"} 1",
            "chat_subscriptions{node=\"n1\"} 1",
            "chat_log_fsync_seconds_count{node=\"n1\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let build = text.lines().find(|line| line.starts_with("chat_build_info{")).expect("build info");
        assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
    }

    #[test]
    fn two_nodes_in_one_process_do_not_share_values() {
        let (first, second) = (Metrics::new("n1"), Metrics::new("n2"));
        first.subscriptions.set(5);
        assert!(second.encode().contains("chat_subscriptions{node=\"n2\"} 0"));
    }

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new("n1");
        metrics.rpc_finished("Login", "OK", 0.1);
        let mut families = 0;
        for family in metrics.registry.gather() {
            families += 1;
            let (name, help) = (family.name(), family.help());
            assert!(name.starts_with("chat_"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(counter, name.ends_with("_total"), "{name}");
        }
        assert_eq!(families, 21);
    }
}
