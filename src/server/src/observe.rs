//! Observability of a node: readiness, health, metrics.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    api::{ApiObserver, Fault},
    delivery::{DeliveryObserver, Hub},
    telemetry::{
        logs,
        metrics::{LeaderFigures, Metrics, RaftFigures},
    },
    web::{PageFacts, Readiness},
};
use chat::{Event, Revision, SessionId, TimeMs};
use net::tls::Tls;
use raft::{Leading, Node, NodeStatus, Observer, Proposals, Role};
use storage::{CommitObserver, FirstFailure, StorageError};
use trace::{SpanCounts, Tracer, blocking};

/// Interval of updates to readiness and to the figures of Raft.
const INTERVAL: Duration = Duration::from_millis(100);
/// Time without progress after which a node with entries to apply is not ready. A node that has caught up or makes
/// progress stays ready.
const STALLED_MAX: Duration = Duration::from_secs(5);
/// Interval of the checks of the files and their volume.
const FILES_INTERVAL: Duration = Duration::from_secs(5);
/// The files whose size is reported.
const FILES: [&str; 4] = ["log.db", "log.db-wal", "chat.db", "chat.db-wal"];

/// Forwards applied events to the subscribers, and Raft events to the metrics.
pub(super) struct Fanout {
    pub hub: Hub,
    pub metrics: Metrics,
}

impl Observer for Fanout {
    fn applied(&self, events: Vec<Arc<Event>>, closed_sessions: &[SessionId], revision: Revision, clock: TimeMs) {
        self.hub.publish(events, closed_sessions, revision, clock);
    }

    fn replaced(&self, revision: Revision, clock: TimeMs) {
        self.hub.reset(revision, clock);
        self.metrics.raft.snapshots_installed.inc();
    }

    fn compared(&self, agreed: bool) {
        match agreed {
            true => self.metrics.raft.digest_agreements.inc(),
            false => self.metrics.raft.digest_differences.inc(),
        }
    }

    fn malformed(&self, commands: u64) {
        self.metrics.raft.malformed_commands.inc_by(commands);
    }

    fn measured(&self, _entries: usize, took: Duration) {
        self.metrics.storage.apply_seconds.observe(took.as_secs_f64());
    }

    fn snapshot_built(&self, took: Duration) {
        self.metrics.raft.snapshot_build_seconds.observe(took.as_secs_f64());
    }

    fn answered(&self, peer: &str, took: Duration) {
        self.metrics.heartbeat_answered(peer, took);
    }
}

/// Forwards the cost of calls and deliveries to the metrics.
pub(super) struct Counted(pub Metrics);

impl ApiObserver for Counted {
    fn began(&self, method: &'static str) {
        self.0.rpc_began(method);
    }

    fn ended(&self, method: &'static str, code: &'static str, fault: Fault, took: Duration) {
        self.0.rpc_ended(method, code, fault.name(), took);
    }

    fn repeated(&self) {
        self.0.calls.repeated_sends.inc();
    }

    fn cursor_refused(&self) {
        self.0.delivery.resume_gaps.inc();
    }

    fn backed_up(&self) {
        self.0.backed_up();
    }
}

impl DeliveryObserver for Counted {
    fn pushed(&self, waited: Duration) {
        self.0.delivery.push_delay_seconds.observe(waited.as_secs_f64());
    }

    fn acknowledged(&self, took: Duration) {
        self.0.delivery.acknowledgement_seconds.observe(took.as_secs_f64());
    }
}

/// Forwards the cost of commits to the metrics, and a failure to the task that stops the node.
pub(super) struct Commits {
    pub metrics: Metrics,
    pub first: FirstFailure,
    pub failed: watch::Sender<bool>,
}

impl CommitObserver for Commits {
    fn committed(&self, took: Duration) {
        self.metrics.storage.state_commit_seconds.observe(took.as_secs_f64());
    }

    fn failed(&self, error: &StorageError) {
        self.first.note("chat.db: ", error);
        self.failed.send_replace(true);
    }
}

/// Reports whether the node is ready: to `/readyz` with the reason, and to the gRPC health service.
#[derive(Clone)]
pub(super) struct Ready {
    reason: watch::Sender<Readiness>,
    healthy: watch::Sender<bool>,
    metrics: Metrics,
}

impl Ready {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            reason: watch::Sender::new(Readiness::NotReady("starting: it takes part in no cluster yet".into())),
            healthy: watch::Sender::new(false),
            metrics,
        }
    }

    pub(super) fn set(&self, readiness: Readiness) {
        let healthy = readiness == Readiness::Ready;
        self.metrics.ready.set(i64::from(healthy));
        self.healthy.send_if_modified(|current| std::mem::replace(current, healthy) != healthy);
        self.reason.send_if_modified(|current| {
            let changed = *current != readiness;
            if changed {
                match &readiness {
                    Readiness::Ready => tracing::info!("This node is ready"),
                    Readiness::NotReady(reason) => tracing::info!("This node is not ready: {reason}"),
                }
                *current = readiness;
            }
            changed
        });
    }

    pub(super) fn reasons(&self) -> watch::Receiver<Readiness> {
        self.reason.subscribe()
    }

    pub(super) fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }
}

/// Tracks whether the state advances while there are entries to apply.
#[derive(Debug, Default)]
struct Progress {
    applied: u64,
    /// The time since which entries wait without progress.
    since: Option<Instant>,
}

impl Progress {
    /// The time without progress while `waiting` entries could have been applied.
    fn stalled(&mut self, applied: u64, waiting: u64, now: Instant) -> Duration {
        if waiting == 0 || applied != self.applied {
            self.since = None;
        }
        self.applied = applied;
        if waiting == 0 {
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.since.get_or_insert(now))
    }
}

/// Updates readiness and metrics, until the future is dropped.
pub(super) async fn follow(node: Node, hub: Hub, ready: Ready, metrics: Metrics, tracer: Tracer) {
    let mut counted = Counts::default();
    let mut progress = Progress::default();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let status = node.status();
        metrics.set_raft(&RaftFigures {
            term: status.term,
            is_leader: status.role == Role::Leader,
            has_leader: status.leader.is_some(),
            voters: status.members.iter().filter(|member| member.voter).count() as u64,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
        });
        metrics.set_leader(leader_figures(&node, &status).as_ref());
        metrics.storage.disk_stalled_seconds.set(node.disk().stalled.as_secs_f64());
        let space = node.space();
        metrics.storage.volume_low.set(i64::from(space.low));
        metrics.raft.growth_refused.set(i64::from(space.refusing));
        metrics.raft.proposal_queue_depth.set(i64::try_from(node.waiting_proposals()).unwrap_or(i64::MAX));
        metrics.revision.set(i64::try_from(hub.current().0.0).unwrap_or(i64::MAX));
        metrics.delivery.subscriptions.set(i64::try_from(hub.stats().subscriptions).unwrap_or(i64::MAX));
        counted = counted.go_on(Counts::of(&node, &hub, &status, &tracer), &metrics);
        let runtime = tokio::runtime::Handle::current().metrics();
        metrics.runtime.tasks.set(i64::try_from(runtime.num_alive_tasks()).unwrap_or(i64::MAX));
        metrics.runtime.queue_depth.set(i64::try_from(runtime.global_queue_depth()).unwrap_or(i64::MAX));
        let behind = node.behind();
        let waiting = status.committed_index.saturating_sub(status.applied_index);
        let stalled = progress.stalled(status.applied_index, waiting, Instant::now());
        ready.set(match (&status.leader, node.is_ready()) {
            (Some(_), _) if stalled > STALLED_MAX => Readiness::NotReady(format!(
                "{waiting} committed entries wait, and none was applied for {} s",
                stalled.as_secs()
            )),
            (_, true) => Readiness::Ready,
            (None, _) => Readiness::NotReady("there is no leader".into()),
            (Some(_), _) => Readiness::NotReady(format!("the state is {behind} entries behind")),
        });
    }
}

/// Counters that are kept elsewhere, since the start of the node.
#[derive(Default)]
struct Counts {
    leader: Option<(u64, u64)>,
    slow_cuts: u64,
    slow_disk_transfers: u64,
    proposals: Proposals,
    refusals: Vec<(&'static str, u64)>,
    busy: Duration,
    spans: SpanCounts,
    log_lines_lost: u64,
}

impl Counts {
    fn of(node: &Node, hub: &Hub, status: &NodeStatus, tracer: &Tracer) -> Self {
        let runtime = tokio::runtime::Handle::current().metrics();
        Self {
            leader: status.leader.as_ref().map(|leader| (status.term, leader.node_id)),
            slow_cuts: hub.stats().slow_cuts,
            slow_disk_transfers: node.disk().slow_disk_transfers,
            proposals: node.proposals(),
            refusals: node.refusals(),
            spans: tracer.counts(),
            log_lines_lost: logs::lost(),
            busy: (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum(),
        }
    }

    /// Adds the increments since `self` to the metrics.
    fn go_on(self, now: Self, metrics: &Metrics) -> Self {
        // Without a leader, the last one is kept, because it may be elected again.
        let leader = now.leader.or(self.leader);
        if self.leader.is_some() && leader != self.leader {
            metrics.raft.leader_changes.inc();
        }
        metrics.delivery.slow_subscriber_cuts.inc_by(now.slow_cuts.saturating_sub(self.slow_cuts));
        metrics.storage.slow_disk_transfers.inc_by(now.slow_disk_transfers.saturating_sub(self.slow_disk_transfers));
        let (new, old) = (now.proposals, self.proposals);
        metrics.add_proposals("committed", new.committed - old.committed);
        metrics.add_proposals("forwarded", new.forwarded - old.forwarded);
        metrics.add_proposals("failed", new.failed - old.failed);
        for (at, (limit, count)) in now.refusals.iter().enumerate() {
            let before = self.refusals.get(at).map_or(0, |(_, before)| *before);
            metrics.add_refusals(limit, count.saturating_sub(before));
        }
        let (new, old) = (now.spans, self.spans);
        metrics.traces.ended.inc_by(new.ended - old.ended);
        metrics.traces.exported.inc_by(new.exported - old.exported);
        metrics.traces.failed.inc_by(new.failed - old.failed);
        let lost = now.log_lines_lost.saturating_sub(self.log_lines_lost);
        if lost > 0 {
            metrics.log_lines_lost.inc_by(lost);
            tracing::warn!(lines = lost, "Log lines were lost, because the reader of standard error is too slow");
        }
        metrics.runtime.busy_seconds.inc_by(now.busy.saturating_sub(self.busy).as_secs_f64());
        Self { leader, ..now }
    }
}

fn leader_figures(node: &Node, status: &NodeStatus) -> Option<LeaderFigures> {
    let Leading { quorum_age, cluster_health } = node.leading()?;
    let tolerated = cluster_health.failures_tolerated(&status.members, node.healthy_silence_max());
    let others = status.members.iter().filter(|member| member.node_id != status.node_id);
    let peers = others.map(|member| {
        let health = cluster_health.peers.iter().find(|health| health.node_id == member.node_id);
        (member.name.clone(), health.and_then(|health| health.silent), health.and_then(|health| health.lag_entries))
    });
    Some(LeaderFigures { failures_tolerated: u64::from(tolerated), quorum_age, peers: peers.collect() })
}

/// Updates the expiry of a port's certificates, until the future is dropped.
pub(super) async fn follow_certificates(tls: Arc<Tls>, port: &'static str, metrics: Metrics) {
    let mut tick = tokio::time::interval(FILES_INTERVAL);
    loop {
        tick.tick().await;
        if let Some(at) = tls.expires_at() {
            metrics.set_certificate_expiry(port, at);
        }
    }
}

/// Updates the sizes of the files and the volume, until the future is dropped. An unresponsive volume blocks only this
/// task.
pub(super) async fn follow_files(dir: PathBuf, metrics: Metrics) {
    let mut tick = tokio::time::interval(FILES_INTERVAL);
    loop {
        tick.tick().await;
        let (dir, metrics) = (dir.clone(), metrics.clone());
        // A failed check is repeated at the next interval.
        let _ = blocking::io(move || look_at_files(&dir, &metrics)).await;
    }
}

fn look_at_files(dir: &Path, metrics: &Metrics) -> io::Result<()> {
    for file in FILES {
        // The write-ahead log may be absent.
        metrics.set_file_bytes(file, fs::metadata(dir.join(file)).map_or(0, |metadata| metadata.len()));
    }
    let snapshots = fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
    let bytes = snapshots.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
    metrics.set_file_bytes("snapshots", bytes);
    let volume = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(volume.f_frsize)).unwrap_or(i64::MAX);
    metrics.storage.volume_free_bytes.set(bytes(volume.f_bavail));
    metrics.storage.volume_size_bytes.set(bytes(volume.f_blocks));
    Ok(())
}

/// The web addresses of the members. Empty while the node has no cluster.
pub(super) fn web_addresses(node: Option<&Node>) -> Vec<String> {
    node.map(|node| node.status().members.into_iter().map(|peer| peer.web_address).collect()).unwrap_or_default()
}

/// The content of `/status`. `node` is `None` while the node has no cluster.
pub(super) fn facts(name: &str, address: &str, node: Option<&Node>, hub: &Hub) -> PageFacts {
    let status = node.map(Node::status);
    PageFacts {
        name: name.to_owned(),
        role: status.as_ref().map_or("starting".into(), |status| format!("{:?}", status.role).to_lowercase()),
        leader: status.and_then(|status| status.leader).map(|peer| format!("{} ({})", peer.name, peer.client_address)),
        revision: hub.current().0.0,
        grpc_address: address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_state_that_stands_still_while_entries_wait_is_stalled() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let mut after = |seconds, applied, waiting| {
            progress.stalled(applied, waiting, start + Duration::from_secs(seconds)).as_secs()
        };
        assert_eq!([after(0, 5, 0), after(60, 5, 0)], [0, 0], "level");
        assert_eq!([after(61, 5, 1), after(67, 5, 9)], [0, 6], "stands still");
        assert_eq!([after(68, 6, 8), after(72, 7, 7)], [0, 0], "moves");
        assert_eq!([after(77, 7, 7), after(78, 14, 0), after(99, 14, 1)], [5, 0, 0]);
    }
}
