//! Transfers leadership away from a leader whose disk hangs.
//!
//! An entry is committed when a majority has it on disk, with or without the leader. But the leader answers only after
//! it has applied the entry, and it applies only entries that are on its own disk. A flush that takes seconds there
//! delays every caller, while the heartbeats continue and no other leader is elected. So a leader transfers leadership
//! to the voter that is furthest ahead when it waits for its disk for longer than a replacement takes, and a majority
//! has entries that are not in its own state. When the others are as slow, nothing is committed in the meantime, and
//! leadership stays where it is.
//!
//! Every node logs when its disk hangs and when it recovers.
//!
//! Does not cover: how long a write has taken (`disk`), and the space on the volume (`tasks::disk_space`).

use std::time::{Duration, Instant};

use crate::{node::Node, view};
use storage::lock_holder;
use trace::blocking;

/// A write that takes longer than this many of the longest election timeouts is slow. That is about the time it takes
/// to replace a leader that has died.
pub(crate) const ELECTIONS: u32 = 2;
/// Number of checks of the disk in the time after which it counts as slow.
const LOOKS: u32 = 6;

/// Runs until Raft stops. A write that takes longer than `bound` is slow.
pub(crate) async fn watch(node: Node, bound: Duration) {
    let mut view = node.view();
    // The file that was slow at the last check, and since when.
    let mut slow: Option<(&'static str, Instant)> = None;
    let mut handed_over: Option<Instant> = None;
    while view::sleep(&mut view, bound / LOOKS).await {
        let Some((file, age)) = node.written_files().stalled().filter(|(_, age)| *age > bound) else {
            if let Some((file, since)) = slow.take() {
                tracing::warn!(
                    "The disk responds again: a write to {file} took {:.1} s",
                    since.elapsed().as_secs_f64()
                );
            }
            continue;
        };
        if slow.is_none() {
            let (dir, seconds) = (node.written_files().state.directory().to_owned(), age.as_secs_f64());
            match blocking::run(move || lock_holder(&dir.join(file))).await.ok().flatten() {
                Some(holder) => {
                    tracing::warn!("{file} has been locked by {holder} for {seconds:.1} s; waiting for it")
                }
                None => tracing::warn!("The disk is slow: a write to {file} has taken {seconds:.1} s so far"),
            }
            slow = Instant::now().checked_sub(age).map(|since| (file, since));
        }
        // An election may follow a transfer. This node tries again only after it.
        if handed_over.is_some_and(|at| at.elapsed() < bound * 4) || !waits_alone(&node) {
            continue;
        }
        handed_over = Some(Instant::now());
        match node.transfer_here(None).await {
            Ok(to) => {
                node.count_slow_disk_transfer();
                tracing::warn!(to, "This leader's disk is slow and a majority's is not; transferring leadership");
            }
            Err(error) => tracing::warn!(%error, "This leader's disk is slow, and no node can take over"),
        }
    }
}

/// Whether this node leads, and a majority has entries on disk that are not applied here.
fn waits_alone(node: &Node) -> bool {
    let status = node.status();
    node.view().borrow().is_leader() && status.committed_index > status.applied_index
}
