//! The life of a node as types, one for each stage. Each has one method that gives the next:
//!
//! [`Opened`] -> `Bound` -> `Joined` -> `Running` -> `Draining`
//!
//! The files are opened first, so that only the process that has them answers on the node's ports. The peer port is
//! served before the node belongs to a cluster, so that the other nodes can reach it and bootstrap with it. Clients are
//! served when Raft runs. A stop before the node runs ends its life at once; a stop after that drains it.
//!
//! Invariant: whatever ends a stage, the files are dropped last, and with them the lock of the data directory. Does not
//! cover: tasks that still hold the node for a moment, such as an open call of another node. SQLite's locks keep the
//! next process waiting until they are gone.

mod bound;
pub(crate) mod core;
mod draining;
mod joined;
mod opened;
mod parts;
mod running;

use crate::{Host, ServerError, config::Config};

use opened::Opened;

/// Lives until a stop is requested or the node fails.
pub(super) async fn live<H: Host>(host: H, config: Config, files_max: usize) -> Result<(), ServerError> {
    let opened = Opened::open(host, config).await?;
    let Some(bound) = opened.bind(files_max).await? else { return Ok(()) };
    let Some(joined) = bound.join().await? else { return Ok(()) };
    joined.run().await?.until_stopped().await?.drain().await;
    Ok(())
}
