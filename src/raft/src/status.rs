//! Status of a node, and health of its cluster as seen by the leader: the types.
//!
//! Does not cover: how a node determines them (`node::status`), the status of the disk (`disk`), and the status of the
//! volume (`space`).

use std::time::Duration;

use crate::view::{Peer, Role};

/// Health of a member, as seen by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHealth {
    /// Raft id of the member.
    pub node_id: u64,
    /// Time since the member last answered the leader; `None`: no answer since the leader was elected.
    pub silent: Option<Duration>,
    /// Log entries that are not yet acknowledged by the member; `None`: unknown.
    pub lag_entries: Option<u64>,
}

/// Health of all members, as seen by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterHealth {
    /// The leader's term.
    pub term: u64,
    /// All members, the leader included.
    pub peers: Vec<PeerHealth>,
}

impl ClusterHealth {
    /// How many more of the voters among `members` may fail before the quorum is lost. A voter that has been silent for
    /// longer than `silence_max` counts as failed.
    pub fn failures_tolerated(&self, members: &[Peer], silence_max: Duration) -> u32 {
        let heard = |id: u64| {
            let health = self.peers.iter().find(|health| health.node_id == id);
            health.and_then(|health| health.silent).is_some_and(|silent| silent <= silence_max)
        };
        let voters = members.iter().filter(|member| member.voter);
        let healthy = voters.clone().filter(|member| heard(member.node_id)).count();
        u32::try_from(healthy.saturating_sub(voters.count() / 2 + 1)).unwrap_or(u32::MAX)
    }
}

/// State that exists only on a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leading {
    /// Time since the leader last had a quorum.
    pub quorum_age: Duration,
    /// Health of all members.
    pub cluster_health: ClusterHealth,
}

/// Status of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Raft id of the node.
    pub node_id: u64,
    /// Name that the operator gave the node.
    pub name: String,
    /// UUID of the cluster.
    pub cluster_id: String,
    /// The newest term that the node has seen.
    pub term: u64,
    /// Role of the node.
    pub role: Role,
    /// The leader, if the node has one that recently had a quorum. (Raft itself keeps the last leader until another one
    /// is elected.)
    pub leader: Option<Peer>,
    /// All members.
    pub members: Vec<Peer>,
    /// Index of the last entry in the node's log.
    pub last_log_index: u64,
    /// Commit index, as far as the node has learned it.
    pub committed_index: u64,
    /// Index of the last entry that is applied to the node's state.
    pub applied_index: u64,
}
