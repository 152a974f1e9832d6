//! How old this node's state may be, for reads that do not ask the leader.
//!
//! Each append of the leader names its committed position, and says how long ago it knew that a majority follows it: a
//! leader that is cut off from the others does not know what they have committed without it. Once the local state has
//! that position, it is as new as that moment (that the append was sent earlier by the time it travelled is not known
//! here, and left out).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openraft::{Instant as _, ServerState, async_runtime::WatchReceiver as _, type_config::alias::WatchReceiverOf};
use tokio::time::{Duration, Instant};

use super::types::{LogId, Raft, TypeConfig};

type DataMetrics = WatchReceiverOf<TypeConfig, openraft::metrics::RaftDataMetrics<TypeConfig>>;
type ServerMetrics = WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;

/// An answer that is so young is not looked into further: it is asked for with each append.
const LATELY: Duration = Duration::from_millis(100);

/// How long ago this node knew that a majority follows it as the leader. Nothing is known until Raft runs.
#[derive(Clone, Default)]
pub(super) struct QuorumAge(Arc<OnceLock<(DataMetrics, ServerMetrics)>>);

impl QuorumAge {
    /// From now on, asks `raft`.
    pub(super) fn follow(&self, raft: &Raft) {
        // Nobody else sets it.
        let _ = self.0.set((raft.data_metrics(), raft.server_metrics()));
    }

    /// The time since then; `None`: not since it leads, or it does not lead.
    pub(super) fn get(&self) -> Option<Duration> {
        let (data, server) = self.0.get()?;
        let acknowledged = data.borrow_watched().last_quorum_acked.map(|at| at.elapsed());
        if acknowledged.is_some_and(|age| age < LATELY) {
            return acknowledged;
        }
        // Nobody acknowledges anything to a voter that is alone, and nobody has to.
        let server = server.borrow_watched();
        let alone = server.state == ServerState::Leader && server.membership_config.voter_ids().eq([server.id]);
        if alone { Some(Duration::ZERO) } else { acknowledged }
    }
}

#[derive(Default)]
pub(super) struct Freshness {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// At this moment the leader that this node follows was followed by a majority.
    led_at: Option<Instant>,
    /// At this moment the local state had everything committed.
    level_at: Option<Instant>,
    /// The oldest news that the local state has not reached yet.
    pending: Option<(LogId, Instant)>,
    /// The newest position that a leader called committed, whether the local log has it or not.
    committed: Option<LogId>,
}

impl Freshness {
    /// The leader said that `committed` is committed, and was followed by a majority at the moment `led`; `applied` is
    /// what the local state has.
    pub(super) fn heard(&self, committed: Option<LogId>, applied: Option<LogId>, led: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.settle(applied);
        inner.led_at = inner.led_at.max(Some(led));
        inner.committed = inner.committed.max(committed);
        match committed {
            Some(committed) if applied < Some(committed) => {
                inner.pending.get_or_insert((committed, led));
            }
            _ => inner.level_at = inner.level_at.max(Some(led)),
        }
    }

    /// The newest position that a leader called committed. A node that waits for a snapshot knows it before its own log does.
    pub(super) fn committed(&self) -> Option<LogId> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).committed
    }

    /// How long ago the leader that this node follows was followed by a majority; `None` when there was none since the
    /// start.
    pub(super) fn leaderless(&self, now: Instant) -> Option<Duration> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.led_at.map(|at| now.saturating_duration_since(at))
    }

    /// How long ago the local state had everything committed; `None` when that has not been so since the start.
    pub(super) fn age(&self, applied: Option<LogId>, now: Instant) -> Option<Duration> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.settle(applied);
        inner.level_at.map(|at| now.saturating_duration_since(at))
    }
}

impl Inner {
    fn settle(&mut self, applied: Option<LogId>) {
        if let Some((position, at)) = self.pending
            && applied >= Some(position)
        {
            self.level_at = self.level_at.max(Some(at));
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::log::v1 as pb, raft::convert};

    fn at(index: u64) -> Option<LogId> {
        Some(convert::log_id(pb::LogId { term: 1, node_id: 1, index }))
    }

    #[test]
    fn age_counts_from_the_last_news_that_was_reached() {
        let freshness = Freshness::default();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(freshness.age(at(1), start), None);
        freshness.heard(at(5), at(5), after(10));
        assert_eq!(freshness.age(at(5), after(30)), Some(Duration::from_millis(20)));
        // News beyond the local state does not make it fresh, until it is reached.
        freshness.heard(at(9), at(5), after(40));
        freshness.heard(at(12), at(6), after(50));
        assert_eq!(freshness.age(at(6), after(60)), Some(Duration::from_millis(50)));
        assert_eq!(freshness.age(at(9), after(60)), Some(Duration::from_millis(20)));
        assert_eq!(freshness.committed(), at(12));
        // Whether there is a leader does not depend on how far the state is.
        assert_eq!(freshness.leaderless(after(60)), Some(Duration::from_millis(10)));
    }
}
