//! Watches the process of the leader, whichever node that is, and starts a failover when the watch ends.
//!
//! Does not cover: the watch, and the decision whether the leader is gone (`node::failover`).

use std::{future::pending, time::Duration};

use tokio::time::sleep;

use crate::{
    node::{
        Node,
        failover::{Verdict, Watch},
    },
    view::{Peer, View},
};

/// Pause before a leader that was not replaced is watched again. It doubles while the leader cannot be watched, and
/// while this node and others lose it and are no majority.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(1600);
/// Attempts in a row while other voters lose the leader, or its last appends arrive. Two voters that cannot find it,
/// and are no majority, would keep each other from watching it again.
const ROUNDS: u32 = 5;
/// Pause before such an attempt.
const PAUSE_IN_ROUND: Duration = Duration::from_millis(20);

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
                Some((term, leader)) => watch_one(&node, *term, leader).await,
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
async fn watch_one(node: &Node, term: u64, leader: &Peer) {
    let mut pause = PAUSE_MIN;
    let longer = |pause: Duration| (pause * 2).min(PAUSE_MAX);
    loop {
        let ended = tokio::select! {
            ended = node.watch_leader(leader) => Some(ended),
            () = node.lost_elsewhere(term, leader.node_id) => None,
        };
        match ended {
            Some(Watch::Broken) => pause = PAUSE_MIN,
            // Another leader is about to show in the view.
            Some(Watch::Over) => sleep(PAUSE_MIN).await,
            Some(Watch::Failed) => pause = longer(pause),
            Some(Watch::Early) => {
                sleep(PAUSE_IN_ROUND).await;
                continue;
            }
            None => {}
        }
        if !look_until_quiet(node, term, leader, pause).await {
            pause = longer(pause);
            sleep(pause).await;
        }
    }
}

/// Looks for the leader until a pause in which no other voter loses it. False: there was none for long.
async fn look_until_quiet(node: &Node, term: u64, leader: &Peer, pause: Duration) -> bool {
    for _ in 0..ROUNDS {
        let verdict = node.fail_over(leader).await;
        sleep(PAUSE_IN_ROUND).await;
        // What was on its way has arrived by now.
        if verdict == Verdict::Unclear {
            continue;
        }
        tokio::select! {
            () = sleep(pause) => return true,
            // The others may have noticed only now. An attempt to watch could take its whole time limit first.
            () = node.lost_elsewhere(term, leader.node_id) => {}
        }
    }
    false
}
