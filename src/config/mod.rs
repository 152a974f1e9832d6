//! Configuration: read once, from one source that is handed in, checked as a whole.
//!
//! Owns the list of keys ([`keys::KEYS`]), the checked [`Config`] and the errors that tell everything that is wrong in
//! one go. Invariants: a [`Config`] that exists is valid; a default is written down once, in the table; a secret is
//! never shown, neither by `Debug` nor in an error nor by `chatd config`.
//!
//! Left out: acting on any of it. Nothing here reads the process environment; the caller passes it in.

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

/// The value of `JOIN` that waits.
const INVITATION: &str = "invitation";
/// Bytes in the unit of `ACCOUNT_KIB_PER_S`.
const KIB: u64 = 1 << 10;
/// Bytes in the unit of `SNAPSHOT_LOG_MB`.
const MIB: u64 = 1024 * 1024;
/// Seconds in the unit of `SESSION_LIFETIME_HOURS`.
const HOUR_SECS: u64 = 3600;

/// Everything a node is told from outside, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name, unique in the cluster.
    pub name: String,
    /// Where clients connect (gRPC).
    pub listen: SocketAddr,
    /// Where the other nodes connect.
    pub peer_listen: SocketAddr,
    /// Where browsers connect.
    pub web_listen: SocketAddr,
    /// Where metrics and probes are served.
    pub metrics_listen: SocketAddr,
    /// `host:port` that clients are told.
    pub advertise: String,
    /// `host:port` that the other nodes are told.
    pub peer_advertise: String,
    /// `host:port` that browsers are told.
    pub web_advertise: String,
    /// Further hosts under which browsers reach this node: `host`, `*.domain`, each with a port or without. In lower case.
    pub web_hosts: Vec<String>,
    /// How long browsers are told to use nothing but TLS; zero takes it back.
    pub hsts: Duration,
    /// Directory of the databases, the snapshots and the admin socket.
    pub data_dir: PathBuf,
    /// The first members in the configured order; this node alone when none were given. Names and addresses are unique.
    /// Contains this node, unless `join` says how it comes later.
    pub initial_nodes: Vec<InitialNode>,
    /// How this node becomes a member when it is not one of the first.
    pub join: Option<Join>,
    /// Who may join later, and with what.
    pub joining: Joining,
    /// Shared by all nodes of a cluster: the first is in use, the others are accepted.
    pub peer_secrets: Option<Secrets>,
    /// Where `peer_secrets` were read, and are read again.
    pub peer_secret_file: Option<PathBuf>,
    /// Trust every host that reaches the peer port, if nothing else protects it.
    pub insecure_peers: bool,
    /// Certificates for clients and browsers.
    pub tls: Option<Arc<Tls>>,
    /// Certificates for the other nodes, with the authorities that vouch for them.
    pub peer_tls: Option<Arc<Tls>>,
    /// How often a leader shows that it is there.
    pub heartbeat: Duration,
    /// Shortest silence before an election; at least two heartbeats.
    pub election_min: Duration,
    /// Longest silence before an election; above `election_min`.
    pub election_max: Duration,
    /// How long a login is good for.
    pub session_lifetime: Duration,
    /// A session that is not used for this long ends; zero: never for that.
    pub session_idle: Duration,
    /// Accounts that may be created from one address in an hour, counted by the leader.
    pub registrations_per_address: u32,
    /// Accounts that may be created in the cluster in an hour, counted by the leader.
    pub registrations_per_hour: u32,
    /// Least important log lines that are written.
    pub log_level: Level,
    /// The same for the target `heartbeat`.
    pub heartbeat_log_level: Level,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Where traces go; `None`: nothing is traced.
    pub traces: Option<TraceSettings>,
    /// The `OTEL_*` variables in effect, secrets hidden.
    otel: Vec<(String, String)>,
    /// Longest wait for requests and streams to end at a stop.
    pub drain_timeout: Duration,
    /// Log growth after which a snapshot is taken, in bytes.
    pub snapshot_log_bytes: u64,
    /// Between two comparisons of the nodes' digests.
    pub digest_interval: Duration,
    /// Log entries kept behind a snapshot.
    pub log_entries_kept: u64,
    /// How long the files may hold what was deleted.
    pub erase_after: Duration,
    /// Whether the client port serves gRPC reflection.
    pub reflection: bool,
    /// Proxies in front of the ports for clients and browsers.
    pub proxies: Arc<Proxies>,
    /// What an account may take, and which space stays free.
    pub capacity: Capacity,
    /// Passwords hashed at the same time.
    pub hash_parallelism: usize,
    /// Threads of the asynchronous runtime; `None`: one for each core.
    pub worker_threads: Option<usize>,
    /// Stop when standard input closes.
    pub exit_with_parent: bool,
    /// What is odd but not wrong; to be logged at start.
    pub warnings: Vec<String>,
}

/// One of the first members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialNode {
    /// Its name.
    pub name: String,
    /// `host:port` of its peer listener, resolved anew on each connect.
    pub peer_address: String,
}

/// How a node becomes a member of a cluster that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// It asks these members: `host:port` of their peer listeners.
    Ask(Vec<String>),
    /// It waits until an operator has it added.
    Invitation,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `2024-03-20 10:15:30 - INFO - [n1:50051] message key=value`.
    Text,
    /// One JSON object per line.
    Json,
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key, with its prefix.
    pub key: String,
    /// What was given; `(hidden)` for a secret.
    pub given: String,
    /// What is expected instead.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: given {}, expected {}", self.key, self.given, self.expected)
    }
}

/// Everything that is wrong with the configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl ConfigErrors {
    /// What the process exits with: `EX_USAGE` of `sysexits.h`.
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

/// The path of one of the files, as it was given.
fn file(tls: &Option<Arc<Tls>>, which: impl FnOnce(&Files) -> Option<&Path>) -> String {
    tls.as_deref().and_then(|tls| which(tls.files()?)).map_or_else(String::new, |path| path.display().to_string())
}

impl Config {
    /// Reads the keys that start with `CHAT_`, and those of OpenTelemetry for traces, from `source` (usually the environment)
    /// and checks them all.
    ///
    /// Besides `source` it reads the files that `PEER_SECRET_FILE`, the keys with `TLS` and `OTEL_EXPORTER_OTLP_CERTIFICATE` name and, when there is no `NAME`,
    /// the host's name.
    pub fn load(source: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        parse::load(source)
    }

    /// `METRICS_LISTEN` alone, from the same source: for who wants to ask a node how it is. Port 0 is a mistake here.
    pub fn metrics_listen(source: impl IntoIterator<Item = (String, String)>) -> Result<SocketAddr, Mistake> {
        parse::metrics_listen(source)
    }

    /// The values in effect: each key (with prefix) and its value as it would be given, in the order of the table.
    /// Secrets are hidden.
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
