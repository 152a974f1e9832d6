//! Consensus: one order of commands for all nodes, each command on disk on a majority before it takes effect.
//!
//! The only user of openraft. Owns the protocol of the peer port, the bootstrap of a cluster, and the path of a command
//! from [`Node::propose`] into the log (`proposer`), to the other nodes (`network`, `service`) and into the state
//! machine (`state_machine`). `traced` records spans of that path for traced messages.
//!
//! Invariants, each with a test:
//! - A node answers only for its own cluster id and node id ([`peers`]).
//! - The leader never resumes its own term after a restart (`enable_leader_restore: Some(false)`). It replicates
//!   entries before its own fsync, so a restart could otherwise use a log id twice.
//! - The state machine is never ahead of this node's durable log (`state_machine`).
//! - A node whose state differs from that of a majority detects it and stops (`auditor`).
//! - A node whose files are older than its commitments to others takes no part (`commitments`).
//! - The saved committed position is never ahead of the entries (`storage::log`).
//!
//! Does not cover: the meaning of commands (`storage`), and the permission to send them (`api`).

mod admission;
mod attempts;
mod auditor;
pub mod bootstrap;
pub mod convert;
mod eraser;
mod error;
mod freshness;
// Built with the tests as well, since these are built more often than the fuzz targets.
mod commitments;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod lease;
mod log_store;
mod members;
mod network;
mod node;
pub mod peers;
mod proposer;
mod read_gate;
mod retention;
mod service;
mod slow_disk;
mod snapshots;
mod space;
mod start;
mod state_machine;
mod traced;
mod transfer;
mod types;
mod unchecked;
mod view;

pub use admission::{Rate, Rates};
pub use attempts::{AttemptKey, AttemptLimiter};
pub use auditor::{Comparison, DigestStatus};
pub use error::{MemberError, ProposeError, ReadError, Refusal, StartError, TransferError};
pub use node::{ClusterHealth, Leading, Node, NodeStatus, PeerHealth};
pub use proposer::Proposals;
pub use service::PeerService;
pub use slow_disk::DiskStatus;
pub use space::{SpaceStatus, give_up_reserve_file};
pub use start::{Parts, Settings, start};
pub use state_machine::Observer;
pub use types::NodeRecord;
pub use view::{Peer, Role, View};

#[cfg(test)]
mod tests;
