//! The nodes of the cluster.

use proto::chat::v1 as pb;

use super::{each, from_wire};

/// Current role of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NodeRole {
    /// Not known, or not known to this library.
    #[default]
    Unknown,
    /// Orders all changes.
    Leader,
    /// A voter that follows the leader, or that is down.
    Follower,
    /// Receives the log but has no vote.
    Learner,
    /// Requests votes, because there is no leader.
    Candidate,
}

impl From<pb::NodeRole> for NodeRole {
    fn from(role: pb::NodeRole) -> Self {
        match role {
            pb::NodeRole::Unspecified => Self::Unknown,
            pb::NodeRole::Leader => Self::Leader,
            pb::NodeRole::Follower => Self::Follower,
            pb::NodeRole::Learner => Self::Learner,
            pb::NodeRole::Candidate => Self::Candidate,
        }
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Raft id of the node. Never reused.
    pub node_id: u64,
    /// Its configured name.
    pub name: String,
    /// Address for clients, `host:port`.
    pub client_address: String,
    /// Address for the other nodes, `host:port`. Empty for callers without a session.
    pub peer_address: String,
    /// Address of the page, `host:port`.
    pub web_address: String,
    /// Its current role.
    pub role: NodeRole,
    /// Whether it counts toward majorities.
    pub voter: bool,
    /// Whether it answered the leader lately. `None`: unknown.
    pub healthy: Option<bool>,
    /// Number of log entries that it has yet to acknowledge. `None`: unknown.
    pub lag_entries: Option<u64>,
    /// The digest that it reported for [`NodeList::compared`], 32 bytes. `None`: it reported none yet, or the caller
    /// has no session.
    pub digest: Option<Vec<u8>>,
}

impl From<pb::NodeInfo> for NodeInfo {
    fn from(wire: pb::NodeInfo) -> Self {
        Self {
            role: wire.role().into(),
            node_id: wire.node_id,
            name: wire.name,
            client_address: wire.client_address,
            peer_address: wire.peer_address,
            web_address: wire.web_address,
            voter: wire.voter,
            healthy: wire.healthy,
            lag_entries: wire.lag_entries,
            digest: wire.digest,
        }
    }
}

/// The leader, and the term that it leads in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The node. `healthy` and `lag_entries` are not set here.
    pub node: NodeInfo,
    /// Its term. A higher term is newer.
    pub term: u64,
}

impl From<pb::GetLeaderResponse> for Leader {
    fn from(wire: pb::GetLeaderResponse) -> Self {
        // An answer without a leader is an error of the service.
        Self { node: wire.leader.unwrap_or_default().into(), term: wire.term }
    }
}

/// A comparison of the nodes' digests, all at the same position of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestComparison {
    /// Index of the log entry at that position.
    pub log_index: u64,
    /// Revision at that position.
    pub revision: u64,
}

from_wire!(DigestComparison, pb::DigestComparison { log_index, revision });

/// The cluster, as far as the node that answered knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeList {
    /// The nodes, sorted by id.
    pub nodes: Vec<NodeInfo>,
    /// Id of the cluster (a UUID). Empty if `restricted`.
    pub cluster_id: String,
    /// The newest term that the node, or the leader that it asked, has seen.
    pub term: u64,
    /// Revision of the state on the node that answered.
    pub revision: u64,
    /// Name of the node that answered.
    pub answered_by: String,
    /// How many more voters may fail while the service stays available. `None`: the leader was not reached.
    pub failures_tolerated: Option<u32>,
    /// Digest of everything that the node has applied up to `revision`, 32 bytes. Empty if `restricted`.
    pub digest: Vec<u8>,
    /// The newest comparison of digests. `None`: there was none since the node started, or `restricted`.
    pub compared: Option<DigestComparison>,
    /// Whether fields were left empty because the caller has no session.
    pub restricted: bool,
}

impl From<pb::ListNodesResponse> for NodeList {
    fn from(wire: pb::ListNodesResponse) -> Self {
        Self {
            nodes: each(wire.nodes),
            cluster_id: wire.cluster_id,
            term: wire.term,
            revision: wire.revision,
            answered_by: wire.answered_by,
            failures_tolerated: wire.failures_tolerated,
            digest: wire.digest,
            compared: wire.compared.map(DigestComparison::from),
            restricted: wire.restricted,
        }
    }
}
