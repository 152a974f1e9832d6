//! Options that every command has, and values that options of several commands share.
//!
//! Does not cover: the commands and their arguments (`commands`).

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Addresses of nodes (host:port, separated by commas); some are enough [env: CHAT_NODES] [default: those of the
    /// session; without one, and for `login` and `register`, 127.0.0.1:50051 to 50055]
    #[arg(long, global = true, value_delimiter = ',', value_name = "ADDRESSES")]
    pub(crate) nodes: Option<Vec<String>>,
    /// Connect with TLS, and trust the certificate authorities in this file (PEM) [env: CHAT_TLS_CA] [default: that of
    /// the session]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Output format
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
    /// Account whose session to use [default: the latest login]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Request a trace of the calls, and print its id; a context in TRACEPARENT is used without this option, too
    #[arg(long, global = true)]
    pub(crate) trace: bool,
    /// Timeout of one call, including its retries
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// Format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned, for people.
    Text,
    /// One JSON value per line.
    Json,
}

/// Parses a positive number of seconds, at most a day.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be more than 0 and at most 86400 seconds".to_owned())
    }
}

/// Returns the default of `--seed`: 53 random bits, so that every JSON reader preserves the number.
pub(crate) fn random_seed() -> u64 {
    fastrand::u64(..) >> 11
}
