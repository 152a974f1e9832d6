//! Five real `chatd` processes, and the service's guarantees while they are killed, stopped and restarted.
//!
//! Each test has its own cluster. The harness is in `support`, which other test binaries use too.

mod backup;
mod data;
mod delivery;
mod digest;
mod drill;
mod failover;
mod kills;
mod members;
mod quorum;
mod replicated;
mod secrets;
mod tls;
mod traces;
mod verify;
mod volumes;
