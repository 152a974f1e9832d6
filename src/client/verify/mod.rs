//! Proves that a cluster keeps its promises, or finds the one that it broke.
//!
//! [`workload`] makes accounts and lets clients send, read, subscribe, mark read and delete through all nodes, while
//! somebody else kills, stops and cuts off what they like; at the end it reads everything back from every node that
//! answers. All of that is a [`history`]; [`checker`] judges it, and knows nothing of how it came about: a history may as
//! well be read from a file, or be made by a test.

pub mod checker;
pub mod history;
pub mod workload;
