//! Addresses: where the node listens, which addresses it announces, and under which hosts browsers reach it.

use std::net::{IpAddr, SocketAddr};

use super::{
    checker::Checker,
    formats::{Format, List, Listen, Wrong},
    keys::PREFIX,
    table::Parsed,
};

/// The default peer port of a single, unprotected node.
const ALONE: &str = "127.0.0.1:50052";
/// The default peer port of all other nodes.
const WITH_OTHERS: &str = "[::]:50052";

/// Further hosts under which browsers reach the node. Each request for a host that is not a member's is compared with
/// all of them.
pub(super) const WEB_HOSTS: List<String> = List {
    item: |text| is_web_host(text).then(|| text.to_ascii_lowercase()),
    max: 64,
    what: "hosts separated by commas, such as chat.example.org, *.example.org or 192.0.2.1:8443, without https://",
};

/// `host:port` that others connect to.
pub(super) struct HostAndPort;

impl Format for HostAndPort {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, Vec<Wrong>> {
        if is_host_and_port(text) {
            Ok(text.to_owned())
        } else {
            Wrong::whole(text, "a host and a port, such as n1.example.org:50051")
        }
    }

    fn show(&self, value: &String) -> String {
        value.clone()
    }
}

impl Checker {
    /// Sets the default of the peer listener, which is on loopback for a single, unprotected node, and checks that the
    /// four listeners have distinct ports.
    pub(super) fn listeners(&mut self, parsed: &mut Parsed) {
        if !self.is_given("PEER_LISTEN") {
            let with_others = ["INITIAL_NODES", "JOIN", "PEER_SECRET", "PEER_SECRET_FILE", "PEER_TLS_CERT"];
            let default = if with_others.iter().any(|name| self.is_given(name)) { WITH_OTHERS } else { ALONE };
            parsed.peer_listen = self.parsed("PEER_LISTEN", default, &Listen { advertised: true });
        }
        self.distinct([
            ("LISTEN", parsed.listen),
            ("PEER_LISTEN", parsed.peer_listen),
            ("WEB_LISTEN", parsed.web_listen),
            ("METRICS_LISTEN", parsed.metrics_listen),
        ]);
    }

    /// Only equal ports that would collide count.
    fn distinct(&mut self, listeners: [(&str, Option<SocketAddr>); 4]) {
        for (later, (name, second)) in listeners.iter().enumerate() {
            for (other, first) in &listeners[..later] {
                let (Some(first), Some(second)) = (first, second) else { continue };
                let overlap = first.ip() == second.ip() || first.ip().is_unspecified() || second.ip().is_unspecified();
                if first.port() == second.port() && first.port() != 0 && overlap {
                    self.mistake(name, &second.to_string(), format!("another port than {PREFIX}{other}"));
                }
            }
        }
    }

    /// Sets the defaults of the three advertised addresses: the node's name, or to the other nodes `own_entry`, which
    /// is the address of this node in the list of the first members.
    pub(super) fn advertised(&mut self, parsed: &mut Parsed, own_entry: Option<&str>) {
        let name = parsed.name.clone();
        let reachable = |listen: Option<SocketAddr>| Some(default_advertise(name.as_deref()?, listen?));
        if !self.is_given("ADVERTISE") {
            parsed.advertise = reachable(parsed.listen);
        }
        if !self.is_given("PEER_ADVERTISE") {
            parsed.peer_advertise = own_entry.map(str::to_owned).or_else(|| reachable(parsed.peer_listen));
        }
        if !self.is_given("WEB_ADVERTISE") {
            parsed.web_advertise = reachable(parsed.web_listen);
        }
        if let (Some(entry), Some(advertised)) = (own_entry, &parsed.peer_advertise)
            && entry != advertised
        {
            self.warnings.push(format!(
                "{PREFIX}PEER_ADVERTISE is {advertised}, but {PREFIX}INITIAL_NODES says {entry} for this node"
            ));
        }
    }

    /// Warns of data that others on the network could read. The peer port is checked when it is started.
    pub(super) fn open_listeners(&mut self, parsed: &Parsed, tls: bool) {
        let ports = [
            ("LISTEN", parsed.listen, "passwords and messages", "set CHAT_TLS_CERT and CHAT_TLS_KEY"),
            ("WEB_LISTEN", parsed.web_listen, "passwords and messages", "set CHAT_TLS_CERT and CHAT_TLS_KEY"),
            ("METRICS_LISTEN", parsed.metrics_listen, "figures of this node", "let only monitoring reach it"),
        ];
        for (name, address, what, remedy) in ports {
            let Some(address) = address.filter(|address| !address.ip().is_loopback()) else { continue };
            if !tls || name == "METRICS_LISTEN" {
                self.warnings.push(format!(
                    "{PREFIX}{name} is {address}, without TLS: others on the network can read {what}; {remedy}, or \
                     listen on loopback"
                ));
            }
        }
    }
}

/// The default advertised address: the node's name, or the loopback address if the node listens only there.
fn default_advertise(name: &str, listen: SocketAddr) -> String {
    if listen.ip().is_loopback() { listen.to_string() } else { format!("{name}:{}", listen.port()) }
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`, with a port that can be connected to.
pub(super) fn is_host_and_port(text: &str) -> bool {
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
