//! Consensus: one order of commands for all nodes, each command on disk on a majority before it takes effect.
//!
//! The only user of openraft. Owns the protocol of the peer port, the bootstrap of a cluster, and the path of a command
//! from [`Node::propose`] into the log (`proposer`), to the other nodes (`transport`) and into the state machine
//! (`store`). `traced` records spans of that path for traced messages.
//!
//! The modules are in layers, and no module uses one above it. At the bottom are the state of a node and the rules for
//! it, one module for each topic. `node` joins them. What runs beside it (`tasks`) and what answers its peers
//! (`transport::server` and `transport::forwarded`) use it, and `start` assembles everything.
//!
//! Invariants, each with a test:
//! - A node answers only for its own cluster id and node id ([`peers`]).
//! - The leader never resumes its own term after a restart (`enable_leader_restore: Some(false)`). It replicates
//!   entries before its own fsync, so a restart could otherwise use a log id twice.
//! - The state machine is never ahead of this node's durable log (`store::state_machine`).
//! - A node whose state differs from that of a majority detects it and stops (`audit`).
//! - A node whose files are older than its commitments to others takes no part (`commitments`).
//! - The saved committed position is never ahead of the entries (`storage::log`).
//!
//! Does not cover: the meaning of commands (`storage`), and the permission to send them (`api`).

mod admission;
mod attempts;
mod audit;
pub mod bootstrap;
mod commitments;
mod disk;
mod error;
mod freshness;
// Built with the tests as well, since these are built more often than the fuzz targets.
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod lapses;
mod membership;
mod node;
mod observer;
mod proposer;
mod read_index;
mod space;
mod start;
mod status;
mod store;
mod tasks;
mod traced;
mod transfer;
mod transport;
mod types;
mod view;

pub use admission::{Rate, Rates, Refusal};
pub use attempts::{AttemptKey, AttemptLimiter};
pub use audit::{Comparison, DigestStatus};
pub use disk::DiskStatus;
pub use error::{MemberError, ProposeError, ReadError, StartError, TransferError};
pub use node::Node;
pub use observer::Observer;
pub use proposer::Proposals;
pub use space::{SpaceStatus, give_up_reserve_file};
pub use start::{Parts, Settings, start};
pub use status::{ClusterHealth, Leading, NodeStatus, PeerHealth};
pub use tasks::snapshot::LogKept;
pub use transport::server::PeerService;
pub use transport::{convert, peers};
pub use types::NodeRecord;
pub use view::{Peer, Role, View};

#[cfg(test)]
mod tests;
