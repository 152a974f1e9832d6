//! The node, and a cluster of nodes on one machine: see `chatd --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quorum_chat::cli::daemon::main()
}
