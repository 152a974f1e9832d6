//! The types that openraft is instantiated with.
//!
//! Does not cover: the types that contain an adapter, `store::snapshots::Snapshot` and `store::state_machine::Raft`.

use std::fmt;

use bytes::Bytes;

use chat::Outcome;

openraft::declare_raft_types!(
    /// openraft's type configuration.
    pub TypeConfig:
        D = Payload,
        R = Outcomes,
        NodeId = u64,
        Node = NodeRecord,
);

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, NodeRecord>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Content of an entry: an encoded `log.v1.Batch`. The leader encodes it once, and it is passed on unchanged.
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

/// Result of an entry: one outcome for each of its commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes(pub Vec<Outcome>);

/// A member of the cluster, as recorded in the membership entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeRecord {
    /// Name that the operator gave the member.
    pub name: String,
    /// Address at which peers reach the member, `host:port`.
    pub peer_address: String,
    /// Address at which clients reach the member, `host:port`.
    pub client_address: String,
    /// Address at which browsers reach the member, `host:port`.
    pub web_address: String,
    /// Id of the request that admitted the member; 0 for members that bootstrapped the cluster.
    pub admission: u64,
}

impl fmt::Display for NodeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.peer_address)
    }
}
