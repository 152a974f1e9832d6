//! Lines on standard output and standard error.
//!
//! Their reader may be gone: `tee` has ended, `head` has read enough, the disk of a redirection is full. The task of a
//! program does not depend on that, so nothing here panics. Lines on standard error are lost without a reader. Failures
//! of standard output are returned to the caller.

use std::{
    fmt,
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use crate::unhurried::{LAST_LINES_MAX, Unhurried};

/// Writes a line to standard error, formatted as by `format!`. Ignores failures.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => { $crate::say::on_stderr(format_args!($($words)*)) };
}

/// Writes a line to standard output, formatted as by `format!`. Returns the result.
#[macro_export]
macro_rules! show {
    ($($words:tt)*) => { $crate::say::on_stdout(format_args!($($words)*)) };
}

/// Implements [`tell!`].
pub fn on_stderr(words: fmt::Arguments<'_>) {
    // There is no other place to report a failure.
    let _ = writeln!(io::stderr().lock(), "{words}");
}

/// Implements [`show!`].
pub fn on_stdout(words: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{words}")
}

/// Standard output and error of a program that must not block on their readers. Clones share them.
#[derive(Debug, Clone)]
pub struct Voice {
    stdout: Unhurried,
    stderr: Unhurried,
}

impl Voice {
    /// Starts the writer threads.
    pub fn start() -> io::Result<Self> {
        Ok(Self { stdout: Unhurried::start(io::stdout().as_fd())?, stderr: Unhurried::start(io::stderr().as_fd())? })
    }

    /// Writes a line to standard error.
    pub fn tell(&self, words: fmt::Arguments<'_>) {
        self.stderr.push(format!("{words}\n").as_bytes());
    }

    /// Writes text to standard output.
    pub fn show(&self, text: &str) {
        self.stdout.push(text.as_bytes());
    }

    /// Gives pending output a second to be written.
    pub fn finish(&self) {
        self.stdout.finish(LAST_LINES_MAX);
        self.stderr.finish(LAST_LINES_MAX);
    }
}
