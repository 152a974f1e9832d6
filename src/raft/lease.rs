//! Transfers leadership away from a leader whose lease keeps expiring.
//!
//! openraft appends only while a majority has answered within the longest election timeout, the lease. If the answers
//! to a leader take about that long, it appends now and then, when an answer is just in time, and refuses in between.
//! Sends then take many seconds, while the other nodes receive its heartbeats and elect no other leader. So a leader
//! transfers leadership to the voter with the most log when it has refused for want of a lease, on and off, for longer
//! than a replacement takes, and a majority has answered it meanwhile.
//!
//! Does not cover: a leader that no majority answers. A voter that is cut off together with it would only raise the
//! term, and the others stop counting such a leader's heartbeats by themselves (`service.rs`).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{error::TransferError, node::Node, view};

/// A spell of refusals longer than this many of the longest election timeouts is too long. That is about the time it
/// takes to replace a leader that has died.
pub(super) const ELECTIONS: u32 = 2;
/// Number of checks in the time after which a spell is too long.
const LOOKS: u32 = 6;
/// A leader leads for at least this many times that time. When all nodes are far from each other, passing leadership
/// around does not help.
const PAUSE: u32 = 4;

/// The current spell of refusals for want of a lease: the first and the last of them, without a longer break in
/// between.
#[derive(Debug)]
pub(super) struct Lapses {
    bound: Duration,
    spell: Mutex<Option<(Instant, Instant)>>,
}

impl Lapses {
    /// No refusals yet. A spell that lasts longer than `bound` is too long, and a break of `bound` ends it.
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, spell: Mutex::default() }
    }

    /// Records a refusal at `now`.
    pub(super) fn note(&self, now: Instant) {
        let mut spell = self.spell.lock().unwrap_or_else(PoisonError::into_inner);
        let first = spell.filter(|(_, last)| now.duration_since(*last) < self.bound).map_or(now, |(first, _)| first);
        *spell = Some((first, now));
    }

    /// Start of the spell that is too long and still goes on at `now`.
    fn too_long(&self, now: Instant) -> Option<Instant> {
        let spell = *self.spell.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = spell?;
        (now.duration_since(last) < self.bound && now.duration_since(first) > self.bound).then_some(first)
    }
}

/// Runs until Raft stops.
pub(super) async fn watch(node: Node) {
    let mut view = node.view();
    let bound = node.inner.counts.lapses.bound;
    let mut leads_since: Option<Instant> = None;
    while view::sleep(&mut view, bound / LOOKS).await {
        let now = Instant::now();
        let answered_since = |first| node.inner.quorum_age.get().is_some_and(|age| age < now.duration_since(first));
        if !view.borrow().is_leader() {
            leads_since = None;
            continue;
        }
        let leads_for = now.duration_since(*leads_since.get_or_insert(now));
        if leads_for < bound * PAUSE || !node.inner.counts.lapses.too_long(now).is_some_and(answered_since) {
            continue;
        }
        leads_since = Some(now);
        match to_a_successor(&node, bound).await {
            Ok(to) => {
                tracing::warn!(to, "Answers of a majority arrive too late at this leader; transferring leadership")
            }
            Err(error) => {
                tracing::warn!(%error, "Answers of a majority arrive too late at this leader, and no node can take over")
            }
        }
    }
}

/// Transfers leadership to a voter that answered within `silence_max`. Its answers take about as long as the lease.
async fn to_a_successor(node: &Node, silence_max: Duration) -> Result<u64, TransferError> {
    let view = node.inner.view.borrow().clone();
    let successor = node.best_successor(&view, silence_max, |_| true).ok_or(TransferError::NotAVoter)?;
    node.transfer_here(Some(successor)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_on_and_off_are_one_spell_until_a_break() {
        let (began, ms, bound) = (Instant::now(), Duration::from_millis, Duration::from_millis(1_200));
        let lapses = Lapses::new(bound);
        assert_eq!(lapses.too_long(began), None);
        for after in [0, 900, 1_800] {
            lapses.note(began + ms(after));
        }
        assert_eq!(lapses.too_long(began + ms(1_200)), None, "not longer than it may last");
        assert_eq!(lapses.too_long(began + ms(1_900)), Some(began));
        assert_eq!(lapses.too_long(began + ms(3_000)), None, "it is over");
        lapses.note(began + ms(3_000));
        assert_eq!(lapses.too_long(began + ms(3_100)), None, "a new one");
        lapses.note(began + ms(4_100));
        assert_eq!(lapses.too_long(began + ms(4_300)), Some(began + ms(3_000)));
    }
}
