//! Configuration: read once, from one source that is passed in, and checked as a whole.
//!
//! Owns the list of keys ([`keys::KEYS`]), the checked [`Config`] and the errors, which report all mistakes at once.
//! Invariants: an existing [`Config`] is valid. Each default is written down once, in the table. A secret is never
//! shown, neither by `Debug` nor in an error nor by `chatd config`.
//!
//! Does not cover: acting on the configuration. Nothing here reads the process environment; the caller passes it in.

mod capacity;
mod joining;
pub mod keys;
mod otel;
mod parse;
mod peers;
mod proxies;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::Level;

use crate::{
    net::{
        proxies::Proxies,
        tls::{Files, Secrets, Tls},
    },
    telemetry::traces::TraceSettings,
};

pub use capacity::Capacity;
pub use joining::{JoinToken, Joining};
pub use peers::REMEDY as PROTECT_PEERS;

/// The value of `JOIN` that waits for an invitation.
const INVITATION: &str = "invitation";
/// Bytes in the unit of `ACCOUNT_KIB_PER_S`.
const KIB: u64 = 1 << 10;
/// Bytes in the unit of `SNAPSHOT_LOG_MB`.
const MIB: u64 = 1024 * 1024;
/// Seconds in the unit of `SESSION_LIFETIME_HOURS`.
const HOUR_SECS: u64 = 3600;

/// The checked configuration of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name, unique in the cluster.
    pub name: String,
    /// Address that clients connect to (gRPC).
    pub listen: SocketAddr,
    /// Address that the other nodes connect to.
    pub peer_listen: SocketAddr,
    /// Address that browsers connect to.
    pub web_listen: SocketAddr,
    /// Address of metrics and probes.
    pub metrics_listen: SocketAddr,
    /// `host:port` that is announced to clients.
    pub advertise: String,
    /// `host:port` that is announced to the other nodes.
    pub peer_advertise: String,
    /// `host:port` that is announced to browsers.
    pub web_advertise: String,
    /// Further hosts under which browsers reach this node: `host` or `*.domain`, each with or without a port. In lower
    /// case.
    pub web_hosts: Vec<String>,
    /// How long browsers must use only TLS (HSTS `max-age`); zero revokes it.
    pub hsts: Duration,
    /// Directory of the databases, the snapshots and the admin socket.
    pub data_dir: PathBuf,
    /// The first members in the configured order; this node alone when none were given. Names and addresses are unique.
    /// Contains this node unless `join` is set.
    pub initial_nodes: Vec<InitialNode>,
    /// How this node becomes a member when it is not one of the first.
    pub join: Option<Join>,
    /// Credentials for nodes that join later.
    pub joining: Joining,
    /// Secrets that all nodes of a cluster share. The first is in use, the others are accepted.
    pub peer_secrets: Option<Secrets>,
    /// File that `peer_secrets` were read from, and are read from again.
    pub peer_secret_file: Option<PathBuf>,
    /// Whether to trust every host that reaches the peer port if nothing else protects it.
    pub insecure_peers: bool,
    /// Certificates for clients and browsers.
    pub tls: Option<Arc<Tls>>,
    /// Certificates for the other nodes, with the authorities that sign them.
    pub peer_tls: Option<Arc<Tls>>,
    /// Heartbeat interval of a leader.
    pub heartbeat: Duration,
    /// Shortest election timeout; at least two heartbeats.
    pub election_min: Duration,
    /// Longest election timeout; above `election_min`.
    pub election_max: Duration,
    /// Lifetime of a session.
    pub session_lifetime: Duration,
    /// Idle time after which a session ends; zero if sessions do not end by idleness.
    pub session_idle: Duration,
    /// Accounts that may be created from one address in an hour, counted by the leader.
    pub registrations_per_address: u32,
    /// Accounts that may be created in the cluster in an hour, counted by the leader.
    pub registrations_per_hour: u32,
    /// Least severe log lines that are written.
    pub log_level: Level,
    /// The same for the target `heartbeat`.
    pub heartbeat_log_level: Level,
    /// Format of the log lines.
    pub log_format: LogFormat,
    /// Target of the traces; `None` if tracing is off.
    pub traces: Option<TraceSettings>,
    /// The `OTEL_*` variables in effect, with secrets hidden.
    otel: Vec<(String, String)>,
    /// Time limit for draining requests and streams at a stop.
    pub drain_timeout: Duration,
    /// Log growth after which a snapshot is taken, in bytes.
    pub snapshot_log_bytes: u64,
    /// Interval between two comparisons of the nodes' digests.
    pub digest_interval: Duration,
    /// Log entries kept behind a snapshot.
    pub log_entries_kept: u64,
    /// How long the files may still hold deleted data.
    pub erase_after: Duration,
    /// Whether the client port serves gRPC reflection.
    pub reflection: bool,
    /// Proxies in front of the ports for clients and browsers.
    pub proxies: Arc<Proxies>,
    /// Quotas of an account, and the space that stays free.
    pub capacity: Capacity,
    /// Passwords hashed at the same time.
    pub hash_parallelism: usize,
    /// Threads of the asynchronous runtime; `None` for one per core.
    pub worker_threads: Option<usize>,
    /// Whether to stop when standard input closes.
    pub exit_with_parent: bool,
    /// Unusual but valid settings, to be logged at the start.
    pub warnings: Vec<String>,
}

/// One of the first members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialNode {
    /// Its name.
    pub name: String,
    /// `host:port` of its peer listener, resolved on each connect.
    pub peer_address: String,
}

/// How a node becomes a member of a cluster that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// Asks these members to join: `host:port` of their peer listeners.
    Ask(Vec<String>),
    /// Waits until an operator adds it.
    Invitation,
}

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `2024-03-20 10:15:30 - INFO - [n1:50051] message key=value`.
    Text,
    /// One JSON object per line.
    Json,
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key, with its prefix.
    pub key: String,
    /// The given value; `(hidden)` for a secret.
    pub given: String,
    /// The expected value.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: given {}, expected {}", self.key, self.given, self.expected)
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

/// The configured path of one of the files.
fn file(tls: &Option<Arc<Tls>>, which: impl FnOnce(&Files) -> Option<&Path>) -> String {
    tls.as_deref().and_then(|tls| which(tls.files()?)).map_or_else(String::new, |path| path.display().to_string())
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
        let nodes: Vec<String> = self.initial_nodes.iter().map(|n| format!("{}={}", n.name, n.peer_address)).collect();
        let proxies: Vec<String> = self.proxies.networks.iter().map(ToString::to_string).collect();
        let level = |level: Level| level.as_str().to_ascii_lowercase();
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let join = match &self.join {
            None => String::new(),
            Some(Join::Ask(addresses)) => addresses.join(","),
            Some(Join::Invitation) => INVITATION.to_owned(),
        };
        let secret = if self.peer_secrets.is_some() { "(hidden)" } else { "" };
        let values = [
            ("NAME", self.name.clone()),
            ("LISTEN", self.listen.to_string()),
            ("PEER_LISTEN", self.peer_listen.to_string()),
            ("WEB_LISTEN", self.web_listen.to_string()),
            ("METRICS_LISTEN", self.metrics_listen.to_string()),
            ("ADVERTISE", self.advertise.clone()),
            ("PEER_ADVERTISE", self.peer_advertise.clone()),
            ("WEB_ADVERTISE", self.web_advertise.clone()),
            ("WEB_HOSTS", self.web_hosts.join(",")),
            ("HSTS_SECONDS", self.hsts.as_secs().to_string()),
            ("DATA_DIR", self.data_dir.display().to_string()),
            ("INITIAL_NODES", nodes.join(",")),
            ("JOIN", join),
            ("EXPECTED_NODES", self.joining.expected_nodes.join(",")),
            ("JOIN_TOKEN", if self.joining.token.is_some() { "(hidden)" } else { "" }.to_owned()),
            // Its content is in effect as JOIN_TOKEN.
            ("JOIN_TOKEN_FILE", String::new()),
            ("PEER_SECRET", secret.to_owned()),
            // Its content is in effect as PEER_SECRET.
            ("PEER_SECRET_FILE", String::new()),
            ("INSECURE_PEERS", u8::from(self.insecure_peers).to_string()),
            ("TLS_CERT", file(&self.tls, |files| Some(&files.certificate))),
            ("TLS_KEY", file(&self.tls, |files| Some(&files.key))),
            ("PEER_TLS_CERT", file(&self.peer_tls, |files| Some(&files.certificate))),
            ("PEER_TLS_KEY", file(&self.peer_tls, |files| Some(&files.key))),
            ("PEER_TLS_CA", file(&self.peer_tls, |files| files.authority.as_deref())),
            ("HEARTBEAT_MS", self.heartbeat.as_millis().to_string()),
            ("ELECTION_MIN_MS", self.election_min.as_millis().to_string()),
            ("ELECTION_MAX_MS", self.election_max.as_millis().to_string()),
            ("SESSION_LIFETIME_HOURS", (self.session_lifetime.as_secs() / HOUR_SECS).to_string()),
            ("SESSION_IDLE_HOURS", (self.session_idle.as_secs() / HOUR_SECS).to_string()),
            ("REGISTRATIONS_PER_ADDRESS", self.registrations_per_address.to_string()),
            ("REGISTRATIONS_PER_HOUR", self.registrations_per_hour.to_string()),
            ("LOG_LEVEL", level(self.log_level)),
            ("HEARTBEAT_LOG_LEVEL", level(self.heartbeat_log_level)),
            ("LOG_FORMAT", format.to_owned()),
            ("DRAIN_TIMEOUT_MS", self.drain_timeout.as_millis().to_string()),
            ("SNAPSHOT_LOG_MB", (self.snapshot_log_bytes / MIB).to_string()),
            ("DIGEST_INTERVAL_S", self.digest_interval.as_secs().to_string()),
            ("LOG_ENTRIES_KEPT", self.log_entries_kept.to_string()),
            ("ERASE_AFTER_S", self.erase_after.as_secs().to_string()),
            ("TRUSTED_PROXIES", proxies.join(",")),
            ("PROXY_PROTOCOL", u8::from(self.proxies.speak_first).to_string()),
            ("REFLECTION", u8::from(self.reflection).to_string()),
        ]
        .into_iter()
        .chain(self.capacity.values())
        .chain([
            ("HASH_PARALLELISM", self.hash_parallelism.to_string()),
            ("WORKER_THREADS", self.worker_threads.unwrap_or(0).to_string()),
            ("EXIT_WITH_PARENT", u8::from(self.exit_with_parent).to_string()),
        ]);
        let own = values.map(|(key, value)| (format!("{}{key}", keys::PREFIX), value));
        own.chain(self.otel.iter().cloned()).collect()
    }
}
