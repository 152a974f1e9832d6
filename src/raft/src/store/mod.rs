//! What openraft needs of a disk, on top of `storage`: the log, the state machine, and the snapshots.
//!
//! Does not cover: the formats of the files, and when they are flushed (`storage`).

pub(crate) mod log;
pub(crate) mod snapshots;
pub(crate) mod state_machine;
