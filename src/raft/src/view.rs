//! This node's view of the cluster: role, term, leader, members.
//!
//! It is kept in a separate watch, so that no reader holds openraft's metrics, which would block the core of openraft.
//!
//! Does not cover: whether the leader has a quorum (`freshness`), and calls to it (`transport::leader_client`).

use std::{sync::Arc, time::Duration};

use openraft::{ServerState, async_runtime::WatchReceiver as _};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{store::state_machine::Raft, types::TypeConfig};

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Raft id of the member.
    pub node_id: u64,
    /// Name that the operator gave the member.
    pub name: String,
    /// Address at which peers reach the member, `host:port`.
    pub peer_address: String,
    /// Address at which clients reach the member, `host:port`.
    pub client_address: String,
    /// Address at which browsers reach the member, `host:port`.
    pub web_address: String,
    /// Whether the member has a vote.
    pub voter: bool,
}

/// Current role of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The node orders the commands.
    Leader,
    /// The node follows the leader and has a vote.
    Follower,
    /// The node follows the leader and has no vote.
    Learner,
    /// The node asks for votes.
    Candidate,
}

/// A node's view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This node's role.
    pub role: Role,
    /// The newest term that the node has seen.
    pub term: u64,
    /// The leader of that term, if known.
    pub leader: Option<u64>,
    /// All members.
    pub members: Arc<Vec<Peer>>,
}

impl View {
    /// The leader's record.
    pub fn leader(&self) -> Option<&Peer> {
        self.leader.and_then(|id| self.member(id))
    }

    /// A member's record.
    pub fn member(&self, node_id: u64) -> Option<&Peer> {
        self.members.iter().find(|peer| peer.node_id == node_id)
    }

    /// Whether this node is the leader.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}

type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;

/// A leader that has sent an append to this node: its term and its id.
pub(crate) type Heard = Option<(u64, u64)>;

fn view(metrics: &ServerMetrics, heard: Heard) -> View {
    let own = own_view(metrics);
    match heard {
        Some((term, leader)) if term > own.term => {
            let role = if own.role == Role::Learner { Role::Learner } else { Role::Follower };
            View { role, term, leader: Some(leader), ..own }
        }
        _ => own,
    }
}

fn own_view(metrics: &ServerMetrics) -> View {
    let membership = &metrics.membership_config;
    let voters: Vec<u64> = membership.voter_ids().collect();
    let members = membership.nodes().map(|(id, node)| Peer {
        node_id: *id,
        name: node.name.clone(),
        peer_address: node.peer_address.clone(),
        client_address: node.client_address.clone(),
        web_address: node.web_address.clone(),
        voter: voters.contains(id),
    });
    View {
        role: match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Candidate => Role::Candidate,
            ServerState::Follower => Role::Follower,
            _ => Role::Learner,
        },
        term: metrics.vote.leader_id.term,
        leader: metrics.current_leader,
        members: Arc::new(members.collect()),
    }
}

/// Waits for `time`. Returns false if Raft was shut down meanwhile.
pub(crate) async fn sleep(view: &mut watch::Receiver<View>, time: Duration) -> bool {
    timeout(time, view.wait_for(|_| false)).await.is_err()
}

/// Follows openraft's metrics until Raft is shut down. openraft reports a new leader only after the vote for it is on
/// disk. A caller that waits for an outcome cannot wait for a disk that hangs, so a leader in `heard` counts at once.
pub(crate) fn follow(raft: &Raft, mut heard: watch::Receiver<Heard>) -> watch::Receiver<View> {
    let mut metrics = raft.server_metrics();
    let initial = view(&metrics.borrow_watched().clone(), None);
    let (sender, receiver) = watch::channel(initial);
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                // The sender is dropped with the node.
                Ok(()) = heard.changed() => true,
            };
            if !changed {
                return;
            }
            let next = view(&metrics.borrow_watched().clone(), *heard.borrow_and_update());
            sender.send_if_modified(|current| {
                if *current == next {
                    return false;
                }
                if current.leader != next.leader || current.role != next.role {
                    let leader = next.leader().map_or("none", |peer| peer.name.as_str());
                    tracing::info!(term = next.term, role = ?next.role, leader, "Leadership changed");
                }
                *current = next;
                true
            });
        }
    });
    receiver
}

/// Waits until `accept` returns true, for at most `limit`. Returns whether it did.
pub(crate) async fn wait(view: &watch::Receiver<View>, limit: Instant, accept: impl FnMut(&View) -> bool) -> bool {
    let mut view = view.clone();
    matches!(timeout_at(limit, view.wait_for(accept)).await, Ok(Ok(_)))
}

/// Waits until the view changes, for at most `limit`. Returns false if Raft has stopped: the view never changes after
/// that, and a caller that continued would loop without a pause.
pub(crate) async fn wait_for_change(view: &watch::Receiver<View>, limit: Duration) -> bool {
    let mut view = view.clone();
    view.mark_unchanged();
    // A change and a timeout are alike here, because the caller checks again.
    !matches!(tokio::time::timeout(limit, view.changed()).await, Ok(Err(_)))
}
