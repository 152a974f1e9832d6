//! Parses strings into a checked [`Config`], and collects all mistakes.
//!
//! Each value is parsed separately first. Checks between values use only those that parsed, so that one wrong key
//! neither hides nor causes another mistake.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::Level;

use super::{
    Config, ConfigErrors, HOUR_SECS, INVITATION, InitialNode, Join, LogFormat, MIB, Mistake,
    keys::{self, PREFIX},
    otel,
    peers::Given,
};

/// Most initial members. More voters make every write slower and nothing safer.
const INITIAL_NODES_MAX: usize = 15;
/// Longest name of a node. This is the limit of a DNS label, because names become host names.
const NAME_CHARS_MAX: usize = 63;
/// Most further hosts, as each request for a host that is not a member's is compared with all of them.
const WEB_HOSTS_MAX: usize = 64;

/// The raw values of the keys, with one field per row of [`keys::KEYS`], in the same order.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Raw {
    name: Option<String>,
    listen: Option<String>,
    pub(super) peer_listen: Option<String>,
    web_listen: Option<String>,
    metrics_listen: Option<String>,
    advertise: Option<String>,
    peer_advertise: Option<String>,
    web_advertise: Option<String>,
    web_hosts: Option<String>,
    hsts_seconds: Option<String>,
    data_dir: Option<String>,
    pub(super) initial_nodes: Option<String>,
    pub(super) join: Option<String>,
    expected_nodes: Option<String>,
    join_token: Option<String>,
    join_token_file: Option<String>,
    pub(super) peer_secret: Option<String>,
    pub(super) peer_secret_file: Option<String>,
    insecure_peers: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    pub(super) peer_tls_cert: Option<String>,
    peer_tls_key: Option<String>,
    peer_tls_ca: Option<String>,
    heartbeat_ms: Option<String>,
    election_min_ms: Option<String>,
    election_max_ms: Option<String>,
    session_lifetime_hours: Option<String>,
    session_idle_hours: Option<String>,
    registrations_per_address: Option<String>,
    registrations_per_hour: Option<String>,
    log_level: Option<String>,
    heartbeat_log_level: Option<String>,
    log_format: Option<String>,
    drain_timeout_ms: Option<String>,
    snapshot_log_mb: Option<String>,
    digest_interval_s: Option<String>,
    log_entries_kept: Option<String>,
    erase_after_s: Option<String>,
    pub(super) trusted_proxies: Option<String>,
    pub(super) proxy_protocol: Option<String>,
    reflection: Option<String>,
    pub(super) account_messages_per_s: Option<String>,
    pub(super) account_kib_per_s: Option<String>,
    pub(super) account_changes_per_s: Option<String>,
    pub(super) account_messages_max: Option<String>,
    pub(super) account_mib_max: Option<String>,
    pub(super) space_reserve_mb: Option<String>,
    hash_parallelism: Option<String>,
    worker_threads: Option<String>,
    exit_with_parent: Option<String>,
}

pub(super) fn load(source: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
    let mut checker = Checker::default();
    let source: Vec<(String, String)> = source.into_iter().collect();
    let known = checker.select(&source);
    let raw: Raw = envy::prefixed(PREFIX).from_iter(known).map_err(|error| {
        // This cannot happen with a struct of strings. It is reported like any other mistake.
        ConfigErrors(vec![Mistake {
            key: format!("{PREFIX}*"),
            given: error.to_string(),
            expected: "one value for each key".to_owned(),
        }])
    })?;
    let config = checker.check(raw);
    let traced = otel::load(&source, config.as_ref().map_or("", |config| &config.name));
    checker.mistakes.extend(traced.mistakes);
    match config {
        Some(config) if checker.mistakes.is_empty() => {
            Ok(Config { warnings: checker.warnings, traces: traced.settings, otel: traced.effective, ..config })
        }
        _ => Err(ConfigErrors(checker.mistakes)),
    }
}

pub(super) fn metrics_listen(source: impl IntoIterator<Item = (String, String)>) -> Result<SocketAddr, Mistake> {
    const NAME: &str = "METRICS_LISTEN";
    let mut checker = Checker::default();
    let given = source.into_iter().find(|(key, value)| key.strip_prefix(PREFIX) == Some(NAME) && !value.is_empty());
    let listen = checker.listen(NAME, given.map(|(_, value)| value), true);
    listen.ok_or_else(|| checker.mistakes.remove(0))
}

#[derive(Default)]
pub(super) struct Checker {
    mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Checker {
    /// Selects the known keys that have a value. Warns of unknown keys with the same prefix.
    fn select(&mut self, source: &[(String, String)]) -> Vec<(String, String)> {
        let mut known = Vec::new();
        for (key, value) in source {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if keys::find(name).is_none() {
                if !keys::made_by_kubernetes(name, value) && !keys::OF_CHATCTL.contains(&name) {
                    self.warnings.push(format!("unknown key {key} is ignored; `chatd --help` lists the keys"));
                }
            } else if value.contains(char::REPLACEMENT_CHARACTER) {
                // The caller has decoded it lossily. A mangled path or secret is worse than a failed start.
                self.mistake(name, value, "UTF-8 text");
            } else if !value.is_empty() {
                known.push((key.clone(), value.clone()));
            }
        }
        known
    }

    pub(super) fn mistake_count(&self) -> usize {
        self.mistakes.len()
    }

    pub(super) fn mistake(&mut self, name: &str, given: &str, expected: impl Into<String>) {
        let hidden = ["PEER_SECRET", "JOIN_TOKEN"].contains(&name) && !given.is_empty();
        let given = if hidden { "(hidden)".to_owned() } else { format!("{given:?}") };
        self.mistakes.push(Mistake { key: format!("{PREFIX}{name}"), given, expected: expected.into() });
    }

    /// Parses `value`, or the default of the table, with `parse`. `None` only after a mistake was recorded.
    pub(super) fn parsed<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let default = match keys::find(name).map(|key| key.default) {
            Some(keys::Fallback::Fixed(text)) => text,
            _ => "",
        };
        let text = value.unwrap_or_else(|| default.to_owned());
        let parsed = parse(&text);
        if parsed.is_none() {
            self.mistake(name, &text, expected);
        }
        parsed
    }

    pub(super) fn number(&mut self, name: &str, value: Option<String>, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(name, value, &expected, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    fn millis(&mut self, name: &str, value: Option<String>, range: RangeInclusive<u64>) -> Option<Duration> {
        self.number(name, value, range).map(Duration::from_millis)
    }

    pub(super) fn switch(&mut self, name: &str, value: Option<String>) -> Option<bool> {
        self.parsed(name, value, "0 or 1", |text| match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })
    }

    fn level(&mut self, name: &str, value: Option<String>) -> Option<Level> {
        self.parsed(name, value, "error, warn, info, debug or trace", |text| match text.to_ascii_lowercase().as_str() {
            "error" => Some(Level::ERROR),
            "warn" | "warning" => Some(Level::WARN),
            "info" => Some(Level::INFO),
            "debug" => Some(Level::DEBUG),
            "trace" => Some(Level::TRACE),
            _ => None,
        })
    }

    /// An address to listen on. Port 0 is rejected if the port is advertised.
    pub(super) fn listen(&mut self, name: &str, value: Option<String>, advertised: bool) -> Option<SocketAddr> {
        let port = if advertised { "a port other than 0" } else { "a port" };
        let expected = format!("an IP address and {port}, such as [::]:50051 or 127.0.0.1:50051");
        self.parsed(name, value, &expected, |text| {
            text.parse().ok().filter(|address: &SocketAddr| !advertised || address.port() != 0)
        })
    }

    /// An advertised address; `default` if none is given.
    fn advertise(&mut self, name: &str, value: Option<String>, default: Option<String>) -> Option<String> {
        match value {
            None => default,
            Some(text) => self.parsed(name, Some(text), "a host and a port, such as n1.example.org:50051", |text| {
                is_host_and_port(text).then(|| text.to_owned())
            }),
        }
    }

    fn name(&mut self, value: Option<String>) -> Option<String> {
        let text = value.unwrap_or_else(host_name);
        self.parsed("NAME", Some(text), "1-63 characters of [A-Za-z0-9_.-]", |text| {
            is_name(text).then(|| text.to_owned())
        })
    }

    /// The list of the first members; `None` if it is absent or wrong.
    fn initial_nodes(
        &mut self,
        value: Option<String>,
        name: Option<&str>,
        comes_later: bool,
    ) -> Option<Vec<InitialNode>> {
        const KEY: &str = "INITIAL_NODES";
        let text = value?;
        let before = self.mistakes.len();
        let mut nodes: Vec<InitialNode> = Vec::new();
        for item in text.split(',').map(str::trim) {
            match item.split_once('=') {
                Some((node, address)) if is_name(node) && is_host_and_port(address) => {
                    nodes.push(InitialNode { name: node.to_owned(), peer_address: address.to_owned() });
                }
                _ => self.mistake(KEY, item, "name=host:port for each node, separated by commas"),
            }
        }
        let mut seen = BTreeSet::new();
        for word in nodes.iter().flat_map(|node| [&node.name, &node.peer_address]) {
            if !seen.insert(word) {
                self.mistake(KEY, word, "each name and each address once");
            }
        }
        if nodes.len() > INITIAL_NODES_MAX {
            self.mistake(KEY, &text, format!("at most {INITIAL_NODES_MAX} nodes"));
        }
        if let Some(name) = name
            && self.mistakes.len() == before
            && !comes_later
            && !nodes.iter().any(|node| node.name == name)
        {
            let expected = format!("this node's name ({PREFIX}NAME is {name:?}) in the list, or {PREFIX}JOIN as well");
            self.mistake(KEY, &text, expected);
        }
        if self.mistakes.len() > before {
            return None;
        }
        if nodes.len().is_multiple_of(2) {
            self.warnings.push(format!(
                "{PREFIX}{KEY} has {} nodes: an odd number survives as many failures with one node less",
                nodes.len()
            ));
        }
        Some(nodes)
    }

    fn join(&mut self, value: Option<String>) -> Option<Join> {
        let text = value?;
        if text == INVITATION {
            return Some(Join::Invitation);
        }
        let addresses: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
        if addresses.len() <= INITIAL_NODES_MAX && addresses.iter().all(|address| is_host_and_port(address)) {
            return Some(Join::Ask(addresses));
        }
        let expected = format!("1-{INITIAL_NODES_MAX} of host:port, separated by commas, or {INVITATION:?}");
        self.mistake("JOIN", &text, expected);
        None
    }

    fn web_hosts(&mut self, value: Option<String>) -> Option<Vec<String>> {
        let Some(text) = value else { return Some(Vec::new()) };
        let hosts: Vec<String> = text.split(',').map(|item| item.trim().to_ascii_lowercase()).collect();
        if hosts.len() <= WEB_HOSTS_MAX && hosts.iter().all(|host| is_web_host(host)) {
            return Some(hosts);
        }
        let expected = format!(
            "1-{WEB_HOSTS_MAX} hosts separated by commas, such as chat.example.org, *.example.org or 192.0.2.1:8443, without https://"
        );
        self.mistake("WEB_HOSTS", &text, expected);
        None
    }

    /// Checks the three times against each other.
    fn timing(&mut self, heartbeat: Option<Duration>, min: Option<Duration>, max: Option<Duration>) {
        if let (Some(heartbeat), Some(min)) = (heartbeat, min)
            && heartbeat * 2 > min
        {
            let expected = format!("at least twice {PREFIX}HEARTBEAT_MS ({})", heartbeat.as_millis());
            self.mistake("ELECTION_MIN_MS", &min.as_millis().to_string(), expected);
        }
        if let (Some(min), Some(max)) = (min, max)
            && min >= max
        {
            let expected = format!("more than {PREFIX}ELECTION_MIN_MS ({})", min.as_millis());
            self.mistake("ELECTION_MAX_MS", &max.as_millis().to_string(), expected);
        }
    }

    fn log_format(&mut self, value: Option<String>) -> Option<LogFormat> {
        self.parsed("LOG_FORMAT", value, "text or json", |text| match text {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        })
    }

    /// Warns if this node advertises another address than the list of the first nodes contains for it.
    fn same_address(&mut self, entry: Option<&str>, advertised: Option<&str>) {
        if let (Some(entry), Some(advertised)) = (entry, advertised)
            && entry != advertised
        {
            self.warnings.push(format!(
                "{PREFIX}PEER_ADVERTISE is {advertised}, but {PREFIX}INITIAL_NODES says {entry} for this node"
            ));
        }
    }

    /// Checks everything, in the order of the table. `None` only after a mistake.
    fn check(&mut self, mut raw: Raw) -> Option<Config> {
        let peer_listen = self.peer_listen(&raw);
        let (capacity, proxies) = (self.capacity(&mut raw), self.proxies(&mut raw));
        let name = self.name(raw.name);
        let listen = self.listen("LISTEN", raw.listen, true);
        let web_listen = self.listen("WEB_LISTEN", raw.web_listen, true);
        let metrics_listen = self.listen("METRICS_LISTEN", raw.metrics_listen, false);
        self.distinct(&[listen, peer_listen, web_listen, metrics_listen]);
        let comes_later = raw.join.is_some();
        let initial_nodes = self.initial_nodes(raw.initial_nodes, name.as_deref(), comes_later);
        let join = self.join(raw.join);
        let joining = self.joining(raw.expected_nodes, raw.join_token, raw.join_token_file);
        let mut initial = initial_nodes.iter().flatten();
        let own_entry = initial.find(|node| Some(node.name.as_str()) == name.as_deref());
        let own_entry = own_entry.map(|node| node.peer_address.clone());
        let reachable = |listen: Option<SocketAddr>| Some(default_advertise(name.as_deref()?, listen?));
        let advertise = self.advertise("ADVERTISE", raw.advertise, reachable(listen));
        let peer_default = own_entry.clone().or_else(|| reachable(peer_listen));
        let peer_advertise = self.advertise("PEER_ADVERTISE", raw.peer_advertise, peer_default);
        let web_advertise = self.advertise("WEB_ADVERTISE", raw.web_advertise, reachable(web_listen));
        let web_hosts = self.web_hosts(raw.web_hosts);
        let hsts_seconds = self.number("HSTS_SECONDS", raw.hsts_seconds, 0..=63_072_000);
        self.same_address(own_entry.as_deref(), peer_advertise.as_deref());
        let data_dir = self.parsed("DATA_DIR", raw.data_dir, "a directory", |text| Some(PathBuf::from(text)));
        let tls = self.tls(raw.tls_cert, raw.tls_key, advertise.as_deref());
        let peer_files = [raw.peer_tls_cert, raw.peer_tls_key, raw.peer_tls_ca];
        let has_others = comes_later || initial_nodes.as_ref().is_some_and(|nodes| nodes.len() > 1);
        let given = Given { secret: raw.peer_secret, secret_file: raw.peer_secret_file, insecure: raw.insecure_peers };
        let protected = self.protection(given, peer_files.iter().any(Option::is_some), has_others, peer_listen);
        let peer_tls = self.peer_tls(peer_files, peer_advertise.as_deref());
        self.open_listeners([listen, web_listen, metrics_listen], tls.is_some());
        let heartbeat = self.millis("HEARTBEAT_MS", raw.heartbeat_ms, 10..=10_000);
        let election_min = self.millis("ELECTION_MIN_MS", raw.election_min_ms, 20..=60_000);
        let election_max = self.millis("ELECTION_MAX_MS", raw.election_max_ms, 21..=120_000);
        self.timing(heartbeat, election_min, election_max);
        let session_hours = self.number("SESSION_LIFETIME_HOURS", raw.session_lifetime_hours, 1..=87_600);
        let session_idle_hours = self.number("SESSION_IDLE_HOURS", raw.session_idle_hours, 0..=87_600);
        let per_address = self.number("REGISTRATIONS_PER_ADDRESS", raw.registrations_per_address, 1..=1_000_000);
        let per_hour = self.number("REGISTRATIONS_PER_HOUR", raw.registrations_per_hour, 1..=1_000_000);
        let log_level = self.level("LOG_LEVEL", raw.log_level);
        let heartbeat_log_level = self.level("HEARTBEAT_LOG_LEVEL", raw.heartbeat_log_level);
        let log_format = self.log_format(raw.log_format);
        let drain_timeout = self.millis("DRAIN_TIMEOUT_MS", raw.drain_timeout_ms, 0..=600_000);
        let snapshot_log_mb = self.number("SNAPSHOT_LOG_MB", raw.snapshot_log_mb, 1..=65_536);
        let digest_interval_s = self.number("DIGEST_INTERVAL_S", raw.digest_interval_s, 1..=86_400);
        let log_entries_kept = self.number("LOG_ENTRIES_KEPT", raw.log_entries_kept, 0..=10_000_000);
        let erase_after_s = self.number("ERASE_AFTER_S", raw.erase_after_s, 1..=31_536_000);
        let hash_parallelism = self.number("HASH_PARALLELISM", raw.hash_parallelism, 1..=64);
        let worker_threads = self.number("WORKER_THREADS", raw.worker_threads, 0..=1024);
        let reflection = self.switch("REFLECTION", raw.reflection);
        let exit_with_parent = self.switch("EXIT_WITH_PARENT", raw.exit_with_parent);
        let (name, peer_advertise, protected) = (name?, peer_advertise?, protected?);
        let alone = InitialNode { name: name.clone(), peer_address: peer_advertise.clone() };
        let alone = if comes_later { vec![] } else { vec![alone] };
        Some(Config {
            initial_nodes: initial_nodes.unwrap_or(alone),
            join,
            joining: joining?,
            listen: listen?,
            peer_listen: peer_listen?,
            web_listen: web_listen?,
            metrics_listen: metrics_listen?,
            advertise: advertise?,
            web_advertise: web_advertise?,
            web_hosts: web_hosts?,
            hsts: Duration::from_secs(hsts_seconds?),
            data_dir: data_dir?,
            peer_secrets: protected.secrets,
            peer_secret_file: protected.secret_file,
            insecure_peers: protected.insecure,
            tls,
            peer_tls,
            heartbeat: heartbeat?,
            election_min: election_min?,
            election_max: election_max?,
            session_lifetime: Duration::from_secs(session_hours? * HOUR_SECS),
            session_idle: Duration::from_secs(session_idle_hours? * HOUR_SECS),
            registrations_per_address: u32::try_from(per_address?).ok()?,
            registrations_per_hour: u32::try_from(per_hour?).ok()?,
            log_level: log_level?,
            heartbeat_log_level: heartbeat_log_level?,
            log_format: log_format?,
            drain_timeout: drain_timeout?,
            snapshot_log_bytes: snapshot_log_mb? * MIB,
            digest_interval: Duration::from_secs(digest_interval_s?),
            log_entries_kept: log_entries_kept?,
            erase_after: Duration::from_secs(erase_after_s?),
            reflection: reflection?,
            capacity: capacity?,
            proxies: proxies?,
            hash_parallelism: usize::try_from(hash_parallelism?).ok()?,
            worker_threads: usize::try_from(worker_threads?).ok().filter(|threads| *threads > 0),
            exit_with_parent: exit_with_parent?,
            traces: None,
            otel: Vec::new(),
            warnings: Vec::new(),
            name,
            peer_advertise,
        })
    }

    /// Warns of data that others on the network could read. The peer port is checked when it is started.
    fn open_listeners(&mut self, [client, web, metrics]: [Option<SocketAddr>; 3], tls: bool) {
        let ports = [
            ("LISTEN", client, "passwords and messages", "set CHAT_TLS_CERT and CHAT_TLS_KEY"),
            ("WEB_LISTEN", web, "passwords and messages", "set CHAT_TLS_CERT and CHAT_TLS_KEY"),
            ("METRICS_LISTEN", metrics, "figures of this node", "let only monitoring reach it"),
        ];
        for (name, address, what, remedy) in ports {
            let Some(address) = address.filter(|address| !address.ip().is_loopback()) else { continue };
            if !tls || name == "METRICS_LISTEN" {
                self.warnings.push(format!(
                    "{PREFIX}{name} is {address}, without TLS: others on the network can read {what}; {remedy}, or listen on \
                     loopback"
                ));
            }
        }
    }

    /// Checks that the four listeners have distinct ports. Only equal ports that would collide count.
    fn distinct(&mut self, listeners: &[Option<SocketAddr>; 4]) {
        const NAMES: [&str; 4] = ["LISTEN", "PEER_LISTEN", "WEB_LISTEN", "METRICS_LISTEN"];
        for (later, second) in listeners.iter().enumerate() {
            for (earlier, first) in listeners[..later].iter().enumerate() {
                let (Some(first), Some(second)) = (first, second) else { continue };
                let overlap = first.ip() == second.ip() || first.ip().is_unspecified() || second.ip().is_unspecified();
                if first.port() == second.port() && first.port() != 0 && overlap {
                    let expected = format!("another port than {PREFIX}{}", NAMES[earlier]);
                    self.mistake(NAMES[later], &second.to_string(), expected);
                }
            }
        }
    }
}

/// The default advertised address: the node's name, or the loopback address if the node listens only there.
fn default_advertise(name: &str, listen: SocketAddr) -> String {
    if listen.ip().is_loopback() { listen.to_string() } else { format!("{name}:{}", listen.port()) }
}

pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`, with a port that can be connected to.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port = !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port != 0);
    let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => matches!(inner.parse(), Ok(IpAddr::V6(_))),
        None => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            (1..=253).contains(&host.len()) && host.bytes().all(allowed)
        }
    };
    host && port
}

/// `host`, `*.domain`, `1.2.3.4` or `[::1]`, with or without a port.
fn is_web_host(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    // An IP address has no subdomains.
    if host.len() < text.len() && host.bytes().all(|b| !b.is_ascii_alphabetic()) {
        return false;
    }
    let has_port = host.rfind(':').is_some_and(|colon| host.rfind(']').is_none_or(|bracket| bracket < colon));
    if has_port { is_host_and_port(host) } else { is_host_and_port(&format!("{host}:1")) }
}

/// The host's name according to the kernel.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
