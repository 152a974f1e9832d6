//! Every metric of the node, registered once, in one registry that this value owns.
//!
//! Names follow Prometheus: prefix `chat_`, base units (seconds, bytes), `_total` for counters; those of the process have
//! the names that every dashboard knows (`process_`). Labels are `method`, `code`, `peer`, `file`, `outcome`, and constant on
//! all metrics `node`; never a user, a conversation or an id that grows without bound. The parts of a node are handed clones
//! of single metrics; none of them registers one.
//!
//! What only a leader knows is there on the leader alone: elsewhere the metric is absent, as a zero would be a lie.
//!
//! No exemplars: the text format of the `prometheus` crate has none, and a trace is found by the id in a log line or an
//! error.

mod made;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use prometheus::{
    Counter, Encoder as _, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use made::Maker;

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From the fastest fsync of an NVMe drive to a stalled network disk.
const DISK_SECONDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0];
/// From an answer out of memory to the longest deadline.
const CALL_SECONDS: [f64; 15] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Sizes of a group commit.
const GROUP_ENTRIES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// From a small state to one of many gigabytes.
const SNAPSHOT_SECONDS: [f64; 9] = [0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0];

/// What the consensus says of itself, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RaftFigures {
    /// Current term.
    pub term: u64,
    /// This node leads.
    pub is_leader: bool,
    /// A leader is known.
    pub has_leader: bool,
    /// Voters of the cluster.
    pub voters: u64,
    /// Index of the last entry in the log.
    pub last_log_index: u64,
    /// Index of the last entry known to be on a majority.
    pub committed_index: u64,
    /// Index of the last entry in the state machine.
    pub applied_index: u64,
}

/// What the leader knows of the others, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaderFigures {
    /// Voters that may still fail before there is no majority.
    pub failures_tolerated: u64,
    /// Time since a majority was known to follow this leader.
    pub quorum_age: Duration,
    /// All others, by name: time since the last answer, entries to fetch; `None` when it is not known.
    pub peers: Vec<(String, Option<Duration>, Option<u64>)>,
}

/// The metrics of one node. Cloning gives another handle to the same values.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    raft_term: IntGauge,
    raft_is_leader: IntGauge,
    raft_has_leader: IntGauge,
    raft_voters: IntGauge,
    raft_last_log_index: IntGauge,
    raft_committed_index: IntGauge,
    raft_applied_index: IntGauge,
    raft_failures_tolerated: IntGaugeVec,
    raft_quorum_age: GaugeVec,
    raft_peer_silence: GaugeVec,
    raft_peer_lag: IntGaugeVec,
    peers_shown: Arc<Mutex<BTreeSet<String>>>,
    rpc_requests: IntCounterVec,
    rpc_duration: HistogramVec,
    rpc_in_flight: IntGaugeVec,
    file_bytes: IntGaugeVec,
    proposals: IntCounterVec,
    heartbeat: HistogramVec,
    backup_time: GaugeVec,
    /// 1 while the node says that it is ready.
    pub ready: IntGauge,
    /// Changes of the leader that this node saw.
    pub leader_changes: IntCounter,
    /// Revision of the state.
    pub revision: IntGauge,
    /// Messages that were sent again under the same id.
    pub repeated_sends: IntCounter,
    /// Open subscriptions.
    pub subscriptions: IntGauge,
    /// Subscriptions cut off because their reader was slow.
    pub slow_subscriber_cuts: IntCounter,
    /// Cursors that could not be honoured.
    pub resume_gaps: IntCounter,
    /// Seconds from the commit of an event to its push.
    pub push_delay_seconds: Histogram,
    /// Seconds from the push of a message to its acknowledgement.
    pub acknowledgement_seconds: Histogram,
    /// Seconds that one commit of `log.db` took, fsync included.
    pub log_fsync_seconds: Histogram,
    /// Entries that one such commit held.
    pub log_group_entries: Histogram,
    /// Seconds that applying what was committed to the state took.
    pub apply_seconds: Histogram,
    /// Seconds that one commit of `chat.db` took.
    pub state_commit_seconds: Histogram,
    /// Seconds that building a snapshot took.
    pub snapshot_build_seconds: Histogram,
    /// Snapshots of the leader that were installed here.
    pub snapshots_installed: IntCounter,
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
    /// Bytes of the data directory's volume that are free.
    pub volume_free_bytes: IntGauge,
    /// Bytes of that volume.
    pub volume_size_bytes: IntGauge,
    /// Tasks of the runtime that are alive.
    pub runtime_tasks: IntGauge,
    /// Tasks that wait for a worker.
    pub runtime_queue_depth: IntGauge,
    /// Seconds that the workers were busy.
    pub runtime_busy_seconds: Counter,
}

impl Metrics {
    /// All metrics at zero, with `node` as a constant label.
    pub fn new(node: &str) -> Self {
        let labels = HashMap::from([("node".to_owned(), node.to_owned())]);
        let registry =
            Registry::new_custom(Some("chat".to_owned()), Some(labels.clone())).expect("the prefix is not empty");
        let process = Registry::new_custom(None, Some(labels)).expect("no prefix");
        made::register_process(&process);
        let new = Maker { registry: &registry };
        new.info(
            "build_info",
            "Always 1; the label tells the version that runs.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )
        .set(1.0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        new.info("start_time_seconds", "When the process started, in seconds since the Unix epoch.", &[])
            .set(now.as_secs_f64());
        Self {
            raft_term: new.gauge("raft_term", "Current term of the consensus."),
            raft_is_leader: new.gauge("raft_is_leader", "1 on the node that leads, else 0."),
            raft_has_leader: new.gauge("raft_has_leader", "1 while this node knows a leader, else 0."),
            raft_voters: new.gauge("raft_voters", "Members with a vote, as this node knows them."),
            raft_last_log_index: new.gauge("raft_last_log_index", "Index of the last entry in this node's log."),
            raft_committed_index: new
                .gauge("raft_committed_index", "Index of the last entry known to be on disk on a majority."),
            raft_applied_index: new.gauge("raft_applied_index", "Index of the last entry in this node's state."),
            raft_failures_tolerated: new.gauges(
                "raft_failures_tolerated",
                "Voters that may still fail before there is no majority; on the leader only.",
                &[],
            ),
            raft_quorum_age: new.float_gauges(
                "raft_quorum_age_seconds",
                "Time since a majority was known to follow this leader; on the leader only.",
                &[],
            ),
            raft_peer_silence: new.float_gauges(
                "raft_peer_silence_seconds",
                "Time since a member last answered the leader; on the leader only.",
                &["peer"],
            ),
            raft_peer_lag: new.gauges(
                "raft_peer_lag_entries",
                "Log entries that a member has yet to acknowledge; on the leader only.",
                &["peer"],
            ),
            peers_shown: Arc::default(),
            rpc_requests: new.counters(
                "rpc_requests_total",
                "Finished calls by method and gRPC status code.",
                &["method", "code"],
            ),
            rpc_duration: new.histograms(
                "rpc_duration_seconds",
                "Time from a call's arrival to its answer, or to the start of its stream.",
                &CALL_SECONDS,
                &["method"],
            ),
            rpc_in_flight: new.gauges("rpc_in_flight", "Calls that have arrived and are not answered.", &["method"]),
            file_bytes: new.gauges("file_bytes", "Size of a file of the data directory.", &["file"]),
            proposals: new.counters(
                "proposals_total",
                "Commands by what became of an attempt: committed by this leader, forwarded to it, or failed (most are tried again).",
                &["outcome"],
            ),
            heartbeat: new.histograms(
                "raft_heartbeat_seconds",
                "Time from a heartbeat of this leader to a member's answer.",
                &CALL_SECONDS,
                &["peer"],
            ),
            backup_time: new.float_gauges(
                "last_backup_timestamp_seconds",
                "When a backup was last made from this node, in seconds since the Unix epoch; absent before.",
                &[],
            ),
            ready: new.gauge("ready", "1 while this node says that it is ready for clients, else 0."),
            leader_changes: new.counter("raft_leader_changes_total", "Times that this node saw another leader."),
            revision: new.gauge("revision", "Revision of this node's state."),
            repeated_sends: new.counter(
                "repeated_sends_total",
                "Messages that were sent again under the same id, and answered as the first time.",
            ),
            subscriptions: new.gauge("subscriptions", "Open subscriptions on this node."),
            slow_subscriber_cuts: new
                .counter("slow_subscriber_cuts_total", "Subscriptions cut off because their reader did not keep up."),
            resume_gaps: new.counter(
                "resume_gaps_total",
                "Subscriptions that wanted to go on after a revision that this cluster does not have.",
            ),
            push_delay_seconds: new.histogram(
                "push_delay_seconds",
                "Time from an event's commit on this node to its push into a subscriber's stream.",
                &DISK_SECONDS,
            ),
            acknowledgement_seconds: new.histogram(
                "acknowledgement_seconds",
                "Time from a message's push to the commit of its recipient's acknowledgement; of one message of a subscription at a time.",
                &CALL_SECONDS,
            ),
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
            snapshot_build_seconds: new.histogram(
                "snapshot_build_seconds",
                "Time to build a snapshot of the state.",
                &SNAPSHOT_SECONDS,
            ),
            snapshots_installed: new
                .counter("snapshots_installed_total", "Snapshots of the leader that replaced this node's state."),
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
            volume_free_bytes: new.gauge("volume_free_bytes", "Free bytes of the volume of the data directory."),
            volume_size_bytes: new.gauge("volume_size_bytes", "Bytes of the volume of the data directory."),
            runtime_tasks: new.gauge("runtime_tasks", "Tasks of the asynchronous runtime that are alive."),
            runtime_queue_depth: new.gauge("runtime_queue_depth", "Tasks in the runtime's shared queue, which wait for a worker."),
            runtime_busy_seconds: new.seconds("runtime_busy_seconds_total", "Time that the runtime's workers were busy, added up."),
            registry,
            process,
        }
    }

    /// Sets the figures of the consensus.
    pub fn set_raft(&self, figures: &RaftFigures) {
        self.raft_term.set(signed(figures.term));
        self.raft_is_leader.set(i64::from(figures.is_leader));
        self.raft_has_leader.set(i64::from(figures.has_leader));
        self.raft_voters.set(signed(figures.voters));
        self.raft_last_log_index.set(signed(figures.last_log_index));
        self.raft_committed_index.set(signed(figures.committed_index));
        self.raft_applied_index.set(signed(figures.applied_index));
    }

    /// Sets what the leader knows; `None` on all others.
    pub fn set_leader(&self, figures: Option<&LeaderFigures>) {
        const NO_LABELS: [&str; 0] = [];
        let Some(figures) = figures else {
            self.raft_failures_tolerated.reset();
            self.raft_quorum_age.reset();
            self.show_peers(&[]);
            return;
        };
        self.raft_failures_tolerated.with_label_values(&NO_LABELS).set(signed(figures.failures_tolerated));
        self.raft_quorum_age.with_label_values(&NO_LABELS).set(figures.quorum_age.as_secs_f64());
        self.show_peers(&figures.peers);
    }

    /// One series for each peer of whom something is known, and none for those that are no more. What stays is never absent
    /// in between.
    fn show_peers(&self, peers: &[(String, Option<Duration>, Option<u64>)]) {
        let mut shown = self.peers_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = peers.iter().map(|(name, ..)| name.clone()).collect();
        for gone in shown.difference(&now) {
            // It may have had only one of the two.
            let _ = self.raft_peer_silence.remove_label_values(&[gone]);
            let _ = self.raft_peer_lag.remove_label_values(&[gone]);
        }
        for (name, silence, lag) in peers {
            if let Some(silence) = silence {
                self.raft_peer_silence.with_label_values(&[name]).set(silence.as_secs_f64());
            }
            if let Some(lag) = lag {
                self.raft_peer_lag.with_label_values(&[name]).set(signed(*lag));
            }
        }
        *shown = now;
    }

    /// A call arrived. `method` is a method of our services: it comes from the program, never from the caller.
    pub fn rpc_began(&self, method: &'static str) {
        self.rpc_in_flight.with_label_values(&[method]).inc();
    }

    /// A call ended. `method` as before, and `code` a status code's name, such as `UNAVAILABLE`.
    pub fn rpc_ended(&self, method: &'static str, code: &'static str, took: Duration) {
        self.rpc_in_flight.with_label_values(&[method]).dec();
        self.rpc_requests.with_label_values(&[method, code]).inc();
        self.rpc_duration.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// Adds to the commands that came to `outcome`.
    pub fn add_proposals(&self, outcome: &'static str, more: u64) {
        self.proposals.with_label_values(&[outcome]).inc_by(more);
    }

    /// A member answered a heartbeat.
    pub fn heartbeat_answered(&self, peer: &str, took: Duration) {
        self.heartbeat.with_label_values(&[peer]).observe(took.as_secs_f64());
    }

    /// A backup was made now.
    pub fn backed_up(&self) {
        const NO_LABELS: [&str; 0] = [];
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.backup_time.with_label_values(&NO_LABELS).set(now.as_secs_f64());
    }

    /// Sets the size of a file.
    pub fn set_file_bytes(&self, file: &'static str, bytes: u64) {
        self.file_bytes.with_label_values(&[file]).set(signed(bytes));
    }

    /// Everything, in the text format ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        let mut out = Vec::new();
        match TextEncoder::new().encode(&families, &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            // A comment is valid in the format, and missing metrics raise the alerts that watch for absence.
            Err(error) => format!("# metrics could not be encoded: {}\n", error.to_string().replace('\n', " ")),
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }

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
        metrics.rpc_began("SendMessage");
        metrics.rpc_began("SendMessage");
        metrics.rpc_ended("SendMessage", "OK", Duration::from_millis(2));
        metrics.clone().subscriptions.inc();
        metrics.log_fsync_seconds.observe(0.001);
        let text = metrics.encode();
        for line in [
            "chat_raft_term{node=\"n1\"} 3",
            "chat_raft_is_leader{node=\"n1\"} 1",
            "chat_raft_applied_index{node=\"n1\"} 7",
            "chat_rpc_requests_total{code=\"OK\",method=\"SendMessage\",node=\"n1\"} 1",
            "chat_rpc_duration_seconds_count{method=\"SendMessage\",node=\"n1\"} 1",
            "chat_rpc_in_flight{method=\"SendMessage\",node=\"n1\"} 1",
            "chat_subscriptions{node=\"n1\"} 1",
            "chat_log_fsync_seconds_count{node=\"n1\"} 1",
        ] {
            has(&text, line);
        }
        let build = text.lines().find(|line| line.starts_with("chat_build_info{")).expect("build info");
        assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
        assert!(text.contains("\nprocess_resident_memory_bytes{node=\"n1\"} "), "{text}");
    }

    #[test]
    fn two_nodes_in_one_process_do_not_share_values() {
        let (first, second) = (Metrics::new("n1"), Metrics::new("n2"));
        first.subscriptions.set(5);
        has(&second.encode(), "chat_subscriptions{node=\"n2\"} 0");
    }

    #[test]
    fn what_a_leader_knows_is_absent_elsewhere() {
        let metrics = Metrics::new("n1");
        let peers = |names: &[(&str, Option<u64>)]| {
            names.iter().map(|(name, lag)| ((*name).to_owned(), Some(Duration::from_secs(1)), *lag)).collect()
        };
        let figures =
            LeaderFigures { failures_tolerated: 0, peers: peers(&[("n2", Some(9)), ("n3", None)]), ..<_>::default() };
        metrics.set_leader(Some(&figures));
        let text = metrics.encode();
        has(&text, "chat_raft_failures_tolerated{node=\"n1\"} 0");
        has(&text, "chat_raft_peer_lag_entries{peer=\"n2\",node=\"n1\"} 9");
        has(&text, "chat_raft_peer_silence_seconds{peer=\"n3\",node=\"n1\"} 1");
        assert!(!text.contains("lag_entries{peer=\"n3\""), "{text}");

        metrics.set_leader(Some(&LeaderFigures { peers: peers(&[("n3", Some(0))]), ..figures }));
        let text = metrics.encode();
        has(&text, "chat_raft_peer_lag_entries{peer=\"n3\",node=\"n1\"} 0");
        assert!(!text.contains("peer=\"n2\""), "it was removed: {text}");
        metrics.set_leader(None);
        let text = metrics.encode();
        assert!(!text.contains("chat_raft_failures_tolerated") && !text.contains("peer="), "{text}");
    }

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new("n1");
        metrics.rpc_began("Login");
        metrics.rpc_ended("Login", "OK", Duration::from_millis(100));
        metrics.set_leader(Some(&LeaderFigures {
            peers: vec![("n2".into(), Some(Duration::ZERO), Some(0))],
            ..<_>::default()
        }));
        metrics.add_proposals("failed", 1);
        metrics.heartbeat_answered("n2", Duration::ZERO);
        metrics.set_file_bytes("log.db", 1);
        metrics.backed_up();
        let mut families = 0;
        for family in metrics.registry.gather() {
            families += 1;
            let (name, help) = (family.name(), family.help());
            assert!(name.starts_with("chat_"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(counter, name.ends_with("_total"), "{name}");
        }
        assert_eq!(families, 45, "one was added or lost: count again, and look whether each was seen here");
        assert!(metrics.process.gather().iter().all(|family| family.name().starts_with("process_")));
    }
}
