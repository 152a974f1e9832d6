//! Proposes the marks and the reports of a comparison of the states.
//!
//! Does not cover: which mark is due, and what the reports show (`audit`).

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{audit::Auditor, node::WeakNode};
use chat::Command;

/// Timeout for putting a mark or a report into the log. It is not retried, since the next mark is as good.
const PROPOSE_MAX: Duration = Duration::from_secs(5);

/// Proposes marks and reports until the node is gone.
pub(crate) async fn run(node: WeakNode, auditor: Arc<Auditor>, interval: Duration) {
    let mut newest = auditor.reports();
    let mut tick = interval_at(Instant::now() + interval, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            _ = tick.tick() => None,
            // The auditor owns the sender and is alive.
            _ = newest.changed() => newest.borrow_and_update().map(Command::ReportDigest),
        };
        let Some(node) = node.upgrade() else { return };
        let (leads, members) = {
            let view = node.view();
            let view = view.borrow();
            (view.is_leader(), view.members.len())
        };
        let mark = || (members > 1 && auditor.is_due(leads)).then_some(Command::NoteDigest);
        let Some(command) = command.or_else(mark) else { continue };
        if let Err(error) = node.propose(command, None, Instant::now() + PROPOSE_MAX).await {
            tracing::debug!(%error, "Skipped a comparison of the states");
        }
    }
}
