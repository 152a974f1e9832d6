//! What the two binaries do with their arguments.
//!
//! `chatd`: `daemon` runs a node, `local` a cluster of nodes on this machine, `rescue` makes a new cluster of a backup or a survivor,
//! `health` asks a node how it is, `secret` makes what the nodes share.
//!
//! `chatctl`: `ctl_args` says what can be typed and `ctl` runs it; one file per group of commands (`ctl_account`,
//! `ctl_chat`, `ctl_cluster`, `ctl_admin`, `ctl_backup`, `ctl_certs`, `bench`, `verify`, `drill`). `output` is the only one that prints, `session_file` the only one
//! that keeps anything. `panics` ends either of them on a panic. Exit codes are part of the interface: see [`ctl::Exit`].

pub mod bench;
pub mod ctl;
mod ctl_account;
mod ctl_accounts;
mod ctl_admin;
pub mod ctl_args;
mod ctl_args_accounts;
mod ctl_backup;
mod ctl_certs;
mod ctl_chat;
mod ctl_cluster;
pub mod daemon;
mod drill;
mod health;
mod histogram;
mod kubernetes;
pub mod local;
pub mod output;
pub mod panics;
mod rescue;
mod say;
mod secret;
pub mod session_file;
mod verify;
