//! The program `chatd`: a node, or a cluster of nodes on one machine. See `chatd --help`.
//!
//! `daemon` parses the arguments and runs a node, `local` runs a cluster of nodes on this machine, `rescue` creates a
//! new cluster from a backup or a survivor, `health` queries the health of a node, `kubernetes` labels its pod, and
//! `secret` creates the secret that the nodes share.

mod daemon;
mod health;
mod http;
mod kubernetes;
pub mod local;
mod rescue;
mod runtime;
mod secret;

pub use daemon::main;
