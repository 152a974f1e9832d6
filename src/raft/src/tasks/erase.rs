//! Finishes the deletion of accounts: the leader proposes bounded steps until nothing is left.
//!
//! The remaining work is a row of the state, so a new leader continues where the last one stopped. Two leaders that
//! propose the same step do no harm, since each step does the next part of the work.
//!
//! Does not cover: what a step does (`storage::apply::erasure`).

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::node::WeakNode;
use chat::{AccountId, Command, Outcome};
use storage::Readers;
use trace::blocking;

/// Interval between checks for deletions that have work left.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Units of work per command: a millisecond or two, so that no other command waits for long.
const UNITS: u32 = 256;
/// Pause between two steps, so that they take only a part of the time.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest wait for the outcome of a step. The next check finds the work that is left.
const PROPOSE_MAX: Duration = Duration::from_secs(5);

/// Runs until the node is gone.
pub(crate) async fn run(node: WeakNode, readers: Arc<Readers>) {
    let mut tick = interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whether a check found this node leading and nothing left to erase.
    let mut caught_up = false;
    loop {
        tick.tick().await;
        loop {
            let Some(node) = node.upgrade() else { return };
            if !node.view().borrow().is_leader() {
                caught_up = false;
                break;
            }
            let Some(account) = next(&readers).await else {
                caught_up = true;
                break;
            };
            if !caught_up && failpoints::is_active(failpoints::ERASURE_NOT_RESUMED) {
                break;
            }
            let command = Command::EraseAccount { account, limit: UNITS };
            match node.propose(command, None, Instant::now() + PROPOSE_MAX).await {
                Ok(Outcome::AccountErased { done: false, .. }) => {}
                Ok(_) => tracing::info!(account = account.0, "Erased the messages of a deleted account"),
                Err(error) => {
                    tracing::debug!(%error, "Skipped one step of erasing an account");
                    break;
                }
            }
            drop(node);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn next(readers: &Arc<Readers>) -> Option<AccountId> {
    let readers = Arc::clone(readers);
    // A failed read has been reported by the storage.
    blocking::run(move || readers.read(|query| query.next_erasure())).await.ok()?.ok()?
}
