//! The types that openraft is instantiated with.

use std::fmt;

use bytes::Bytes;

use crate::chat::Outcome;

openraft::declare_raft_types!(
    /// openraft's type configuration.
    pub TypeConfig:
        D = Payload,
        R = Outcomes,
        NodeId = u64,
        Node = NodeRecord,
);

pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, NodeRecord>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, super::snapshots::SnapshotHandle>;
pub(super) type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachineAdapter>;

/// What an entry carries: an encoded `log.v1.Batch`. Encoded once, by the leader; passed on as it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What an entry came to: one outcome for each of its commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes(pub Vec<Outcome>);

/// A member of the cluster, as the membership entry names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeRecord {
    /// The operator's name for it.
    pub name: String,
    /// Where peers reach it, host:port.
    pub peer_address: String,
    /// Where clients reach it, host:port.
    pub client_address: String,
    /// Where browsers reach it, host:port.
    pub web_address: String,
    /// What it asked to be admitted with; 0 for those who founded the cluster.
    pub admission: u64,
}

impl fmt::Display for NodeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.peer_address)
    }
}
