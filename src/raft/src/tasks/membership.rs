//! Checks the membership at intervals while this node leads.
//!
//! Does not cover: which change is due (`membership::plan`), and making it (`node::membership`).

use std::time::Duration;

use tokio::time::sleep;

use crate::node::Node;

/// Interval between checks of the membership.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// While this node leads: finishes changes that were left half done, and gives votes to learners that have caught up.
/// Runs until Raft stops.
pub(crate) async fn keep(node: Node) {
    let view = node.view();
    loop {
        sleep(LOOK_EVERY).await;
        if view.has_changed().is_err() {
            return; // Raft was shut down.
        }
        if view.borrow().is_leader() {
            node.continue_change().await;
        }
    }
}
