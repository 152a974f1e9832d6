//! What is told to those who watch the node: readiness, health, metrics.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    chat::{Event, Revision, SessionId, TimeMs},
    delivery::Hub,
    raft::{AppliedSink, Node, Role},
    storage::{CommitObserver, FirstFailure, StorageError},
    telemetry::metrics::{Metrics, RaftFigures},
    web::{PageFacts, Readiness},
};

/// How often readiness and the figures of the consensus are brought up to date.
const INTERVAL: Duration = Duration::from_millis(100);

/// Hands what was applied to the subscribers, and its cost to the metrics.
pub(super) struct Fanout {
    pub hub: Hub,
    pub metrics: Metrics,
}

impl AppliedSink for Fanout {
    fn applied(&self, events: Vec<Arc<Event>>, closed_sessions: &[SessionId], revision: Revision, clock: TimeMs) {
        self.hub.publish(events, closed_sessions, revision, clock);
    }

    fn replaced(&self, revision: Revision, clock: TimeMs) {
        self.hub.reset(revision, clock);
    }

    fn compared(&self, agreed: bool) {
        match agreed {
            true => self.metrics.digest_agreements.inc(),
            false => self.metrics.digest_differences.inc(),
        }
    }

    fn measured(&self, _entries: usize, took: Duration) {
        self.metrics.apply_seconds.observe(took.as_secs_f64());
    }
}

/// Hands the cost of commits to the metrics, and a failure to whoever has to stop the node.
pub(super) struct Commits {
    pub metrics: Metrics,
    pub first: FirstFailure,
    pub failed: watch::Sender<bool>,
}

impl CommitObserver for Commits {
    fn committed(&self, took: Duration) {
        self.metrics.state_commit_seconds.observe(took.as_secs_f64());
    }

    fn failed(&self, error: &StorageError) {
        self.first.note("chat.db: ", error);
        self.failed.send_replace(true);
    }
}

/// Says whether the node is ready: to `/readyz` with the reason, and to the gRPC health service.
#[derive(Clone)]
pub(super) struct Ready {
    reason: watch::Sender<Readiness>,
    healthy: watch::Sender<bool>,
}

impl Ready {
    pub(super) fn new() -> Self {
        Self {
            reason: watch::Sender::new(Readiness::NotReady("starting: it takes part in no cluster yet".into())),
            healthy: watch::Sender::new(false),
        }
    }

    pub(super) fn set(&self, readiness: Readiness) {
        let healthy = readiness == Readiness::Ready;
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

/// Keeps readiness and metrics up to date, until it is dropped.
pub(super) async fn follow(node: Node, hub: Hub, ready: Ready, metrics: Metrics) {
    let (mut cuts_counted, mut handovers_counted) = (0, 0);
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let status = node.status();
        metrics.set_raft(&RaftFigures {
            term: status.term,
            is_leader: status.role == Role::Leader,
            has_leader: status.leader.is_some(),
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
        });
        let disk = node.disk();
        metrics.disk_stalled_seconds.set(disk.stalled.as_secs_f64());
        metrics.slow_disk_handovers.inc_by(disk.handovers.saturating_sub(handovers_counted));
        handovers_counted = disk.handovers;
        metrics.proposal_queue_depth.set(i64::try_from(node.waiting_proposals()).unwrap_or(i64::MAX));
        let stats = hub.stats();
        metrics.subscriptions.set(i64::try_from(stats.subscriptions).unwrap_or(i64::MAX));
        metrics.slow_subscriber_cuts.inc_by(stats.slow_cuts.saturating_sub(cuts_counted));
        cuts_counted = stats.slow_cuts;
        let behind = node.behind();
        ready.set(match (&status.leader, node.is_ready()) {
            (_, true) => Readiness::Ready,
            (None, _) => Readiness::NotReady("there is no leader".into()),
            (Some(_), _) => Readiness::NotReady(format!("the state is {behind} entries behind")),
        });
    }
}

/// What the status page shows. `node` is `None` while the node waits to belong to a cluster.
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
