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
    key("LISTEN", Fixed("[::]:50051"), "ip:port", "Where clients connect (gRPC)."),
    key(
        "PEER_LISTEN",
        Derived("127.0.0.1:50052 without INITIAL_NODES, JOIN, PEER_SECRET and PEER_TLS_*, else [::]:50052"),
        "ip:port",
        "Where the other nodes connect.",
    ),
    key("WEB_LISTEN", Fixed("[::]:8080"), "ip:port", "Where browsers connect."),
    key("METRICS_LISTEN", Fixed("[::]:9464"), "ip:port", "Serves /metrics, /livez and /readyz."),
    key(
        "ADVERTISE",
        Derived("NAME and LISTEN's port; LISTEN itself on loopback"),
        "host:port",
        "Where clients are told to find this node.",
    ),
    key(
        "PEER_ADVERTISE",
        Derived("this node's entry in INITIAL_NODES, or else like ADVERTISE"),
        "host:port",
        "Where the other nodes find this node; looked up again on each reconnect.",
    ),
    key("WEB_ADVERTISE", Derived("like ADVERTISE"), "host:port", "Where browsers are told to find this node."),
    key(
        "WEB_HOSTS",
        Derived("none: the hosts that the members advertise for browsers, and loopback where it is listened on"),
        "host,*.domain,...",
        "Further hosts under which browsers reach this node, such as a proxy's; requests for any other are refused.",
    ),
    key(
        "HSTS_SECONDS",
        Fixed("2592000"),
        "seconds",
        "How long a browser that came over TLS uses nothing else for this host (all ports of it); 0 takes it back.",
    ),
    key(
        "DATA_DIR",
        Fixed("data"),
        "directory",
        "Everything this node stores. A container image sets it to its volume.",
    ),
    key(
        "INITIAL_NODES",
        Derived("none: a cluster of this node alone"),
        "name=host:port,...",
        "The first members with their peer addresses, the same on each: to found the cluster, and to tell others from it.",
    ),
    key(
        "JOIN",
        Derived("none: the node is one of INITIAL_NODES"),
        "host:port,...|invitation",
        "For a node that comes later: peer addresses of members to ask, or wait for `chatctl members add`.",
    ),
    key(
        "EXPECTED_NODES",
        Derived("none: besides members and INITIAL_NODES, nodes need a JOIN_TOKEN"),
        "name,prefix*,...",
        "Names of nodes that may join by JOIN without a token; a * at the end stands for any rest. The same on each.",
    ),
    key(
        "JOIN_TOKEN",
        Derived("none"),
        "64 hex digits",
        "Token of `chatctl members token`, for a node that joins under a name that the cluster does not expect.",
    ),
    key("JOIN_TOKEN_FILE", Derived("none"), "file", "Read JOIN_TOKEN from this file instead."),
    key(
        "PEER_SECRET",
        Derived("none: needed for a cluster, unless PEER_TLS_* are given"),
        "16-256 characters",
        "Shared by all nodes: the peer port speaks TLS with keys derived from it; up to 4, the first in use, all accepted.",
    ),
    key(
        "PEER_SECRET_FILE",
        Derived("none"),
        "file",
        "Read PEER_SECRET from this file instead, and again when it changes.",
    ),
    key(
        "INSECURE_PEERS",
        Fixed("0"),
        "0|1",
        "Trust every host that reaches the peer port, when neither PEER_SECRET nor PEER_TLS_* protects it.",
    ),
    key(
        "TLS_CERT",
        Derived("none: clients and browsers connect without TLS"),
        "file",
        "Certificate chain (PEM) of LISTEN and WEB_LISTEN; read again when it changes.",
    ),
    key("TLS_KEY", Derived("none"), "file", "The key of TLS_CERT (PEM)."),
    key(
        "PEER_TLS_CERT",
        Derived("none: PEER_SECRET protects the peer port"),
        "file",
        "Certificate chain (PEM) of this node for the others, as server and as client; read again when it changes.",
    ),
    key("PEER_TLS_KEY", Derived("none"), "file", "The key of PEER_TLS_CERT (PEM)."),
    key(
        "PEER_TLS_CA",
        Derived("none"),
        "file",
        "Authorities (PEM) of the nodes' certificates; a caller speaks only for the hosts in its certificate.",
    ),
    key("HEARTBEAT_MS", Fixed("100"), "ms", "How often a leader shows that it is there."),
    key(
        "ELECTION_MIN_MS",
        Fixed("300"),
        "ms",
        "Shortest silence of the leader before an election; at least two heartbeats.",
    ),
    key(
        "ELECTION_MAX_MS",
        Fixed("600"),
        "ms",
        "Longest silence of the leader before an election; above ELECTION_MIN_MS.",
    ),
    key("SESSION_LIFETIME_HOURS", Fixed("720"), "hours", "How long a login is good for."),
    key(
        "SESSION_IDLE_HOURS",
        Fixed("0"),
        "hours",
        "A session that is not used for this long ends; 0: only SESSION_LIFETIME_HOURS ends it.",
    ),
    key(
        "REGISTRATIONS_PER_ADDRESS",
        Fixed("200"),
        "per hour",
        "Accounts that may be created from one address; an hour's worth at once. The leader's setting counts.",
    ),
    key(
        "REGISTRATIONS_PER_HOUR",
        Fixed("2000"),
        "per hour",
        "Accounts that may be created in the cluster; an hour's worth at once. The leader's setting counts.",
    ),
    key("LOG_LEVEL", Fixed("info"), "error|warn|info|debug|trace", "Least important log lines that are written."),
    key(
        "HEARTBEAT_LOG_LEVEL",
        Fixed("warn"),
        "error|warn|info|debug|trace",
        "The same for heartbeats between the nodes.",
    ),
    key("LOG_FORMAT", Fixed("text"), "text|json", "Lines for people or objects for machines, on standard error."),
    key("DRAIN_TIMEOUT_MS", Fixed("10000"), "ms", "Longest wait for requests and streams to end at a stop."),
    key("SNAPSHOT_LOG_MB", Fixed("256"), "MiB", "Log growth after which a snapshot is taken and the log cut."),
    key(
        "DIGEST_INTERVAL_S",
        Fixed("30"),
        "seconds",
        "How often the nodes compare the digests of their states, when something changed.",
    ),
    key(
        "LOG_ENTRIES_KEPT",
        Fixed("20000"),
        "entries",
        "Log entries kept behind a snapshot, so that a node that was away for a while needs no snapshot.",
    ),
    key(
        "ERASE_AFTER_S",
        Fixed("86400"),
        "seconds",
        "How long files other than chat.db may hold what was deleted; older log is cut.",
    ),
    key(
        "TRUSTED_PROXIES",
        Fixed(""),
        "address or network,...",
        "Proxies in front of LISTEN and WEB_LISTEN: what they say of callers in X-Forwarded-For and X-Forwarded-Proto counts.",
    ),
    key(
        "PROXY_PROTOCOL",
        Fixed("0"),
        "0|1",
        "TRUSTED_PROXIES begin each connection with a header of the PROXY protocol, and their HTTP headers do not count.",
    ),
    key(
        "REFLECTION",
        Fixed("1"),
        "0|1",
        "Serve gRPC reflection, which shows the protocol to anybody; 0 switches it off.",
    ),
    key(
        "ACCOUNT_MESSAGES_PER_S",
        Fixed("2000"),
        "messages/s",
        "Messages that an account may send, in the whole cluster; ten times as many at once; 0: any number.",
    ),
    key(
        "ACCOUNT_KIB_PER_S",
        Fixed("4096"),
        "KiB/s",
        "The same for the bytes of its messages, each with 128 more than its body.",
    ),
    key(
        "ACCOUNT_CHANGES_PER_S",
        Fixed("5000"),
        "changes/s",
        "The same for changes of any kind; a deletion counts once for each message, a receipt on each node by itself.",
    ),
    key(
        "ACCOUNT_MESSAGES_MAX",
        Fixed("2000000"),
        "messages",
        "Messages that an account may have stored and not deleted; 0: any number. The leader's value counts.",
    ),
    key(
        "ACCOUNT_MIB_MAX",
        Fixed("1024"),
        "MiB",
        "MiB that an account may have stored: the bodies of its messages, and 64 bytes for each that is deleted; 0: any number.",
    ),
    key(
        "SPACE_RESERVE_MB",
        Fixed("256"),
        "MiB",
        "Free space of the volume below which messages and accounts are refused; from 8, at most a tenth of the volume; 0: nobody looks.",
    ),
    key("HASH_PARALLELISM", Fixed("2"), "threads", "Passwords hashed at the same time; each takes 19 MiB."),
    key("WORKER_THREADS", Fixed("0"), "threads", "Threads that run requests and consensus; 0 means one for each core."),
    key("EXIT_WITH_PARENT", Fixed("0"), "0|1", "Stop when standard input closes; `chatd local` sets it for its nodes."),
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
