//! A cluster of real `chatd` processes for tests: started, killed, stopped, continued and restarted at will.
//!
//! [`Cluster`] owns the processes, their addresses, data and logs; [`Direct`] talks to one node and no other, where the
//! client library would go to the leader; [`Workload`] sends under faults and checks afterwards that the service kept
//! its promises; [`eventually`] waits for a condition. Nothing here outlives its test: processes are killed when the
//! cluster is dropped, and stop by themselves when the test's process is gone.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod cluster;
mod collector;
mod direct;
mod history;
pub mod links;
mod node;
mod ports;
pub mod preload;
mod slots;
pub mod wal;
mod workload;

use std::time::{Duration, Instant};

pub use cluster::{Cluster, impatient};
pub use collector::{Collector, Taken};
pub use direct::Direct;
pub use history::{Listener, history};
pub use node::Node;
pub use workload::Workload;

/// Everybody's password.
pub const PASSWORD: &str = "correct horse";

/// What all nodes share, unless a test says otherwise.
pub const PEER_SECRET: &str = "the-secret-of-the-nodes-in-tests";

/// Long enough for whatever has to happen by itself on a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until `look` finds what it looks for, for at most [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(15);
    let started = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if started.elapsed() >= PATIENCE => panic!("{what}: not within {PATIENCE:?}: {why}"),
            Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
}
