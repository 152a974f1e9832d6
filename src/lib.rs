//! quorum-chat: a replicated chat backend that does not lose a message.
//!
//! A tour from the bottom layer to the top one. Each layer depends only on those before it.
//!
//! 1. [`chat`]: the vocabulary and the limits (commands, outcomes, events). No I/O.
//! 2. [`storage`]: SQLite. `log.db` holds the Raft log, `chat.db` the state that the commands produce.
//! 3. [`raft`]: consensus. Turns a command into a log entry that a majority has on disk, in one order for all nodes.
//! 4. [`delivery`]: hands applied events to subscribers.
//! 5. [`api`]: gRPC for clients and operators. [`web`]: the same calls as JSON, probes and metrics, over HTTP.
//! 6. [`server`]: assembles the parts, starts them, and drains them in order.
//!
//! [`blocking`] keeps blocking work off the threads that serve. [`net`] opens and accepts connections. [`trace`]
//! follows a message through all layers. [`client`] is the client side of the protocol: a client that follows the
//! leader. [`cli`] holds `chatctl` and `chatd local`. [`config`] and [`telemetry`] are passed in as values; there are
//! no globals.
//!
//! `docs/architecture.md` describes the path of one message through these layers.

// Allowed only in `storage::pages::vfs`, which replaces two functions of SQLite.
#![deny(unsafe_code)]
// These macros panic when the reading end of the pipe is closed. Programs print with `cli::say`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod api;
pub mod blocking;
pub mod chat;
pub mod cli;
pub mod client;
pub mod config;
pub mod delivery;
pub mod failpoints;
pub mod net;
pub mod proto;
pub mod raft;
pub mod server;
pub mod storage;
pub mod telemetry;
pub mod trace;
pub mod web;
