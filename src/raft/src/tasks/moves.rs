//! Announces the addresses of this node until its record has them, and follows those of the other members.
//!
//! Does not cover: the effects of an announcement (`membership::moves`).

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    bootstrap::Bootstrap,
    membership::{
        ANSWER_MAX,
        moves::{Trouble, is_at},
    },
    node::Node,
    transport::peers::HEARD_MAX,
    view::Peer,
};
use proto::raft::v1 as wire;

/// Interval between announcements.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Interval between checks whether there still is a leader.
const LOOK_EVERY: Duration = Duration::from_secs(5);

// Otherwise a member would become unreachable between two announcements.
const _: () = assert!(HEARD_MAX.as_secs() > 2 * SAY_EVERY.as_secs() + 2 * ANSWER_MAX.as_secs());

/// Starts to follow the addresses of the members, and to announce those of this node until its record has them.
pub(crate) fn follow(node: &Node, bootstrap: &Bootstrap, seed_addresses: Vec<String>) {
    let own = bootstrap.announcement(node.identity());
    tokio::spawn(announce(node.clone(), own, seed_addresses));
}

/// Returns when Raft was shut down.
async fn announce(node: Node, own: wire::MoveRequest, seed_addresses: Vec<String>) {
    let mut view = node.view();
    let mut trouble = Trouble::default();
    loop {
        let members = view.borrow_and_update().members.clone();
        node.record_addresses(&members);
        let record = members.iter().find(|member| member.node_id == own.node_id);
        // A node may have been admitted and not have received the entry with its record yet.
        let is_right = |record: &Peer| is_at(record, &own) && node.members_are_committed();
        if node.is_led() && record.is_none_or(is_right) {
            trouble.is_over(&own);
            if let Ok(Err(_)) = timeout(LOOK_EVERY, view.changed()).await {
                return;
            }
            continue;
        }
        let announced = node.announce(&own, &seed_addresses).await;
        // Without a record, it is not known whether the addresses differ.
        if let (Err(reason), Some(record)) = (announced, record.filter(|record| !is_at(record, &own))) {
            trouble.goes_on(record, &own, &reason);
        }
        // A change of the leader or of the members ends the pause early.
        if let Ok(Err(_)) = timeout(SAY_EVERY, view.changed()).await {
            return;
        }
    }
}
