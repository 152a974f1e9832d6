//! A leader whose disk hangs hands over.
//!
//! An entry is committed when a majority has it on disk, with or without the leader. But the leader answers only after
//! it has applied the entry, and applies only what its own disk has: a flush of seconds there holds up everybody, while
//! the heartbeats go on and nobody looks for another leader. So a leader that waits for its disk for longer than a
//! replacement takes, with entries that a majority has and its own state has not, gives leadership to the voter that is
//! furthest. When the others are as slow, nothing is committed in the meantime, and leadership stays where it is.
//!
//! Any node says in its log when its disk hangs and when it goes on.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{node::Node, view};
use crate::storage::{LogDb, SharedState};

/// A write that takes longer than so many of the longest election timeouts is slow: about what it takes to replace a
/// leader that has died.
pub(super) const ELECTIONS: u32 = 2;
/// Looks at the disk in the time after which it is called slow.
const LOOKS: u32 = 6;

/// The files of a node that it waits for.
pub(super) struct Disk {
    pub log: LogDb,
    pub state: SharedState,
}

impl Disk {
    /// The file whose write has been under way for longest, and for how long.
    pub(super) fn stalled(&self) -> Option<(&'static str, Duration)> {
        let files = [("log.db", self.log.stalled()), ("chat.db", self.state.stalled())];
        files.into_iter().filter_map(|(file, age)| Some((file, age?))).max_by_key(|(_, age)| *age)
    }
}

/// How a node's disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskStatus {
    /// How long the write that is under way has taken so far; zero when there is none.
    pub stalled: Duration,
    /// How often this node handed over leadership because its disk was slow.
    pub handovers: u64,
}

impl Node {
    /// How this node's disk does.
    pub fn disk(&self) -> DiskStatus {
        let stalled = self.inner.disk.stalled().map_or(Duration::ZERO, |(_, age)| age);
        DiskStatus { stalled, handovers: self.inner.handovers.load(Ordering::Relaxed) }
    }
}

/// Runs until Raft stops. A write that takes longer than `bound` is slow.
pub(super) async fn watch(node: Node, bound: Duration) {
    let mut view = node.view();
    // A file that was slow when it was looked at last, and since when.
    let mut slow: Option<(&'static str, Instant)> = None;
    let mut handed_over: Option<Instant> = None;
    while view::sleep(&mut view, bound / LOOKS).await {
        let Some((file, age)) = node.inner.disk.stalled().filter(|(_, age)| *age > bound) else {
            if let Some((file, since)) = slow.take() {
                tracing::warn!("The disk goes on: a write to {file} has taken {:.1} s", since.elapsed().as_secs_f64());
            }
            continue;
        };
        if slow.is_none() {
            tracing::warn!("The disk is slow: a write to {file} has taken {:.1} s so far", age.as_secs_f64());
            slow = Instant::now().checked_sub(age).map(|since| (file, since));
        }
        // An election may follow: the same leader gets another chance only after it.
        if handed_over.is_some_and(|at| at.elapsed() < bound * 4) || !waits_alone(&node) {
            continue;
        }
        handed_over = Some(Instant::now());
        match node.hand_over(None).await {
            Ok(to) => {
                node.inner.handovers.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(to, "This leader's disk is slow and a majority's is not: leadership is handed over");
            }
            Err(error) => tracing::warn!(%error, "This leader's disk is slow, and there is nobody to hand over to"),
        }
    }
}

/// Whether this node leads, and a majority has entries on disk that wait here.
fn waits_alone(node: &Node) -> bool {
    let status = node.status();
    node.view().borrow().is_leader() && status.committed_index > status.applied_index
}
