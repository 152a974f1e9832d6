//! quorum-chat: a replicated chat backend that does not lose a message.
//!
//! A tour, from the bottom to the top. Each layer knows only those before it.
//!
//! 1. [`chat`]: the vocabulary and the limits. Commands, outcomes, events. No I/O.
//! 2. [`storage`]: SQLite. `log.db` holds the Raft log, `chat.db` the state that the commands make.
//! 3. [`raft`]: consensus. Turns a command into an entry that a majority has on disk, in one order for all nodes.
//! 4. [`delivery`]: hands what was applied to those who subscribe.
//! 5. [`api`]: gRPC for clients and operators. [`web`]: the same calls as JSON, probes and metrics, over HTTP.
//! 6. [`server`]: puts the parts together, starts them, drains them in order.
//!
//! [`blocking`] keeps what blocks off the threads that serve, [`net`] makes and takes connections, [`trace`] follows a
//! message through all of it.
//! [`client`] is the other side of the wire: a client that follows the leader. [`cli`] holds `chatctl` and
//! `chatd local`. [`config`] and [`telemetry`] are handed in as values; there are no globals.
//!
//! `docs/architecture.md` follows one message through all of it.

// They panic when nobody reads. Programs say what they have to say by `cli::say`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod api;
pub mod blocking;
pub mod chat;
pub mod cli;
pub mod client;
pub mod config;
pub mod delivery;
pub mod net;
pub mod planted;
pub mod proto;
pub mod raft;
pub mod server;
pub mod storage;
pub mod telemetry;
pub mod trace;
pub mod web;
