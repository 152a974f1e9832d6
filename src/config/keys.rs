//! The table of all keys, with their names, defaults, units and meanings.
//!
//! `chatd --help`, the defaults of the parser and the key names in errors come from it, so they cannot disagree. A test
//! compares it with the raw struct and with the effective values.

use std::fmt::Write as _;

use super::otel;

/// The prefix of every key.
pub const PREFIX: &str = "CHAT_";

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Name without [`PREFIX`].
    pub name: &'static str,
    /// The value if the key is absent or empty.
    pub default: Fallback,
    /// Unit or format of the value.
    pub unit: &'static str,
    /// The effect of the key, in one sentence.
    pub meaning: &'static str,
}

/// The source of a key's value if none is given.
#[derive(Debug, Clone, Copy)]
pub enum Fallback {
    /// This text, parsed like a given value.
    Fixed(&'static str),
    /// Derived from other keys or from the host, as described.
    Derived(&'static str),
}

const fn key(name: &'static str, default: Fallback, unit: &'static str, meaning: &'static str) -> Key {
    Key { name, default, unit, meaning }
}

use Fallback::{Derived, Fixed};

/// Every key, in the order of display.
pub const KEYS: &[Key] = &[
    key("NAME", Derived("the host's name"), "name", "This node's name: 1-63 of [A-Za-z0-9_.-], unique in the cluster."),
    key("LISTEN", Fixed("[::]:50051"), "ip:port", "Address of the gRPC port for clients."),
    key(
        "PEER_LISTEN",
        Derived("127.0.0.1:50052 without INITIAL_NODES, JOIN, PEER_SECRET and PEER_TLS_*, else [::]:50052"),
        "ip:port",
        "Address of the peer port for the other nodes.",
    ),
    key("WEB_LISTEN", Fixed("[::]:8080"), "ip:port", "Address of the web port for browsers."),
    key("METRICS_LISTEN", Fixed("[::]:9464"), "ip:port", "Address of the port for /metrics, /livez and /readyz."),
    key(
        "ADVERTISE",
        Derived("NAME and LISTEN's port; LISTEN itself on loopback"),
        "host:port",
        "Address of this node for clients, as announced to them.",
    ),
    key(
        "PEER_ADVERTISE",
        Derived("this node's entry in INITIAL_NODES, or else like ADVERTISE"),
        "host:port",
        "Address of this node for the other nodes; resolved again on each reconnect.",
    ),
    key(
        "WEB_ADVERTISE",
        Derived("like ADVERTISE"),
        "host:port",
        "Address of this node for browsers, as announced to them.",
    ),
    key(
        "WEB_HOSTS",
        Derived("none: the hosts that the members advertise for browsers, and loopback if the port listens on it"),
        "host,*.domain,...",
        "Further hosts under which browsers reach this node, such as a proxy's; requests for other hosts are rejected.",
    ),
    key(
        "HSTS_SECONDS",
        Fixed("2592000"),
        "seconds",
        "How long a browser that connected with TLS uses only TLS for this host (all its ports); 0 revokes it.",
    ),
    key(
        "DATA_DIR",
        Fixed("data"),
        "directory",
        "Directory for all data of this node. The container image sets it to its volume.",
    ),
    key(
        "INITIAL_NODES",
        Derived("none: a cluster of this node alone"),
        "name=host:port,...",
        "The first members and their peer addresses, equal on all nodes; bootstraps the cluster and identifies it.",
    ),
    key(
        "JOIN",
        Derived("none: the node is one of INITIAL_NODES"),
        "host:port,...|invitation",
        "For a node that joins later: peer addresses of members, or `invitation` to wait for `chatctl members add`.",
    ),
    key(
        "EXPECTED_NODES",
        Derived("none: besides members and INITIAL_NODES, nodes need a JOIN_TOKEN"),
        "name,prefix*,...",
        "Names of nodes that may join by JOIN without a token; a trailing * matches any suffix. Equal on all nodes.",
    ),
    key(
        "JOIN_TOKEN",
        Derived("none"),
        "64 hex digits",
        "Token from `chatctl members token`, for a node whose name the members do not expect.",
    ),
    key("JOIN_TOKEN_FILE", Derived("none"), "file", "File to read JOIN_TOKEN from instead."),
    key(
        "PEER_SECRET",
        Derived("none: needed for a cluster, unless PEER_TLS_* are given"),
        "16-256 characters",
        "Secret of all nodes; keys for TLS between them derive from it. Up to 4, the first in use, all accepted.",
    ),
    key(
        "PEER_SECRET_FILE",
        Derived("none"),
        "file",
        "File to read PEER_SECRET from instead; reloaded when it changes.",
    ),
    key(
        "INSECURE_PEERS",
        Fixed("0"),
        "0|1",
        "Trust every host that reaches the peer port, if neither PEER_SECRET nor PEER_TLS_* protects it.",
    ),
    key(
        "TLS_CERT",
        Derived("none: clients and browsers connect without TLS"),
        "file",
        "Certificate chain (PEM) of LISTEN and WEB_LISTEN; reloaded when it changes.",
    ),
    key("TLS_KEY", Derived("none"), "file", "Key of TLS_CERT (PEM)."),
    key(
        "PEER_TLS_CERT",
        Derived("none: PEER_SECRET protects the peer port"),
        "file",
        "Certificate chain (PEM) of this node for the other nodes, as server and as client; reloaded when it changes.",
    ),
    key("PEER_TLS_KEY", Derived("none"), "file", "Key of PEER_TLS_CERT (PEM)."),
    key(
        "PEER_TLS_CA",
        Derived("none"),
        "file",
        "Authorities (PEM) of the nodes' certificates; a caller can only act for the hosts in its certificate.",
    ),
    key("HEARTBEAT_MS", Fixed("100"), "ms", "Interval of the leader's heartbeats."),
    key("ELECTION_MIN_MS", Fixed("300"), "ms", "Minimum election timeout; at least two heartbeats."),
    key("ELECTION_MAX_MS", Fixed("600"), "ms", "Maximum election timeout; above ELECTION_MIN_MS."),
    key("SESSION_LIFETIME_HOURS", Fixed("720"), "hours", "Lifetime of a session."),
    key("SESSION_IDLE_HOURS", Fixed("0"), "hours", "Idle timeout of a session; 0: none."),
    key(
        "REGISTRATIONS_PER_ADDRESS",
        Fixed("200"),
        "per hour",
        "Registrations from one address; up to an hour's worth at once. The leader's value applies.",
    ),
    key(
        "REGISTRATIONS_PER_HOUR",
        Fixed("2000"),
        "per hour",
        "Registrations in the whole cluster; up to an hour's worth at once. The leader's value applies.",
    ),
    key("LOG_LEVEL", Fixed("info"), "error|warn|info|debug|trace", "Lowest level of the log lines that are written."),
    key(
        "HEARTBEAT_LOG_LEVEL",
        Fixed("warn"),
        "error|warn|info|debug|trace",
        "The same for heartbeats between the nodes.",
    ),
    key(
        "LOG_FORMAT",
        Fixed("text"),
        "text|json",
        "Format of the log on standard error: lines for people, or JSON objects.",
    ),
    key("DRAIN_TIMEOUT_MS", Fixed("10000"), "ms", "Time limit for calls and streams to end during a planned stop."),
    key(
        "SNAPSHOT_LOG_MB",
        Fixed("256"),
        "MiB",
        "Growth of the log after which a snapshot is built and the log truncated.",
    ),
    key(
        "DIGEST_INTERVAL_S",
        Fixed("30"),
        "seconds",
        "Interval at which the nodes compare the digests of their states, if something changed.",
    ),
    key(
        "LOG_ENTRIES_KEPT",
        Fixed("20000"),
        "entries",
        "Log entries kept before a snapshot, so that a node that was briefly down needs no snapshot.",
    ),
    key(
        "ERASE_AFTER_S",
        Fixed("86400"),
        "seconds",
        "How long files other than chat.db may hold deleted data; older log entries are removed.",
    ),
    key(
        "TRUSTED_PROXIES",
        Fixed(""),
        "address or network,...",
        "Proxies in front of LISTEN and WEB_LISTEN whose X-Forwarded-For and X-Forwarded-Proto headers are trusted.",
    ),
    key(
        "PROXY_PROTOCOL",
        Fixed("0"),
        "0|1",
        "TRUSTED_PROXIES begin each connection with a PROXY protocol header; their HTTP headers are ignored.",
    ),
    key("REFLECTION", Fixed("1"), "0|1", "Serve gRPC reflection, which shows the protocol to every caller."),
    key(
        "ACCOUNT_MESSAGES_PER_S",
        Fixed("2000"),
        "messages/s",
        "Rate of messages of an account in the whole cluster, with a burst of ten times as many; 0: unlimited.",
    ),
    key(
        "ACCOUNT_KIB_PER_S",
        Fixed("4096"),
        "KiB/s",
        "The same for the bytes of its messages (the body and 128 bytes each).",
    ),
    key(
        "ACCOUNT_CHANGES_PER_S",
        Fixed("5000"),
        "changes/s",
        "The same for changes of any kind; a deletion counts once per message, receipts count on each node alone.",
    ),
    key(
        "ACCOUNT_MESSAGES_MAX",
        Fixed("2000000"),
        "messages",
        "Quota of stored, undeleted messages of an account; 0: unlimited. The leader's value applies.",
    ),
    key(
        "ACCOUNT_MIB_MAX",
        Fixed("1024"),
        "MiB",
        "Storage quota of an account: the bodies of its messages, and 64 bytes per deleted message; 0: unlimited.",
    ),
    key(
        "SPACE_RESERVE_MB",
        Fixed("256"),
        "MiB",
        "Free space below which messages and registrations are rejected, at least 8, at most a tenth of the volume; 0: no check.",
    ),
    key("HASH_PARALLELISM", Fixed("2"), "threads", "Concurrent password hashes; each takes 19 MiB."),
    key("WORKER_THREADS", Fixed("0"), "threads", "Worker threads of the runtime; 0: one per core."),
    key(
        "EXIT_WITH_PARENT",
        Fixed("0"),
        "0|1",
        "Stop when standard input is closed; `chatd local` sets it for its nodes.",
    ),
];

/// Keys (without prefix) that only `chatctl` reads. They may be in the same environment and have no effect here.
pub const OF_CHATCTL: [&str; 3] = ["NODES", "SESSION_FILE", "TLS_CA"];

/// The entry of `name` (without prefix).
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The table as text, for `--help`.
pub fn help() -> String {
    let mut out = String::from(
        "Configuration, from the environment only (an empty value counts as not given).\n\
         Traces are configured by OpenTelemetry's own variables, at the end.\n",
    );
    for key in KEYS {
        let default = match key.default {
            Fixed(text) => text,
            Derived(how) => how,
        };
        let _ =
            write!(out, "\n  {PREFIX}{} <{}>\n      {}\n      [default: {default}]\n", key.name, key.unit, key.meaning);
    }
    for (name, default, meaning) in &otel::VARIABLES {
        let _ = write!(out, "\n  {name}\n      {meaning}\n      [default: {default}]\n");
    }
    out
}

/// Whether `name` (without prefix) is one of the variables that Kubernetes sets for a Service called `chat` or
/// `chat-...`. They cause no warning, because the user did not set them.
///
/// The value distinguishes a Service's `PORT` (`tcp://10.0.0.1:50051`) from a mistaken key (`50051`).
pub fn made_by_kubernetes(name: &str, value: &str) -> bool {
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let ends = |word: &str| name == word || name.strip_suffix(word).is_some_and(|rest| rest.ends_with('_'));
    if ends("SERVICE_HOST") || ends("SERVICE_PORT") || name.contains("SERVICE_PORT_") {
        return true;
    }
    if ends("PORT") && url {
        return true;
    }
    // PORT_50051_TCP and PORT_50051_TCP_{PROTO,PORT,ADDR}
    let Some(at) = name.find("PORT_") else { return false };
    if at > 0 && !name[..at].ends_with('_') {
        return false;
    }
    let mut parts = name[at + "PORT_".len()..].split('_');
    let number = parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
    let field = matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"));
    number && protocol && field && parts.next().is_none()
}
