//! `chatd`. The implementation is in the library of this package, where the fuzz targets reach it, too.

mod memory;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;

fn main() -> ExitCode {
    chatd::main()
}
