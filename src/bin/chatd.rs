//! `chatd`: a node, or a cluster of nodes on one machine. See `chatd --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quorum_chat::cli::daemon::main()
}
