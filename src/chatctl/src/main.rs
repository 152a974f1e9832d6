//! `chatctl`. The implementation is in the library of this package, where the fuzz targets reach it, too.

use std::process::ExitCode;

/// `bench` shares its processors with the nodes that it measures, so allocation has to be cheap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    chatctl::main()
}
