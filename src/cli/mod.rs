//! What the two binaries do with their arguments.
//!
//! `chatd`: `daemon` runs a node, `local` a cluster of nodes on this machine.
//!
//! `chatctl`: `ctl_args` says what can be typed and `ctl` runs it; one file per group of commands (`ctl_account`,
//! `ctl_chat`, `ctl_cluster`, `ctl_admin`, `bench`). `output` is the only one that prints, `session_file` the only one
//! that keeps anything. Exit codes are part of the interface: see [`ctl::Exit`].

pub mod bench;
pub mod ctl;
mod ctl_account;
mod ctl_admin;
pub mod ctl_args;
mod ctl_chat;
mod ctl_cluster;
pub mod daemon;
mod histogram;
pub mod local;
pub mod output;
pub mod session_file;
