//! What both programs do with their terminal: print, without ever waiting for a reader, and report a panic.
//!
//! [`say`] writes lines, [`unhurried`] queues them for a thread that may wait, and [`panics`] ends the process on a
//! panic. [`time`] shows a time in UTC.
//!
//! Does not cover: the log's format and the arguments of the programs.

pub mod panics;
pub mod say;
mod time;
pub mod unhurried;

pub use time::time;
