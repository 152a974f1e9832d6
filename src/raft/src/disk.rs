//! The files whose writes a node waits for, and how long the write in flight has taken.
//!
//! Does not cover: what follows from a slow disk (`tasks::slow_disk`), and the space on the volume (`space`).

use std::time::Duration;

use storage::{LogDb, SharedState};

/// The files whose writes a node waits for.
pub(crate) struct Disk {
    pub log: LogDb,
    pub state: SharedState,
}

impl Disk {
    /// The file whose write has been in flight for longest, and for how long.
    pub(crate) fn stalled(&self) -> Option<(&'static str, Duration)> {
        let files = [("log.db", self.log.stalled()), ("chat.db", self.state.stalled())];
        files.into_iter().filter_map(|(file, age)| Some((file, age?))).max_by_key(|(_, age)| *age)
    }
}

/// Status of a node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskStatus {
    /// How long the write in flight has taken so far; zero if there is none.
    pub stalled: Duration,
    /// Number of times that this node transferred leadership because its disk was slow.
    pub slow_disk_transfers: u64,
}
