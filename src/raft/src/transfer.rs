//! The state of this node's leadership transfers.
//!
//! openraft asks the successor to stand for election, and only logs if that declines or cannot be reached. The network
//! records it in [`Declined`], so a leader moves on to the next candidate instead of waiting for one that is gone.
//!
//! Does not cover: the transfers themselves (`node::transfer`), and deciding that a leader is a bad one
//! (`tasks::lease`, `tasks::slow_disk`, `tasks::disk_space`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, MutexGuard, watch};

/// Pause before an unanswered offer is repeated and the other voters are probed, since any of them may have begun to
/// stop. About three times as long as a transfer takes.
pub(crate) const OFFER_AGAIN: Duration = Duration::from_millis(100);

/// How often each voter has declined leadership. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Declined(Arc<watch::Sender<BTreeMap<u64, u64>>>);

impl Declined {
    /// Records that `successor` does not stand for election, or cannot be asked to.
    pub(crate) fn note(&self, successor: u64) {
        self.0.send_modify(|counts| *counts.entry(successor).or_default() += 1);
    }

    /// How often `successor` has declined so far.
    pub(crate) fn count(&self, successor: u64) -> u64 {
        self.0.borrow().get(&successor).copied().unwrap_or_default()
    }

    /// Waits until `successor` has declined more often than `before`. Does not return when the node stops.
    pub(crate) async fn once_more(&self, successor: u64, before: u64) {
        // The sender is in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|counts| counts.get(&successor).is_some_and(|count| *count > before)).await;
    }
}

/// This node's leadership transfers. They are started one at a time.
#[derive(Default)]
pub(crate) struct Transfers {
    /// Held while a transfer is started.
    one: Mutex<()>,
    declined: Declined,
    is_stopping: AtomicBool,
    /// Whether calls on this node no longer wait for anything.
    waits_are_over: watch::Sender<bool>,
}

impl Transfers {
    /// The counts in which the network records declined offers.
    pub(crate) fn declined(&self) -> &Declined {
        &self.declined
    }

    /// Waits until no other transfer is being started. None is started while the guard is held.
    pub(crate) async fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.one.lock().await
    }

    /// Records that this node is stopping.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether this node is stopping. From then on it declines leadership.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Whether calls no longer wait for a leader, a majority or a revision.
    pub(crate) fn waits_are_over(&self) -> bool {
        *self.waits_are_over.borrow()
    }

    /// Ends the waits of all calls on this node.
    pub(crate) fn end_waits(&self) {
        self.waits_are_over.send_replace(true);
    }

    /// Waits until [`Transfers::end_waits`] is called.
    pub(crate) async fn waits_end(&self) {
        // The sender is in `self`, so the wait cannot fail.
        let _ = self.waits_are_over.subscribe().wait_for(|are_over| *are_over).await;
    }
}
