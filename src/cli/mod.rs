//! The commands of the two binaries.
//!
//! `chatd`: `daemon` runs a node, `local` runs a cluster of nodes on this machine, `rescue` creates a new cluster from
//! a backup or a survivor, `health` queries the health of a node, and `secret` creates the secret that the nodes share.
//!
//! `chatctl`: `ctl_args` defines the arguments and `ctl` runs the commands, with one file per group (`ctl_account`,
//! `ctl_chat`, `ctl_cluster`, `ctl_admin`, `ctl_backup`, `ctl_certs`, `bench`, `verify`, `drill`). Only `output`
//! prints, and only `session_file` stores sessions. `panics` makes both binaries abort on a panic. Exit codes are part
//! of the interface: see [`ctl::Exit`].

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
