//! Five real `chatd` processes, and the service's guarantees while they are killed, stopped and restarted.
//!
//! Each test has its own cluster. The harness is in `support`, which other test binaries use too.

#[path = "cluster/backup.rs"]
mod backup;
#[path = "cluster/data.rs"]
mod data;
#[path = "cluster/delivery.rs"]
mod delivery;
#[path = "cluster/digest.rs"]
mod digest;
#[path = "cluster/drill.rs"]
mod drill;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/quorum.rs"]
mod quorum;
#[path = "cluster/replicated.rs"]
mod replicated;
#[path = "cluster/secrets.rs"]
mod secrets;
mod support;
#[path = "cluster/tls.rs"]
mod tls;
#[path = "cluster/traces.rs"]
mod traces;
#[path = "cluster/verify.rs"]
mod verify;
#[path = "cluster/volumes.rs"]
mod volumes;
