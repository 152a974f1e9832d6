//! Tracks the age of this node's state, for reads that do not ask the leader.
//!
//! Each append of the leader carries its commit index and the time since it last had a quorum, because a leader that is
//! cut off does not learn what the others commit without it. Once the local state has reached that index, it is as new
//! as that moment.
//!
//! Only the leader has the time at which it sent an append, and that time is of another clock. So a follower reports
//! its own clock in its answers to heartbeats, and the leader sends its estimate of that clock with each append
//! ([`Clocks`]). In this way an append that was delayed on the way, or while this process was suspended, does not count
//! as recent. The travel time of the heartbeat's answer makes the state look older than it is. Only durations are
//! compared, so the clocks need not agree.
//!
//! Does not cover: who leads (`view`), and linearizable reads (`read_index`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use openraft::{Instant as _, ServerState, async_runtime::WatchReceiver as _, type_config::alias::WatchReceiverOf};
use tokio::time::{Duration, Instant};

use crate::{
    store::state_machine::Raft,
    types::{LogId, TypeConfig},
};

type DataMetrics = WatchReceiverOf<TypeConfig, openraft::metrics::RaftDataMetrics<TypeConfig>>;
type ServerMetrics = WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;

/// How far the leader's estimate of this node's clock may be ahead, since clocks drift.
const AHEAD_MAX: Duration = Duration::from_millis(10);
/// A quorum younger than this is returned without further checks, since every append asks for it.
const LATELY: Duration = Duration::from_millis(100);

/// Time since this node last had a quorum as the leader. Unknown until Raft runs.
#[derive(Clone, Default)]
pub(crate) struct QuorumAge(Arc<OnceLock<(DataMetrics, ServerMetrics)>>);

impl QuorumAge {
    /// Starts to follow the metrics of `raft`.
    pub(crate) fn follow(&self, raft: &Raft) {
        // It is set only once.
        let _ = self.0.set((raft.data_metrics(), raft.server_metrics()));
    }

    /// Time since the last quorum. `None`: no quorum since this node became leader, or it does not lead.
    pub(crate) fn get(&self) -> Option<Duration> {
        let (data, server) = self.0.get()?;
        let acknowledged = data.borrow_watched().last_quorum_acked.map(|at| at.elapsed());
        if acknowledged.is_some_and(|age| age < LATELY) {
            return acknowledged;
        }
        // A voter that is alone gets no acknowledgements and needs none.
        let server = server.borrow_watched();
        let alone = server.state == ServerState::Leader && server.membership_config.voter_ids().eq([server.id]);
        if alone { Some(Duration::ZERO) } else { acknowledged }
    }
}

/// The leader's estimates of the followers' clocks.
#[derive(Clone, Default)]
pub(crate) struct Clocks(Arc<Mutex<HashMap<u64, (u64, Instant)>>>);

impl Clocks {
    /// Records that the clock of `follower` shows `clock_ms` now, or a little more. `None`: it is not reported.
    pub(crate) fn note(&self, follower: u64, clock_ms: Option<u64>) {
        let mut clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match clock_ms {
            Some(clock_ms) => clocks.insert(follower, (clock_ms, Instant::now())),
            None => clocks.remove(&follower),
        };
    }

    /// Value in ms of the clock of `follower` now, or a little less.
    pub(crate) fn of(&self, follower: u64) -> Option<u64> {
        let clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.get(&follower).map(|(clock_ms, at)| clock_ms.saturating_add(millis(at.elapsed())))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) struct Freshness {
    /// Start of this node's clock.
    began: Instant,
    inner: Mutex<Inner>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self { began: Instant::now(), inner: Mutex::default() }
    }
}

#[derive(Default)]
struct Inner {
    /// Latest moment at which the followed leader had a quorum.
    led_at: Option<Instant>,
    /// Latest moment at which the local state had every committed entry.
    caught_up_at: Option<Instant>,
    /// The oldest reported position that the local state is yet to reach, and the moment at which its leader had a
    /// quorum.
    pending: Option<(LogId, Instant)>,
    /// The newest position that a leader reported as committed, whether or not the local log has it.
    committed: Option<LogId>,
}

impl Freshness {
    /// Value in ms of this node's clock.
    pub(crate) fn clock_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// The moment at which a leader had a quorum, which was `quorum_age` before it sent an append. It sent the append
    /// when this node's clock showed `clock_ms`.
    ///
    /// `None`: the moment is not known. A new leader has no estimate of this node's clock before its first heartbeat is
    /// answered, and its estimate is ahead after this node has restarted or its machine was suspended.
    pub(crate) fn led_at(&self, quorum_age: Duration, clock_ms: Option<u64>) -> Option<Instant> {
        let now = Instant::now();
        let sent = self.began.checked_add(Duration::from_millis(clock_ms?))?;
        if sent > now + AHEAD_MAX { None } else { sent.min(now).checked_sub(quorum_age) }
    }

    /// Records that the leader reported `committed` as committed, and had a quorum at the moment `led`. `applied` is
    /// the position of the local state.
    pub(crate) fn heard(&self, committed: Option<LogId>, applied: Option<LogId>, led: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.confirm_pending(applied);
        inner.led_at = inner.led_at.max(Some(led));
        inner.committed = inner.committed.max(committed);
        match committed {
            Some(committed) if applied < Some(committed) => {
                inner.pending.get_or_insert((committed, led));
            }
            _ => inner.caught_up_at = inner.caught_up_at.max(Some(led)),
        }
    }

    /// The newest position that a leader reported as committed. A node that waits for a snapshot has this position
    /// before its own log reaches it.
    pub(crate) fn committed(&self) -> Option<LogId> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).committed
    }

    /// Time since the leader that this node follows had a quorum. `None` if there has been no such leader since the
    /// start.
    pub(crate) fn leaderless(&self, now: Instant) -> Option<Duration> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.led_at.map(|at| now.saturating_duration_since(at))
    }

    /// Time since the local state had every committed entry. `None` if that was never the case since the start.
    pub(crate) fn age(&self, applied: Option<LogId>, now: Instant) -> Option<Duration> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.confirm_pending(applied);
        inner.caught_up_at.map(|at| now.saturating_duration_since(at))
    }
}

impl Inner {
    fn confirm_pending(&mut self, applied: Option<LogId>) {
        if let Some((position, at)) = self.pending
            && applied >= Some(position)
        {
            self.caught_up_at = self.caught_up_at.max(Some(at));
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::transport::convert;
    use proto::log::v1 as pb;

    fn at(index: u64) -> Option<LogId> {
        Some(convert::log_id(pb::LogId { term: 1, node_id: 1, index }))
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_that_waited_is_no_news() {
        let (follower, leader) = (Freshness::default(), Clocks::default());
        let ms = Duration::from_millis;
        assert_eq!(leader.of(1), None);
        advance(ms(5000)).await;
        leader.note(1, Some(follower.clock_ms()));
        advance(ms(100)).await;
        let (clock_ms, sent) = (leader.of(1), Instant::now());
        assert_eq!(follower.led_at(ms(30), clock_ms), Some(sent - ms(30)));
        advance(ms(2000)).await;
        assert_eq!(follower.led_at(ms(30), clock_ms), Some(sent - ms(30)));
        // A clock that is a little ahead counts as now.
        let now_ms = follower.clock_ms();
        assert_eq!(follower.led_at(ms(30), Some(now_ms + 10)), Some(Instant::now() - ms(30)));
        // No clock, or that of the previous process.
        for clock_ms in [None, Some(now_ms + 11), Some(u64::MAX)] {
            assert_eq!(follower.led_at(ms(30), clock_ms), None);
        }
        leader.note(1, None);
        assert_eq!(leader.of(1), None);
    }

    #[test]
    fn age_counts_from_the_last_news_that_was_reached() {
        let freshness = Freshness::default();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(freshness.age(at(1), start), None);
        freshness.heard(at(5), at(5), after(10));
        assert_eq!(freshness.age(at(5), after(30)), Some(Duration::from_millis(20)));
        // A commit index beyond the local state does not make it fresh until it is reached.
        freshness.heard(at(9), at(5), after(40));
        freshness.heard(at(12), at(6), after(50));
        assert_eq!(freshness.age(at(6), after(60)), Some(Duration::from_millis(50)));
        assert_eq!(freshness.age(at(9), after(60)), Some(Duration::from_millis(20)));
        assert_eq!(freshness.committed(), at(12));
        // Whether there is a leader does not depend on how far the state has advanced.
        assert_eq!(freshness.leaderless(after(60)), Some(Duration::from_millis(10)));
    }
}
