//! Words for the person, or the program, behind standard output and standard error.
//!
//! Whoever reads them may be gone: `tee` has ended, `head` has seen enough, the disk of a redirection is full. What a program was
//! told to do does not depend on that, so nothing here panics. Words on standard error are lost without a reader; a failure of
//! standard output is the caller's to judge.

use std::{
    fmt,
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use crate::telemetry::unhurried::{LAST_LINES_MAX, Unhurried};

/// Says a line on standard error, formatted as by `format!`.
macro_rules! tell {
    ($($words:tt)*) => { $crate::cli::say::on_stderr(format_args!($($words)*)) };
}

/// Writes a line to standard output, formatted as by `format!`. Gives what came of it.
macro_rules! show {
    ($($words:tt)*) => { $crate::cli::say::on_stdout(format_args!($($words)*)) };
}

pub(super) use {show, tell};

/// See [`tell`].
pub(super) fn on_stderr(words: fmt::Arguments<'_>) {
    // Nobody is left who could be told of it.
    let _ = writeln!(io::stderr().lock(), "{words}");
}

/// See [`show`].
pub(super) fn on_stdout(words: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{words}")
}

/// Standard output and error of a program that has more to do than to wait for its reader. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    stdout: Unhurried,
    stderr: Unhurried,
}

impl Voice {
    /// Starts the threads that write.
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self { stdout: Unhurried::start(io::stdout().as_fd())?, stderr: Unhurried::start(io::stderr().as_fd())? })
    }

    /// Says a line on standard error.
    pub(super) fn tell(&self, words: fmt::Arguments<'_>) {
        self.stderr.push(format!("{words}\n").as_bytes());
    }

    /// Writes text to standard output.
    pub(super) fn show(&self, text: &str) {
        self.stdout.push(text.as_bytes());
    }

    /// Gives the last words a second to be written.
    pub(super) fn finish(&self) {
        self.stdout.finish(LAST_LINES_MAX);
        self.stderr.finish(LAST_LINES_MAX);
    }
}
