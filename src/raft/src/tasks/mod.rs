//! What runs alongside Raft for as long as the node does.
//!
//! `audit` lets the nodes compare their states, `erase` finishes deletions, `read_index` answers the waiting reads with
//! one question to the leader, `retention` and `snapshot` keep the files small, `membership` finishes changes of the
//! membership, and `moves` announces new addresses of this node. `disk_space` watches the volume. Together with
//! `slow_disk` and `lease`, it transfers leadership away from a leader that does not get on. `failover` notices that
//! the leader is gone.
//!
//! Invariant: a task uses a node only through its methods. Does not cover: the proposer, which every command passes
//! (`proposer`).

pub(crate) mod audit;
pub(crate) mod disk_space;
pub(crate) mod erase;
pub(crate) mod failover;
pub(crate) mod lease;
pub(crate) mod membership;
pub(crate) mod moves;
pub(crate) mod read_index;
pub(crate) mod retention;
pub(crate) mod slow_disk;
pub(crate) mod snapshot;
