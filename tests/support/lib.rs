//! A cluster of real `chatd` processes for tests, which can start, kill, stop, continue and restart them.
//!
//! [`Cluster`] owns the processes, their addresses, data and logs. [`Direct`] calls one node and no other, where the
//! client library would go to the leader. [`Workload`] sends during faults and then checks the service's guarantees.
//! [`eventually`] waits for a condition. Processes do not outlive their test: they are killed when the cluster is
//! dropped, and stop when the test's process ends.

mod cluster;
mod collector;
mod direct;
mod history;
pub mod invariants;
pub mod links;
mod node;
mod ports;
pub mod preload;
mod programs;
pub mod rot;
mod slots;
pub mod volume;
pub mod wal;
mod workload;

use std::time::{Duration, Instant};

pub use cluster::{Cluster, impatient};
pub use collector::{Collector, Taken};
pub use direct::Direct;
pub use history::{Listener, history};
pub use node::Node;
pub use programs::{chatctl, chatd};
pub use workload::Workload;

/// The password of all accounts.
pub const PASSWORD: &str = "correct horse";

/// The secret that all nodes share, unless a test sets another.
pub const PEER_SECRET: &str = "the-secret-of-the-nodes-in-tests";

/// Time limit for everything that has to happen on a busy machine. A test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `look` succeeds, for at most [`PATIENCE`].
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
