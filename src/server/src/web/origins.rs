//! The host names of the web port, and the origins whose pages may use this node.
//!
//! A page that loses its node continues with another one, so each node answers the pages of all members, and a page may
//! call all of them. No other page has access. [`Origins`] makes both decisions from the addresses that the members
//! advertise for browsers and from the operator's list (`CHAT_WEB_HOSTS`).
//!
//! Invariants:
//! - A request for a host that is neither a member's nor listed is rejected. Otherwise a page could reach a node under
//!   a DNS name of its own (DNS rebinding), where the browser's same-origin policy no longer protects the node.
//! - The names of the local machine (`localhost`, `127.0.0.1`, `[::1]`) are one host. They are accepted where this node
//!   listens on loopback, which a wildcard address includes, or where a member advertises one of them. A stranger's DNS
//!   answer cannot give a page their origin.
//! - An IP address is a host like any other: it is rejected unless it is advertised or listed.
//!
//! Does not cover: the answers to rejected requests (`guard`), and the other ports, where no browser has credentials.

use std::{net::IpAddr, sync::Arc};

use tower_http::cors::{AllowOrigin, CorsLayer, MaxAge};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// Lifetime of the answer to a preflight in the browser's cache.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(600);

/// The header in which a proxy states the scheme of the connection that it forwards.
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The names of the local machine in browsers.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The source of the members' web addresses (`host:port`). Called for each request that needs them; must not block.
type Addresses = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Whether the peer at an address is a proxy whose `X-Forwarded-Proto` is accepted.
pub type TrustsProxy = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The ways in which browsers reach this node.
#[derive(Clone, Default)]
pub struct WebAccess {
    /// The address (`host:port`) that this node advertises for browsers.
    pub own: String,
    /// Further hosts (`CHAT_WEB_HOSTS`): `host` or `*.domain`, each with or without a port.
    pub hosts: Vec<String>,
    /// Whether the web port is also reachable at a loopback address.
    pub on_loopback: bool,
    /// Whether the web port uses TLS. The other members' ports then do so, too, and a page that came without TLS is not
    /// trusted.
    pub tls: bool,
    /// Proxies that terminate TLS before this node. `None` if there are none; then no header affects how a request
    /// arrived.
    pub trusts_proxy: Option<TrustsProxy>,
}

/// The hosts and origins of the cluster.
#[derive(Clone)]
pub struct Origins {
    addresses: Addresses,
    access: Arc<WebAccess>,
}

impl Origins {
    /// The members' `addresses` (`host:port`, as they advertise them for browsers), and the additions of `access`.
    pub fn new(addresses: impl Fn() -> Vec<String> + Send + Sync + 'static, access: WebAccess) -> Self {
        Self { addresses: Arc::new(addresses), access: Arc::new(access) }
    }

    /// Whether the browser's connection is encrypted, for a request that `peer` sent. A header counts only if the peer
    /// is a trusted proxy, and only if every value is `https`, as a caller may have sent one through the proxy.
    pub(super) fn is_secure(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
        if self.access.tls {
            return true;
        }
        let is_trusted = peer.zip(self.access.trusts_proxy.as_ref()).is_some_and(|(peer, trusts)| trusts(peer));
        let mut said = headers.get_all(FORWARDED_PROTO).iter().peekable();
        is_trusted
            && said.peek().is_some()
            && said.all(|value| {
                let value = value.to_str().unwrap_or_default();
                value.split(',').all(|scheme| scheme.trim().eq_ignore_ascii_case("https"))
            })
    }

    /// The CORS layer: answers the preflights of pages of these origins, and adds the headers that let them read
    /// answers.
    pub(super) fn cors(&self, request_headers: &[HeaderName], response_headers: &[HeaderName]) -> CorsLayer {
        let origins = self.clone();
        let allowed = AllowOrigin::predicate(move |origin, request| {
            let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| request.uri.authority().map(axum::http::uri::Authority::as_str));
            origins.allow_origin(origin, host.unwrap_or_default())
        });
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_credentials(true)
            .allow_methods([Method::POST, Method::DELETE])
            .allow_headers(request_headers.to_vec())
            .expose_headers(response_headers.to_vec())
            .max_age(MaxAge::exact(REMEMBERED))
            .vary([header::ORIGIN])
    }

    /// Whether this node answers requests for `authority` (`host` or `host:port`). The port is ignored, because a
    /// forwarded or published port differs.
    pub(super) fn allow_host(&self, authority: &str) -> bool {
        let Some(host) = Place::of(authority, "").map(|place| place.host) else { return false };
        let is_host = |address: &str| Place::of(address, "").is_some_and(|place| place.host == host);
        // The checks that need no membership come first, as they usually suffice.
        is_host(&self.access.own)
            || (host == Host::Loopback && self.access.on_loopback)
            || self.access.hosts.iter().any(|listed| Listed::of(listed).matches(&host))
            || (self.addresses)().iter().any(|address| is_host(address))
    }

    /// Whether a page of `origin` may use this node, for a request to `host`.
    pub(super) fn allow_origin(&self, origin: &HeaderValue, host: &str) -> bool {
        let Some((scheme, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let default_port = match scheme {
            "https" => "443",
            "http" if !self.access.tls => "80",
            _ => return false,
        };
        let Some(place) = Place::of(authority, default_port) else { return false };
        // The page calls the node that it was loaded from.
        if Place::of(host, default_port).as_ref() == Some(&place) && self.allow_host(host) {
            return true;
        }
        let addresses = (self.addresses)();
        if [&self.access.own]
            .into_iter()
            .chain(&addresses)
            .any(|address| Place::of(address, "").as_ref() == Some(&place))
        {
            return true;
        }
        self.access.hosts.iter().map(|listed| Listed::of(listed)).filter(|listed| listed.matches(&place.host)).any(
            |listed| match listed.port {
                "" => {
                    place.port == default_port
                        || addresses.iter().any(|it| Place::of(it, "").is_some_and(|it| it.port == place.port))
                }
                port => port == place.port,
            },
        )
    }

    /// The nodes that a page may call, as the sources of a Content-Security-Policy. `host` is the browser's name for
    /// this node. A page of `localhost` calls the other nodes there as well, because its cookies are only sent there.
    pub(super) fn sources(&self, host: &str) -> Vec<String> {
        let is_here_loopback = Place::of(host, "").is_some_and(|here| here.host == Host::Loopback);
        let name = |address: String| match Place::of(&address, "") {
            Some(Place { host: Host::Loopback, port }) if is_here_loopback => format!("{}:{port}", host_of(host)),
            _ => address,
        };
        // Policies have no syntax for IPv6 addresses, and an address must not be able to inject a directive.
        let sayable = |source: &String| source.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b));
        (self.addresses)().into_iter().map(name).filter(sayable).collect()
    }
}

/// Whether `authority` is the local machine or an IP address. Browsers keep no transport policy for those.
pub(super) fn is_loopback_or_address(authority: &str) -> bool {
    let host = host_of(authority);
    Place::of(authority, "").is_none_or(|place| place.host == Host::Loopback)
        || host.starts_with('[')
        || host.parse::<std::net::Ipv4Addr>().is_ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Loopback,
    Name(String),
}

/// The host and the port of a page.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    host: Host,
    port: String,
}

impl Place {
    /// `None` if there is no host, or if the rest is not a port.
    fn of(authority: &str, default_port: &str) -> Option<Self> {
        let host = host_of(authority);
        let rest = &authority[host.len()..];
        let port = if rest.is_empty() { default_port } else { rest.strip_prefix(':')? };
        // A name with a final dot is the same name, and browsers send it.
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let is_loopback = LOOPBACK.iter().any(|loopback| name.eq_ignore_ascii_case(loopback));
        let host = if is_loopback { Host::Loopback } else { Host::Name(name.to_ascii_lowercase()) };
        Some(Self { host, port: port.to_owned() })
    }
}

/// An entry of the operator's list.
struct Listed<'a> {
    host: &'a str,
    /// Empty if none is given.
    port: &'a str,
}

impl<'a> Listed<'a> {
    fn of(entry: &'a str) -> Self {
        let host = host_of(entry);
        Self { host, port: entry[host.len()..].strip_prefix(':').unwrap_or_default() }
    }

    fn matches(&self, host: &Host) -> bool {
        let name = match host {
            Host::Loopback => return LOOPBACK.iter().any(|loopback| self.host.eq_ignore_ascii_case(loopback)),
            Host::Name(name) => name,
        };
        match self.host.strip_prefix('*') {
            // The dot is part of the suffix: `*.example.org` matches neither `example.org` nor `badexample.org`.
            Some(domain) => name.len() > domain.len() && name.ends_with(&domain.to_ascii_lowercase()),
            None => self.host.eq_ignore_ascii_case(name),
        }
    }
}

/// The host of `host:port`, with the brackets of an IPv6 address.
fn host_of(authority: &str) -> &str {
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    &authority[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(addresses: &[&str], tls: bool) -> Origins {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        Origins::new(move || addresses.clone(), WebAccess { own: "own:8080".into(), tls, ..WebAccess::default() })
    }

    fn allows(origins: &Origins, origin: &'static str) -> bool {
        origins.allow_origin(&HeaderValue::from_static(origin), "")
    }

    #[test]
    fn the_pages_of_the_nodes_are_let_in_and_nobody_elses() {
        let plain =
            origins(&["n1.example.com:8080", "Chat.example.com:443", "127.0.0.1:8081", "[2001:db8::1]:80"], false);
        for good in [
            "http://n1.example.com:8080",
            "https://n1.example.com:8080",
            "https://chat.example.com",
            "http://localhost:8081",
            "http://127.0.0.1:8081",
            "http://[::1]:8081",
            "http://[2001:db8::1]",
        ] {
            assert!(allows(&plain, good), "{good}");
        }
        for bad in [
            "http://n1.example.com",
            "http://n1.example.com:8081",
            "http://n2.example.com:8080",
            "http://n1.example.com:8080.evil.example",
            "http://evil.example/?n1.example.com:8080",
            "http://localhost:8082",
            "http://127.0.0.2:8081",
            "http://localhost.evil.example:8081",
            "http://chat.example.com",
            "ftp://n1.example.com:8080",
            "null",
            "",
            "n1.example.com:8080",
        ] {
            assert!(!allows(&plain, bad), "{bad}");
        }
        let tls = origins(&["n1.example.com:8080"], true);
        assert!(allows(&tls, "https://n1.example.com:8080") && !allows(&tls, "http://n1.example.com:8080"));
    }

    #[test]
    fn a_page_may_ask_the_nodes_as_it_knows_them() {
        let nodes =
            origins(&["127.0.0.1:8081", "localhost:8082", "n3:8080", "[::2]:8080", "n4:1; script-src *"], false);
        assert_eq!(nodes.sources("localhost:8081"), ["localhost:8081", "localhost:8082", "n3:8080"]);
        assert_eq!(nodes.sources("127.0.0.1:8081"), ["127.0.0.1:8081", "127.0.0.1:8082", "n3:8080"]);
        assert_eq!(nodes.sources("n3:8080"), ["127.0.0.1:8081", "localhost:8082", "n3:8080"]);
        assert_eq!(nodes.sources(""), ["127.0.0.1:8081", "localhost:8082", "n3:8080"]);
    }

    fn listed(hosts: &[&str], on_loopback: bool) -> Origins {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let access = WebAccess { own: "own.example:8080".into(), hosts, on_loopback, ..WebAccess::default() };
        Origins::new(|| vec!["n1.example.com:8080".into(), "192.0.2.7:8080".into()], access)
    }

    #[test]
    fn hosts_are_the_members_the_listed_and_loopback_where_it_is_reached() {
        let some = listed(&["chat.example.org", "*.Intra.example", "198.51.100.1", "[2001:db8::5]:8443"], false);
        for good in [
            "own.example",
            "own.example:1",
            "n1.example.com:9999",
            "N1.Example.Com.",
            "192.0.2.7",
            "chat.example.org:8081",
            "a.intra.example",
            "a.b.intra.example:80",
            "198.51.100.1:8080",
            "[2001:db8::5]",
        ] {
            assert!(some.allow_host(good), "{good}");
        }
        for bad in [
            "",
            ":8080",
            ".",
            "evil.example:8080",
            "n1.example.com.evil.example",
            "n1.example.com:8080.evil.example",
            "n1.example.com@evil.example",
            "intra.example",
            "badintra.example",
            "192.0.2.8",
            "[::1]:8080",
            "localhost:8080",
            "127.0.0.1",
            "own.example:8080/",
        ] {
            assert!(!some.allow_host(bad), "{bad}");
        }
        let near = listed(&[], true);
        for good in ["localhost:9999", "127.0.0.1", "[::1]:8080", "LOCALHOST"] {
            assert!(near.allow_host(good), "{good}");
        }
        for bad in ["127.0.0.2", "localhost.evil.example", "a.localhost"] {
            assert!(!near.allow_host(bad), "{bad}");
        }
        assert!(listed(&["localhost"], false).allow_host("127.0.0.1:8080"));
    }

    #[test]
    fn a_page_may_always_ask_what_it_came_from_and_the_listed_hosts() {
        let from = |origins: &Origins, origin: &'static str, host: &str| {
            origins.allow_origin(&HeaderValue::from_static(origin), host)
        };
        let near = listed(&[], true);
        assert!(from(&near, "http://localhost:9999", "localhost:9999"), "a forwarded port");
        assert!(!from(&near, "http://localhost:3000", "localhost:9999"), "another program of this machine");
        assert!(!from(&near, "http://evil.example", "evil.example"), "a host that is not this node's");
        let some = listed(&["chat.example.org", "*.intra.example:8443"], false);
        for (origin, host) in [
            ("https://chat.example.org", "chat.example.org"),
            ("http://chat.example.org", "chat.example.org"),
            // A proxy that sends the node's own name.
            ("https://chat.example.org", "n1.example.com:8080"),
            ("http://chat.example.org:8080", "n1.example.com:8080"),
            ("https://a.intra.example:8443", "n1.example.com:8080"),
            ("https://a.intra.example:7", "a.intra.example:7"),
        ] {
            assert!(from(&some, origin, host), "{origin} at {host}");
        }
        for origin in ["https://chat.example.org:3000", "https://a.intra.example", "https://intra.example:8443", "null"]
        {
            assert!(!from(&some, origin, "n1.example.com:8080"), "{origin}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_says_that_the_browser_has_tls() {
        let proxy: IpAddr = "10.0.0.1".parse().unwrap();
        let trusts: TrustsProxy = Arc::new(move |peer| peer == proxy);
        let behind = Origins::new(Vec::new, WebAccess { trusts_proxy: Some(trusts), ..WebAccess::default() });
        let open = Origins::new(Vec::new, WebAccess::default());
        let headers = |values: &[&'static str]| {
            let values = values.iter().map(|value| HeaderValue::from_static(value));
            HeaderMap::from_iter(values.map(|value| (HeaderName::from_static(FORWARDED_PROTO), value)))
        };
        let stranger = Some("10.0.0.2".parse().unwrap());
        assert!(behind.is_secure(Some(proxy), &headers(&["https"])));
        assert!(behind.is_secure(Some(proxy), &headers(&["HTTPS, https"])));
        for said in [&[][..], &["http"], &["https", "http"], &["https,http"], &[""]] {
            assert!(!behind.is_secure(Some(proxy), &headers(said)), "{said:?}");
        }
        assert!(!behind.is_secure(stranger, &headers(&["https"])) && !behind.is_secure(None, &headers(&["https"])));
        assert!(!open.is_secure(Some(proxy), &headers(&["https"])));
        let tls = Origins::new(Vec::new, WebAccess { tls: true, ..WebAccess::default() });
        assert!(tls.is_secure(stranger, &headers(&["http"])));
    }
}
