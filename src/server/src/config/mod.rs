//! Configuration: read once, from one source that is passed in, and checked as a whole.
//!
//! Owns the list of keys (`table`), the checked [`Config`] and the errors, which report all mistakes at once.
//! Invariants: an existing [`Config`] is valid. Everything about a key is written down once, in the table. A secret is
//! never shown, neither by `Debug` nor in an error nor by `chatd config`. The relations between keys are checked in the
//! files of their subjects.
//!
//! Does not cover: acting on the configuration. Nothing here reads the process environment; the caller passes it in.

mod addresses;
mod checker;
mod formats;
mod joining;
pub mod keys;
mod logging;
mod members;
mod otel;
mod parse;
mod peers;
mod proxies;
mod table;
#[cfg(test)]
mod tests;
mod timing;
mod tls;

use std::{fmt, net::SocketAddr};

pub use joining::JoinToken;
pub use logging::LogFormat;
pub use members::{InitialNode, Join};
pub use peers::REMEDY as PROTECT_PEERS;
pub use table::Config;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key, with its prefix.
    pub key: String,
    /// The given value in quotes; `(hidden)` for a secret. Empty and missing values are the same.
    pub given: String,
    /// The expected value.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, given, expected } = self;
        match given.as_str() {
            "\"\"" => write!(f, "{key}: not set, expected {expected}"),
            _ => write!(f, "{key}: given {given}, expected {expected}"),
        }
    }
}

/// All mistakes in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl ConfigErrors {
    /// The exit code of the process: `EX_USAGE` of `sysexits.h`.
    pub const EXIT_CODE: u8 = 64;
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 mistake in the configuration:")?,
            n => write!(f, "{n} mistakes in the configuration:")?,
        }
        for mistake in &self.0 {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the keys that start with `CHAT_`, and those of OpenTelemetry for traces, from `source` (usually the
    /// environment), and checks them all.
    ///
    /// Besides `source`, it reads the files named by `PEER_SECRET_FILE`, by the keys with `TLS` and by
    /// `OTEL_EXPORTER_OTLP_CERTIFICATE`. If there is no `NAME`, it also reads the host's name.
    pub fn load(source: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        parse::load(source)
    }

    /// Only `METRICS_LISTEN`, from the same source, for probing a node. Port 0 is a mistake here.
    pub fn metrics_listen(source: impl IntoIterator<Item = (String, String)>) -> Result<SocketAddr, Mistake> {
        parse::metrics_listen(source)
    }

    /// The values in effect: each key (with prefix) and its value in the format of the configuration, in the order of
    /// the table. Secrets are hidden.
    pub fn effective(&self) -> Vec<(String, String)> {
        let own = self.values().into_iter().map(|(name, value)| (format!("{}{name}", keys::PREFIX), value));
        own.chain(self.otel.iter().cloned()).collect()
    }
}
