//! Checks the guarantees of a running cluster under faults.
//!
//! [`workload`] creates accounts and lets clients send, read, subscribe, mark read and delete through all nodes, while
//! the caller injects faults: kills, pauses, partitions. At the end it reads everything back from every node that
//! answers. The recorded run is a [`history`]. [`checker`] checks it without any knowledge of its origin, so a history
//! can also come from a file or a test.

pub mod checker;
pub mod connection;
pub mod history;
pub mod workload;
