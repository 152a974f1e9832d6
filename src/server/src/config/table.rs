//! The table of all keys: one entry for each, from which everything else about it follows.
//!
//! An entry yields the field of [`Config`], its parsing and its default, and the lines of `chatd --help`,
//! `chatd config` and `docs/configuration.md`. The comment above an entry is the text that users read.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use tracing::Level;

use super::{
    InitialNode, Join, JoinToken, LogFormat,
    addresses::{HostAndPort, WEB_HOSTS},
    checker::Checker,
    formats::{Bytes, Format as _, Listen, Optional, PathText, SourceFile, Switch, Time, Whole},
    joining::{EXPECTED_NODES, Token},
    keys::{
        Fallback::{Derived, Fixed},
        Key,
    },
    logging::{Levels, LogFormats},
    members::{InitialNodes, Joins, NodeName},
    peers::PeerSecrets,
    proxies::NETWORKS,
};
use crate::telemetry::traces::TraceSettings;
use net::{
    proxies::Proxies,
    tls::{Secrets, Tls},
};

macro_rules! settings {
    ($(
        $(#[doc = $meaning:literal])+
        $field:ident: $Value:ty = $name:literal, $unit:literal, $default:expr, $format:expr;
    )+) => {
        /// Every key, in the order of display.
        pub const KEYS: &[Key] = &[
            $(Key { name: $name, default: $default, unit: $unit, meaning: concat!($($meaning),+).trim_ascii_start() }),+
        ];

        /// The checked configuration of a node.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(#[doc = $meaning])+ pub $field: $Value,)+
            /// The certificates of `tls_cert`.
            pub tls: Option<Arc<Tls>>,
            /// The certificates of `peer_tls_cert`, with the authorities that sign those of the other nodes.
            pub peer_tls: Option<Arc<Tls>>,
            /// Proxies in front of the ports for clients and browsers.
            pub proxies: Arc<Proxies>,
            /// Target of the traces; `None` if tracing is off.
            pub traces: Option<TraceSettings>,
            /// Unusual but valid settings, to be logged at the start.
            pub warnings: Vec<String>,
            /// The `OTEL_*` variables in effect, with secrets hidden.
            pub(super) otel: Vec<(String, String)>,
        }

        /// The value of each key; `None` if it is wrong, or yet to be derived.
        pub(super) struct Parsed {
            $(pub $field: Option<$Value>,)+
        }

        impl Parsed {
            /// Parses each key by itself.
            pub fn read(checker: &mut Checker) -> Self {
                Self { $($field: checker.value($name, $default, &$format),)+ }
            }

            /// The configuration, without traces and warnings. `None` if a value is missing.
            pub fn complete(self, loaded: Loaded) -> Option<Config> {
                Some(Config {
                    $($field: self.$field?,)+
                    tls: loaded.tls,
                    peer_tls: loaded.peer_tls,
                    proxies: loaded.proxies,
                    traces: None,
                    warnings: Vec::new(),
                    otel: Vec::new(),
                })
            }
        }

        impl Config {
            /// The value of each key (without prefix) in the format of the configuration.
            pub(super) fn values(&self) -> Vec<(&'static str, String)> {
                vec![$(($name, $format.show(&self.$field))),+]
            }
        }
    };
}

/// What was made of several keys.
pub(super) struct Loaded {
    pub tls: Option<Arc<Tls>>,
    pub peer_tls: Option<Arc<Tls>>,
    pub proxies: Arc<Proxies>,
}

/// Smallest reserve. A node accepts no entries below the space that a start needs, which is up to half of the reserve.
const RESERVE_MB_MIN: u64 = 8;

settings! {
    /// This node's name: 1-63 of [A-Za-z0-9_.-], unique in the cluster.
    name: String = "NAME", "name", Derived("the host's name"), NodeName;
    /// Address of the gRPC port for clients.
    listen: SocketAddr = "LISTEN", "ip:port", Fixed("[::]:50051"), Listen { advertised: true };
    /// Address of the peer port for the other nodes.
    peer_listen: SocketAddr =
        "PEER_LISTEN", "ip:port",
        Derived("127.0.0.1:50052 without INITIAL_NODES, JOIN, PEER_SECRET and PEER_TLS_*, else [::]:50052"),
        Listen { advertised: true };
    /// Address of the web port for browsers.
    web_listen: SocketAddr = "WEB_LISTEN", "ip:port", Fixed("[::]:8080"), Listen { advertised: true };
    /// Address of the port for /metrics, /livez and /readyz.
    metrics_listen: SocketAddr = "METRICS_LISTEN", "ip:port", Fixed("[::]:9464"), Listen { advertised: false };
    /// Address of this node for clients, as announced to them.
    advertise: String =
        "ADVERTISE", "host:port",
        Derived("NAME and LISTEN's port; LISTEN itself on loopback"),
        HostAndPort;
    /// Address of this node for the other nodes; resolved again on each reconnect.
    peer_advertise: String =
        "PEER_ADVERTISE", "host:port",
        Derived("this node's entry in INITIAL_NODES, or else like ADVERTISE"),
        HostAndPort;
    /// Address of this node for browsers, as announced to them.
    web_advertise: String = "WEB_ADVERTISE", "host:port", Derived("like ADVERTISE"), HostAndPort;
    /// Further hosts under which browsers reach this node, such as a proxy's; requests for other hosts are rejected.
    web_hosts: Vec<String> =
        "WEB_HOSTS", "host,*.domain,...",
        Derived("none: the hosts that the members advertise for browsers, and loopback if the port listens on it"),
        WEB_HOSTS;
    /// How long a browser that connected with TLS uses only TLS for this host (all its ports); 0 revokes it.
    hsts: Duration = "HSTS_SECONDS", "seconds", Fixed("2592000"), Time::seconds(0..=63_072_000);
    /// Directory for all data of this node. The container image sets it to its volume.
    data_dir: PathBuf = "DATA_DIR", "directory", Fixed("data"), PathText;
    /// The first members and their peer addresses, equal on all nodes; bootstraps the cluster and identifies it.
    initial_nodes: Vec<InitialNode> =
        "INITIAL_NODES", "name=host:port,...",
        Derived("none: a cluster of this node alone"),
        InitialNodes;
    /// For a node that joins later: peer addresses of members, or `invitation` to wait for `chatctl members add`.
    join: Option<Join> =
        "JOIN", "host:port,...|invitation",
        Derived("none: the node is one of INITIAL_NODES"),
        Optional(Joins);
    /// Names of nodes that may join by JOIN without a token; a trailing * matches any suffix. Equal on all nodes.
    expected_nodes: Vec<String> =
        "EXPECTED_NODES", "name,prefix*,...",
        Derived("none: besides members and INITIAL_NODES, nodes need a JOIN_TOKEN"),
        EXPECTED_NODES;
    /// Token from `chatctl members token`, for a node whose name the members do not expect.
    join_token: Option<JoinToken> = "JOIN_TOKEN", "64 hex digits", Derived("none"), Optional(Token);
    /// File to read JOIN_TOKEN from instead.
    join_token_file: Option<PathBuf> = "JOIN_TOKEN_FILE", "file", Derived("none"), Optional(SourceFile);
    /// Secret of all nodes; keys for TLS between them derive from it. Up to 4, the first in use, all accepted.
    peer_secrets: Option<Secrets> =
        "PEER_SECRET", "16-256 characters",
        Derived("none: needed for a cluster, unless PEER_TLS_* are given"),
        Optional(PeerSecrets);
    /// File to read PEER_SECRET from instead; reloaded when it changes.
    peer_secret_file: Option<PathBuf> = "PEER_SECRET_FILE", "file", Derived("none"), Optional(SourceFile);
    /// Trust every host that reaches the peer port, if neither PEER_SECRET nor PEER_TLS_* protects it.
    insecure_peers: bool = "INSECURE_PEERS", "0|1", Fixed("0"), Switch;
    /// Certificate chain (PEM) of LISTEN and WEB_LISTEN; reloaded when it changes.
    tls_cert: Option<PathBuf> =
        "TLS_CERT", "file",
        Derived("none: clients and browsers connect without TLS"),
        Optional(PathText);
    /// Key of TLS_CERT (PEM).
    tls_key: Option<PathBuf> = "TLS_KEY", "file", Derived("none"), Optional(PathText);
    /// Certificate chain (PEM) of this node for the other nodes, as server and as client; reloaded when it changes.
    peer_tls_cert: Option<PathBuf> =
        "PEER_TLS_CERT", "file",
        Derived("none: PEER_SECRET protects the peer port"),
        Optional(PathText);
    /// Key of PEER_TLS_CERT (PEM).
    peer_tls_key: Option<PathBuf> = "PEER_TLS_KEY", "file", Derived("none"), Optional(PathText);
    /// Authorities (PEM) of the nodes' certificates; a caller can only act for the hosts in its certificate.
    peer_tls_ca: Option<PathBuf> = "PEER_TLS_CA", "file", Derived("none"), Optional(PathText);
    /// Interval of the leader's heartbeats.
    heartbeat: Duration = "HEARTBEAT_MS", "ms", Fixed("100"), Time::millis(10..=10_000);
    /// Minimum election timeout; at least two heartbeats.
    election_min: Duration = "ELECTION_MIN_MS", "ms", Fixed("300"), Time::millis(20..=60_000);
    /// Maximum election timeout; above ELECTION_MIN_MS.
    election_max: Duration = "ELECTION_MAX_MS", "ms", Fixed("600"), Time::millis(21..=120_000);
    /// Lifetime of a session.
    session_lifetime: Duration = "SESSION_LIFETIME_HOURS", "hours", Fixed("720"), Time::hours(1..=87_600);
    /// Idle timeout of a session; 0: none.
    session_idle: Duration = "SESSION_IDLE_HOURS", "hours", Fixed("0"), Time::hours(0..=87_600);
    /// Registrations from one address; up to an hour's worth at once. The leader's value applies.
    registrations_per_address: u32 = "REGISTRATIONS_PER_ADDRESS", "per hour", Fixed("200"), Whole(1..=1_000_000);
    /// Registrations in the whole cluster; up to an hour's worth at once. The leader's value applies.
    registrations_per_hour: u32 = "REGISTRATIONS_PER_HOUR", "per hour", Fixed("2000"), Whole(1..=1_000_000);
    /// Login attempts from one address with devices that are new to the account; a sixth at once. The leader's applies.
    login_attempts_per_address: u32 = "LOGIN_ATTEMPTS_PER_ADDRESS", "per hour", Fixed("600"), Whole(6..=1_000_000);
    /// Lowest level of the log lines that are written.
    log_level: Level = "LOG_LEVEL", "error|warn|info|debug|trace", Fixed("info"), Levels;
    /// The same for heartbeats between the nodes.
    heartbeat_log_level: Level = "HEARTBEAT_LOG_LEVEL", "error|warn|info|debug|trace", Fixed("warn"), Levels;
    /// Format of the log on standard error: lines for people, or JSON objects.
    log_format: LogFormat = "LOG_FORMAT", "text|json", Fixed("text"), LogFormats;
    /// Time limit for calls and streams to end during a planned stop.
    drain_timeout: Duration = "DRAIN_TIMEOUT_MS", "ms", Fixed("10000"), Time::millis(0..=600_000);
    /// Growth of the log after which the state is flushed and the log truncated.
    snapshot_log_bytes: u64 = "SNAPSHOT_LOG_MB", "MiB", Fixed("256"), Bytes::mib(1..=65_536);
    /// Interval at which the nodes compare the digests of their states, if something changed.
    digest_interval: Duration = "DIGEST_INTERVAL_S", "seconds", Fixed("30"), Time::seconds(1..=86_400);
    /// Interval at which chat.db and log.db are read in the background, in search of damage; at most 64 MiB/s.
    scrub_interval: Duration = "SCRUB_INTERVAL_S", "seconds", Fixed("86400"), Time::seconds(1..=31_536_000);
    /// Caches of the data: half for rows, the rest for pages of chat.db and the newest entries of the log.
    cache_bytes: u64 = "CACHE_MB", "MiB", Fixed("64"), Bytes::mib(8..=65_536);
    /// Log entries kept before a snapshot, so that a node that was briefly down needs no snapshot.
    log_entries_kept: u64 = "LOG_ENTRIES_KEPT", "entries", Fixed("20000"), Whole(0..=10_000_000);
    /// Size of these entries at most. A start reads them.
    log_bytes_kept: u64 = "LOG_MB_KEPT", "MiB", Fixed("512"), Bytes::mib(0..=1 << 20);
    /// How long files other than chat.db may hold deleted data; older log entries are removed.
    erase_after: Duration = "ERASE_AFTER_S", "seconds", Fixed("86400"), Time::seconds(1..=31_536_000);
    /// Proxies in front of LISTEN and WEB_LISTEN whose X-Forwarded-For and X-Forwarded-Proto headers are trusted.
    trusted_proxies: Vec<IpNet> = "TRUSTED_PROXIES", "address or network,...", Derived("none"), NETWORKS;
    /// TRUSTED_PROXIES begin each connection with a PROXY protocol header; their HTTP headers are ignored.
    proxy_protocol: bool = "PROXY_PROTOCOL", "0|1", Fixed("0"), Switch;
    /// Serve gRPC reflection, which shows the protocol to every caller.
    reflection: bool = "REFLECTION", "0|1", Fixed("1"), Switch;
    /// Rate of messages of an account in the whole cluster, with a burst of ten times as many; 0: unlimited.
    account_messages_per_s: u64 = "ACCOUNT_MESSAGES_PER_S", "messages/s", Fixed("2000"), Whole(0..=1_000_000);
    /// The same for the bytes of its messages (the body and 128 bytes each).
    account_bytes_per_s: u64 = "ACCOUNT_KIB_PER_S", "KiB/s", Fixed("4096"), Bytes::kib(0..=1 << 30);
    /// The same for changes of any kind; a deletion counts once per message, receipts count on each node alone.
    account_changes_per_s: u64 = "ACCOUNT_CHANGES_PER_S", "changes/s", Fixed("5000"), Whole(0..=1_000_000);
    /// Quota of stored, undeleted messages of an account; 0: unlimited. The leader's value applies.
    account_messages_max: u64 = "ACCOUNT_MESSAGES_MAX", "messages", Fixed("2000000"), Whole(0..=1 << 40);
    /// Storage quota of an account: the bodies of its messages, and 64 bytes per deleted message; 0: unlimited.
    account_bytes_max: u64 = "ACCOUNT_MIB_MAX", "MiB", Fixed("1024"), Bytes::mib(0..=1 << 30);
    /// Free space below which messages and registrations are rejected, at least 8, at most a tenth of the volume; 0: no
    /// check.
    space_reserve_bytes: u64 = "SPACE_RESERVE_MB", "MiB", Fixed("256"), Bytes::zero_or_mib(RESERVE_MB_MIN..=1 << 20);
    /// Concurrent password hashes; each takes 19 MiB.
    hash_parallelism: usize = "HASH_PARALLELISM", "threads", Fixed("2"), Whole(1..=64);
    /// Worker threads of the runtime; 0: one per core.
    worker_threads: usize = "WORKER_THREADS", "threads", Fixed("0"), Whole(0..=1024);
    /// Stop when standard input is closed; `chatd local` sets it for its nodes.
    exit_with_parent: bool = "EXIT_WITH_PARENT", "0|1", Fixed("0"), Switch;
}
