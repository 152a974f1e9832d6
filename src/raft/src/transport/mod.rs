//! The peer port: what the nodes say to each other, and how it is converted.
//!
//! `client` is the network of openraft and sends, `leader_client` calls the leader, `server` answers, `checks` rejects
//! calls before Raft handles them, `forwarded` proposes the commands of followers, `peers` opens the connections and
//! checks whom a call may speak for, `reached` logs which members do not answer, and `convert` maps openraft's types to
//! those of the protocol and back.
//!
//! Invariant: only `server` and `forwarded` use a node; the others are below it. Does not cover: what a call does
//! (`node`).

pub(crate) mod checks;
pub(crate) mod client;
pub mod convert;
mod forwarded;
pub(crate) mod leader_client;
pub mod peers;
mod reached;
pub(crate) mod server;
