//! The asynchronous runtime of a command.

use tokio::runtime::{Builder, Runtime};

use terminal::tell;

/// Builds the runtime. The error is the exit code, after a message on standard error.
pub(super) fn runtime(mut builder: Builder) -> Result<Runtime, u8> {
    builder.enable_all().build().map_err(|error| {
        tell!("chatd: the asynchronous runtime cannot be started: {error}");
        1
    })
}
