//! What the two binaries do with their arguments.

pub mod daemon;
pub mod local;
