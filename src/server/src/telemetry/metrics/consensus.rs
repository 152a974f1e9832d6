//! Consensus: the position in the log, what only a leader determines, commands, snapshots and digests.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{CALL_SECONDS, Metrics, made::MetricBuilder, signed};

/// From a flush of a fast disk to one that hangs.
const SNAPSHOT_SECONDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

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

/// Consensus.
#[derive(Debug, Clone)]
pub struct RaftMetrics {
    position: PositionMetrics,
    leader: LeaderMetrics,
    refusals: IntCounterVec,
    /// 1 while this leader refuses messages and accounts.
    pub growth_refused: IntGauge,
    proposals: IntCounterVec,
    heartbeat: HistogramVec,
    /// Changes of the leader that this node observed.
    pub leader_changes: IntCounter,
    /// Proposals that wait for their append to the log.
    pub proposal_queue_depth: IntGauge,
    /// Seconds to flush the state, so that the log can be cut.
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

impl RaftMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            position: PositionMetrics::new(new),
            leader: LeaderMetrics::new(new),
            proposals: new.counters(
                "proposals_total",
                "Proposal attempts by outcome: committed by this leader, forwarded to it, or failed (most are \
                 retried).",
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
                "Duration of flushing the state, so that the log can be cut.",
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

/// The role of this node, and its position in the log.
#[derive(Debug, Clone)]
struct PositionMetrics {
    term: IntGauge,
    is_leader: IntGauge,
    has_leader: IntGauge,
    voters: IntGauge,
    last_log_index: IntGauge,
    committed_index: IntGauge,
    applied_index: IntGauge,
}

impl PositionMetrics {
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
        }
    }

    fn set(&self, figures: &RaftFigures) {
        self.term.set(signed(figures.term));
        self.is_leader.set(i64::from(figures.is_leader));
        self.has_leader.set(i64::from(figures.has_leader));
        self.voters.set(signed(figures.voters));
        self.last_log_index.set(signed(figures.last_log_index));
        self.committed_index.set(signed(figures.committed_index));
        self.applied_index.set(signed(figures.applied_index));
    }
}

/// What only a leader can determine. Absent on other nodes.
#[derive(Debug, Clone)]
struct LeaderMetrics {
    failures_tolerated: IntGaugeVec,
    quorum_age: GaugeVec,
    peer_silence: GaugeVec,
    peer_lag: IntGaugeVec,
    peers_shown: Arc<Mutex<BTreeSet<String>>>,
}

impl LeaderMetrics {
    fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
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
        }
    }

    /// Sets the figures; `None` on a node that does not lead.
    fn set(&self, figures: Option<&LeaderFigures>) {
        const NO_LABELS: [&str; 0] = [];
        let Some(figures) = figures else {
            self.failures_tolerated.reset();
            self.quorum_age.reset();
            self.show_peers(&[]);
            return;
        };
        self.failures_tolerated.with_label_values(&NO_LABELS).set(signed(figures.failures_tolerated));
        self.quorum_age.with_label_values(&NO_LABELS).set(figures.quorum_age.as_secs_f64());
        self.show_peers(&figures.peers);
    }

    /// Updates the series of the peers: one for each peer with a known value, none for former peers. The series of a
    /// remaining peer is never absent in between.
    fn show_peers(&self, peers: &[(String, Option<Duration>, Option<u64>)]) {
        let mut shown = self.peers_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = peers.iter().map(|(name, ..)| name.clone()).collect();
        for gone in shown.difference(&now) {
            // The peer may have had only one of the two.
            let _ = self.peer_silence.remove_label_values(&[gone]);
            let _ = self.peer_lag.remove_label_values(&[gone]);
        }
        for (name, silence, lag) in peers {
            if let Some(silence) = silence {
                self.peer_silence.with_label_values(&[name]).set(silence.as_secs_f64());
            }
            if let Some(lag) = lag {
                self.peer_lag.with_label_values(&[name]).set(signed(*lag));
            }
        }
        *shown = now;
    }
}

impl Metrics {
    /// Sets the figures of Raft.
    pub fn set_raft(&self, figures: &RaftFigures) {
        self.raft.position.set(figures);
    }

    /// Sets the figures of the leader; `None` on all other nodes.
    pub fn set_leader(&self, figures: Option<&LeaderFigures>) {
        self.raft.leader.set(figures);
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
}
