//! `chatctl`: the client, the operator's tool and the workload. The implementation is in [`quorum_chat::cli`].

use std::process::ExitCode;

use quorum_chat::cli::ctl;

/// `bench` shares its processors with the nodes that it measures, so allocation has to be cheap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ctl::main()
}
