//! Transfers leadership away from a leader whose lease keeps expiring.
//!
//! openraft appends only while a majority has answered within the longest election timeout, the lease. If the answers
//! to a leader take about that long, it appends now and then, when an answer is just in time, and refuses in between.
//! Sends then take many seconds, while the other nodes receive its heartbeats and elect no other leader. So a leader
//! transfers leadership to the voter with the most log when it has refused for want of a lease, on and off, for longer
//! than a replacement takes, and a majority has answered it meanwhile.
//!
//! Does not cover: the record of the refusals (`lapses`), and a leader that no majority answers. A voter that is cut
//! off together with it would only raise the term, and the others stop counting such a leader's heartbeats by
//! themselves (`node::messages`).

use std::time::Instant;

use crate::{node::Node, view};

/// A spell of refusals longer than this many of the longest election timeouts is too long. That is about the time it
/// takes to replace a leader that has died.
pub(crate) const ELECTIONS: u32 = 2;
/// Number of checks in the time after which a spell is too long.
const LOOKS: u32 = 6;
/// A leader leads for at least this many times that time. When all nodes are far from each other, passing leadership
/// around does not help.
const PAUSE: u32 = 4;

/// Runs until Raft stops.
pub(crate) async fn watch(node: Node) {
    let mut view = node.view();
    let bound = node.lapses().bound();
    let mut leads_since: Option<Instant> = None;
    while view::sleep(&mut view, bound / LOOKS).await {
        let now = Instant::now();
        let answered_since = |first| node.quorum_age().is_some_and(|age| age < now.duration_since(first));
        if !view.borrow().is_leader() {
            leads_since = None;
            continue;
        }
        let leads_for = now.duration_since(*leads_since.get_or_insert(now));
        if leads_for < bound * PAUSE || !node.lapses().too_long(now).is_some_and(answered_since) {
            continue;
        }
        leads_since = Some(now);
        // The answers of a successor take about as long as the lease.
        match node.transfer_to_a_voter(bound).await {
            Ok(to) => {
                tracing::warn!(to, "Answers of a majority arrive too late at this leader; transferring leadership")
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "Answers of a majority arrive too late at this leader, and no node can take over"
                )
            }
        }
    }
}
