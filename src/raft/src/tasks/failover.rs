//! Watches the process of the leader, whichever node that is, and starts a failover when the watch ends.
//!
//! Does not cover: the watch, and the decision whether the leader is gone (`node::failover`).

use std::{future::pending, time::Duration};

use tokio::time::sleep;

use crate::{
    node::{Node, failover::Watch},
    view::{Peer, View},
};

/// Pause before a leader that was not replaced is watched again. It doubles while the leader cannot be watched.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(1600);
/// Attempts in a row while other voters lose the leader. Two that cannot find it, and are no majority, would keep each
/// other from watching it again.
const ROUNDS: u32 = 5;
/// The same, if another voter has lost the leader meanwhile.
const PAUSE_IF_ASKED: Duration = Duration::from_millis(20);

/// Runs until Raft stops.
pub(crate) async fn watch(node: Node) {
    let mut view = node.view();
    let own = node.identity().node_id;
    let leader_of = |view: &View| {
        let has_vote = view.member(own).is_some_and(|peer| peer.voter);
        view.leader().filter(|leader| has_vote && leader.node_id != own).cloned().map(|leader| (view.term, leader))
    };
    loop {
        let now = leader_of(&view.borrow_and_update());
        let watching = async {
            match &now {
                Some((_, leader)) => watch_one(&node, leader).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = watching => {}
            changed = view.wait_for(|view| leader_of(view) != now) => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Does not return: another leader ends it.
async fn watch_one(node: &Node, leader: &Peer) {
    let mut pause = PAUSE_MIN;
    loop {
        let ended = tokio::select! {
            ended = node.watch_leader(leader) => ended,
            () = node.lost_elsewhere() => Watch::Broken,
        };
        match ended {
            Watch::Broken => pause = PAUSE_MIN,
            // Another leader is about to show in the view.
            Watch::Over => sleep(PAUSE_MIN).await,
            Watch::Failed => pause = (pause * 2).min(PAUSE_MAX),
        }
        for _ in 0..ROUNDS {
            node.fail_over(leader).await;
            sleep(PAUSE_IF_ASKED).await;
            tokio::select! {
                () = sleep(pause) => break,
                // The others may have noticed only now. An attempt to watch could take its whole time limit first.
                () = node.lost_elsewhere() => {}
            }
        }
    }
}
