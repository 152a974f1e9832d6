//! Five real `chatd` processes, and what the service promises while they are killed, stopped and restarted.
//!
//! Each test has a cluster of its own. The harness is in `support`, for other test binaries too.

#[path = "cluster/data.rs"]
mod data;
#[path = "cluster/delivery.rs"]
mod delivery;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/quorum.rs"]
mod quorum;
#[path = "cluster/replicated.rs"]
mod replicated;
mod support;
