//! The program `chatctl`: the client, the operator's tool and the workload. See `chatctl --help`.
//!
//! `run` parses the command line and returns the exit code. Each command is a file in `commands`, with its arguments
//! and its code. Commands use the `context` (nodes, session, output), which uses `args`, `failure`, `output` and
//! `session_file`. None of these depends on a command.
//!
//! Invariants: results and failures are printed only by `output`, and sessions are stored only by `session_file`. Exit
//! codes are part of the interface (`failure::Exit`).

mod args;
mod commands;
mod context;
mod failure;
mod output;
mod prompt;
mod run;
pub mod session_file;

pub use run::main;
