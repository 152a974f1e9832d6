//! Every metric of the node, registered once, in a registry that this module's [`Metrics`] owns.
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

use made::MetricBuilder;

/// The media type of the text of [`Metrics::encode`].
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

/// The figures of Raft at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RaftFigures {
    /// Current term.
    pub term: u64,
    /// Whether this node is the leader.
    pub is_leader: bool,
    /// Whether a leader is known.
    pub has_leader: bool,
    /// Voters of the cluster.
    pub voters: u64,
    /// Index of the last entry in the log.
    pub last_log_index: u64,
    /// Index of the last entry known to be committed.
    pub committed_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
}

/// The figures that only the leader has, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaderFigures {
    /// Voters that may still fail before the quorum is lost.
    pub failures_tolerated: u64,
    /// Time since a majority confirmed this leader.
    pub quorum_age: Duration,
    /// The other nodes by name, with the time since the last answer and the number of missing entries; `None` if
    /// unknown.
    pub peers: Vec<(String, Option<Duration>, Option<u64>)>,
}

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

/// Consensus.
#[derive(Debug, Clone)]
pub struct RaftMetrics {
    term: IntGauge,
    is_leader: IntGauge,
    has_leader: IntGauge,
    voters: IntGauge,
    last_log_index: IntGauge,
    committed_index: IntGauge,
    applied_index: IntGauge,
    failures_tolerated: IntGaugeVec,
    quorum_age: GaugeVec,
    peer_silence: GaugeVec,
    peer_lag: IntGaugeVec,
    peers_shown: Arc<Mutex<BTreeSet<String>>>,
    refusals: IntCounterVec,
    /// 1 while this leader refuses messages and accounts.
    pub growth_refused: IntGauge,
    proposals: IntCounterVec,
    heartbeat: HistogramVec,
    /// Changes of the leader that this node observed.
    pub leader_changes: IntCounter,
    /// Proposals that wait for their append to the log.
    pub proposal_queue_depth: IntGauge,
    /// Seconds to build a snapshot.
    pub snapshot_build_seconds: Histogram,
    /// Snapshots of the leader that were installed on this node.
    pub snapshots_installed: IntCounter,
    /// Comparisons of digests in which this node agreed with a majority.
    pub digest_agreements: IntCounter,
    /// Nodes that differed from a majority, and comparisons without a majority.
    pub digest_differences: IntCounter,
    /// Commands in the log that no version can decode.
    pub malformed_commands: IntCounter,
}

/// Calls of clients and their results.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    /// Messages that were sent again under the same id.
    pub repeated_sends: IntCounter,
    backup_time: GaugeVec,
    certificate_expiry: GaugeVec,
    peers_insecure: IntGauge,
    connections_dropped: IntCounterVec,
}

/// Subscriptions.
#[derive(Debug, Clone)]
pub struct DeliveryMetrics {
    /// Open subscriptions.
    pub subscriptions: IntGauge,
    /// Subscriptions that were cut because their reader was too slow.
    pub slow_subscriber_cuts: IntCounter,
    /// Cursors that could not be resumed.
    pub resume_gaps: IntCounter,
    /// Seconds from the commit of an event to its push.
    pub push_delay_seconds: Histogram,
    /// Seconds from the push of a message to its acknowledgement.
    pub acknowledgement_seconds: Histogram,
}

/// Files and their volume.
#[derive(Debug, Clone)]
pub struct StorageMetrics {
    /// Seconds for one commit of `log.db`, including fsync.
    pub log_fsync_seconds: Histogram,
    /// Entries in one such commit.
    pub log_group_entries: Histogram,
    /// Seconds to apply committed entries to the state.
    pub apply_seconds: Histogram,
    /// Seconds for one commit of `chat.db`.
    pub state_commit_seconds: Histogram,
    /// Seconds since the start of the disk write in progress.
    pub disk_stalled_seconds: Gauge,
    /// Transfers of leadership because this node's disk was slow.
    pub slow_disk_transfers: IntCounter,
    file_bytes: IntGaugeVec,
    /// Free bytes of the data directory's volume.
    pub volume_free_bytes: IntGauge,
    /// 1 while less than the reserve is free.
    pub volume_low: IntGauge,
    /// Size of that volume in bytes.
    pub volume_size_bytes: IntGauge,
}

/// Spans. Ended spans that were neither exported nor failed are queued, or were dropped from a full queue.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    /// Ended spans of sampled traces.
    pub ended: IntCounter,
    /// Spans that the collector has accepted.
    pub exported: IntCounter,
    /// Spans that the collector did not accept.
    pub failed: IntCounter,
}

/// The asynchronous runtime.
#[derive(Debug, Clone)]
pub struct RuntimeMetrics {
    /// Tasks of the runtime that are alive.
    pub tasks: IntGauge,
    /// Tasks that wait for a worker.
    pub queue_depth: IntGauge,
    /// Seconds that the workers were busy.
    pub busy_seconds: Counter,
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
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        new.info("start_time_seconds", "Start time of the process, in seconds since the Unix epoch.", &[])
            .set(now.as_secs_f64());
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

    /// Sets the figures of Raft.
    pub fn set_raft(&self, figures: &RaftFigures) {
        self.raft.term.set(signed(figures.term));
        self.raft.is_leader.set(i64::from(figures.is_leader));
        self.raft.has_leader.set(i64::from(figures.has_leader));
        self.raft.voters.set(signed(figures.voters));
        self.raft.last_log_index.set(signed(figures.last_log_index));
        self.raft.committed_index.set(signed(figures.committed_index));
        self.raft.applied_index.set(signed(figures.applied_index));
    }

    /// Sets the figures of the leader; `None` on all other nodes.
    pub fn set_leader(&self, figures: Option<&LeaderFigures>) {
        const NO_LABELS: [&str; 0] = [];
        let Some(figures) = figures else {
            self.raft.failures_tolerated.reset();
            self.raft.quorum_age.reset();
            self.show_peers(&[]);
            return;
        };
        self.raft.failures_tolerated.with_label_values(&NO_LABELS).set(signed(figures.failures_tolerated));
        self.raft.quorum_age.with_label_values(&NO_LABELS).set(figures.quorum_age.as_secs_f64());
        self.show_peers(&figures.peers);
    }

    /// Updates the series of the peers: one for each peer with a known value, none for former peers. The series of a
    /// remaining peer is never absent in between.
    fn show_peers(&self, peers: &[(String, Option<Duration>, Option<u64>)]) {
        let mut shown = self.raft.peers_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = peers.iter().map(|(name, ..)| name.clone()).collect();
        for gone in shown.difference(&now) {
            // The peer may have had only one of the two.
            let _ = self.raft.peer_silence.remove_label_values(&[gone]);
            let _ = self.raft.peer_lag.remove_label_values(&[gone]);
        }
        for (name, silence, lag) in peers {
            if let Some(silence) = silence {
                self.raft.peer_silence.with_label_values(&[name]).set(silence.as_secs_f64());
            }
            if let Some(lag) = lag {
                self.raft.peer_lag.with_label_values(&[name]).set(signed(*lag));
            }
        }
        *shown = now;
    }

    /// Counts the start of a call. `method` is a method name of the program, never text of the caller.
    pub fn rpc_began(&self, method: &'static str) {
        self.calls.in_flight.with_label_values(&[method]).inc();
    }

    /// Counts the end of a call. `method` is as for [`Self::rpc_began`], `code` the name of a status code, such as
    /// `UNAVAILABLE`, and `fault` the party at fault.
    pub fn rpc_ended(&self, method: &'static str, code: &'static str, fault: &'static str, took: Duration) {
        self.calls.in_flight.with_label_values(&[method]).dec();
        self.calls.requests.with_label_values(&[method, code, fault]).inc();
        self.calls.duration.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// Adds `more` commands with `outcome`.
    pub fn add_proposals(&self, outcome: &'static str, more: u64) {
        self.raft.proposals.with_label_values(&[outcome]).inc_by(more);
    }

    /// Adds `more` commands that were rejected because of `limit`.
    pub fn add_refusals(&self, limit: &'static str, more: u64) {
        self.raft.refusals.with_label_values(&[limit]).inc_by(more);
    }

    /// Records the time in which a member answered a heartbeat.
    pub fn heartbeat_answered(&self, peer: &str, took: Duration) {
        self.raft.heartbeat.with_label_values(&[peer]).observe(took.as_secs_f64());
    }

    /// Records that a backup was made now.
    pub fn backed_up(&self) {
        const NO_LABELS: [&str; 0] = [];
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.calls.backup_time.with_label_values(&NO_LABELS).set(now.as_secs_f64());
    }

    /// Sets whether the peer port accepts calls from any host.
    pub fn set_peers_insecure(&self, insecure: bool) {
        self.calls.peers_insecure.set(i64::from(insecure));
    }

    /// Sets the earliest expiry of the certificates of a port.
    pub fn set_certificate_expiry(&self, port: &'static str, at: SystemTime) {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.calls.certificate_expiry.with_label_values(&[port]).set(at.as_secs_f64());
    }

    /// Creates the series of dropped connections at zero. A series that begins with its first increment hides that
    /// increment from rates.
    pub fn may_drop_connections(&self, port: &'static str, reason: &'static str) {
        self.calls.connections_dropped.with_label_values(&[port, reason]);
    }

    /// Counts a connection that its gate has dropped.
    pub fn connection_dropped(&self, port: &'static str, reason: &'static str) {
        self.calls.connections_dropped.with_label_values(&[port, reason]).inc();
    }

    /// Sets the size of a file.
    pub fn set_file_bytes(&self, file: &'static str, bytes: u64) {
        self.storage.file_bytes.with_label_values(&[file]).set(signed(bytes));
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

impl RaftMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            term: new.gauge("raft_term", "Current Raft term."),
            is_leader: new.gauge("raft_is_leader", "1 on the leader, else 0."),
            has_leader: new.gauge("raft_has_leader", "1 while this node knows a leader, else 0."),
            voters: new.gauge("raft_voters", "Members with a vote, as known to this node."),
            last_log_index: new.gauge("raft_last_log_index", "Index of the last entry in this node's log."),
            committed_index: new
                .gauge("raft_committed_index", "Index of the last entry known to be durable on a majority."),
            applied_index: new.gauge("raft_applied_index", "Index of the last entry applied to this node's state."),
            failures_tolerated: new.gauges(
                "raft_failures_tolerated",
                "Voters that can still fail without losing the majority; on the leader only.",
                &[],
            ),
            quorum_age: new.float_gauges(
                "raft_quorum_age_seconds",
                "Time since a majority last acknowledged this leader; on the leader only.",
                &[],
            ),
            peer_silence: new.float_gauges(
                "raft_peer_silence_seconds",
                "Time since a member last answered the leader; on the leader only.",
                &["peer"],
            ),
            peer_lag: new.gauges(
                "raft_peer_lag_entries",
                "Log entries that a member has not acknowledged yet; on the leader only.",
                &["peer"],
            ),
            peers_shown: Arc::default(),
            proposals: new.counters(
                "proposals_total",
                "Proposal attempts by outcome: committed by this leader, forwarded to it, or failed (most are retried).",
                &["outcome"],
            ),
            refusals: new.counters(
                "commands_refused_total",
                "Commands and receipts that this node rejected, by limit: a rate of the account, or low storage.",
                &["limit"],
            ),
            growth_refused: new.gauge(
                "growth_refused",
                "Whether this leader rejects messages and accounts because volumes are low on space.",
            ),
            heartbeat: new.histograms(
                "raft_heartbeat_seconds",
                "Round trip time of this leader's heartbeats, by member.",
                &CALL_SECONDS,
                &["peer"],
            ),
            leader_changes: new.counter("raft_leader_changes_total", "Leader changes observed by this node."),
            proposal_queue_depth: new
                .gauge("proposal_queue_depth", "Commands on this node that wait to be appended to the log."),
            snapshot_build_seconds: new.histogram(
                "snapshot_build_seconds",
                "Duration of building a snapshot of the state.",
                &SNAPSHOT_SECONDS,
            ),
            snapshots_installed: new
                .counter("snapshots_installed_total", "Snapshots of the leader that were installed on this node."),
            digest_agreements: new.counter(
                "digest_agreements_total",
                "Comparisons of the nodes' states in which a majority agreed with this node.",
            ),
            digest_differences: new.counter(
                "digest_differences_total",
                "Nodes whose state differed from that of a majority, and comparisons without a majority.",
            ),
            malformed_commands: new.counter(
                "malformed_commands_total",
                "Malformed commands in the log, which were rejected; a member appended them.",
            ),
        }
    }
}

impl CallMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            requests: new.counters(
                "rpc_requests_total",
                "Finished calls by method, gRPC status code and fault: none, the caller or the service.",
                &["method", "code", "fault"],
            ),
            duration: new.histograms(
                "rpc_duration_seconds",
                "Time from the arrival of a call to its answer, or to the start of its stream.",
                &CALL_SECONDS,
                &["method"],
            ),
            in_flight: new.gauges("rpc_in_flight", "Calls that have arrived and are not answered; open streams do not count.", &["method"]),
            repeated_sends: new.counter(
                "repeated_sends_total",
                "Sends repeated under the same id, which got the first answer again.",
            ),
            certificate_expiry: new.float_gauges(
                "tls_certificate_expiry_timestamp_seconds",
                "Earliest expiry of the certificates that a port presents, in seconds since the Unix epoch; absent without TLS.",
                &["port"],
            ),
            peers_insecure: new.gauge(
                "peers_insecure",
                "Whether the peer port trusts every host: 1 with CHAT_INSECURE_PEERS=1 and neither secret nor certificates.",
            ),
            connections_dropped: new.counters(
                "connections_dropped_total",
                "Connections that were dropped to make room for another one, or because the client did not read an answer.",
                &["port", "reason"],
            ),
            backup_time: new.float_gauges(
                "last_backup_timestamp_seconds",
                "Time of the last backup from this node, in seconds since the Unix epoch; absent before the first.",
                &[],
            ),
        }
    }
}

impl DeliveryMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            subscriptions: new.gauge("subscriptions", "Open subscriptions on this node."),
            slow_subscriber_cuts: new
                .counter("slow_subscriber_cuts_total", "Subscriptions that were cut off because their reader was too slow."),
            resume_gaps: new.counter(
                "resume_gaps_total",
                "Subscriptions that asked to resume after a revision that this cluster does not have.",
            ),
            push_delay_seconds: new.histogram(
                "push_delay_seconds",
                "Time from the application of an event on this node to its push into a subscriber's stream.",
                &DISK_SECONDS,
            ),
            acknowledgement_seconds: new.histogram(
                "acknowledgement_seconds",
                "Time from the push of a message to the commit of its acknowledgement; sampled, one message per subscription at a time.",
                &CALL_SECONDS,
            ),
        }
    }
}

impl StorageMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            log_fsync_seconds: new.histogram(
                "log_fsync_seconds",
                "Duration of a group commit to the log, including fsync.",
                &DISK_SECONDS,
            ),
            log_group_entries: new.histogram("log_group_entries", "Entries in one group commit.", &GROUP_ENTRIES),
            apply_seconds: new.histogram(
                "apply_seconds",
                "Duration of applying a batch of committed entries to the state.",
                &DISK_SECONDS,
            ),
            state_commit_seconds: new.histogram(
                "state_commit_seconds",
                "Duration of a commit of the state, including the checkpoint.",
                &DISK_SECONDS,
            ),
            disk_stalled_seconds: new.info(
                "disk_stalled_seconds",
                "Time that the current write to log.db or chat.db has taken so far; 0 when there is none.",
                &[],
            ),
            slow_disk_transfers: new.counter(
                "slow_disk_transfers_total",
                "Leadership transfers away from this node because its disk was slow and a majority's was not.",
            ),
            file_bytes: new.gauges("file_bytes", "Size of a file in the data directory.", &["file"]),
            volume_free_bytes: new.gauge("volume_free_bytes", "Free bytes of the volume of the data directory."),
            volume_low: new.gauge("volume_low", "Whether the volume has less free space than its reserve."),
            volume_size_bytes: new.gauge("volume_size_bytes", "Size of the volume of the data directory."),
        }
    }
}

impl TraceMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            ended: new.counter("trace_spans_total", "Spans of sampled traces that ended here."),
            exported: new.counter("trace_spans_exported_total", "Spans that the trace collector accepted."),
            failed: new.counter(
                "trace_spans_failed_total",
                "Spans that the trace collector rejected, or that could not be sent to it.",
            ),
        }
    }
}

impl RuntimeMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            tasks: new.gauge("runtime_tasks", "Live tasks of the asynchronous runtime."),
            queue_depth: new.gauge("runtime_queue_depth", "Tasks that wait in the runtime's shared queue."),
            busy_seconds: new.seconds("runtime_busy_seconds_total", "Total busy time of the runtime's workers."),
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
