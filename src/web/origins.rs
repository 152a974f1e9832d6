//! Whose pages may use this node: those of the cluster's own nodes.
//!
//! A page that loses its node goes on with another one, so each node has to answer the pages of all others, and a page has to be
//! allowed to ask all of them. Nobody else's page gets anything. Addresses are those that the members advertise for
//! browsers. The names of the own machine (`localhost`, `127.0.0.1`, `[::1]`) are one: whoever advertises one of them can only
//! mean a browser that runs there.

use std::sync::Arc;

use tower_http::cors::{AllowOrigin, CorsLayer, MaxAge};

use axum::http::{HeaderName, HeaderValue, Method, header};

/// What an answer to a preflight may be remembered for.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(600);

/// The own machine, as browsers call it.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Where the members' web addresses (`host:port`) come from. Called for each request that needs them; must not block.
type Addresses = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The origins that are the cluster's.
#[derive(Clone)]
pub struct Origins {
    addresses: Addresses,
    /// This port speaks TLS: then the others do, too, and a page that came without it is not trusted.
    tls: bool,
}

impl Origins {
    /// The origins at these addresses: `host:port`, as the members advertise them for browsers.
    pub fn new(addresses: impl Fn() -> Vec<String> + Send + Sync + 'static, tls: bool) -> Self {
        Self { addresses: Arc::new(addresses), tls }
    }

    /// Lets the pages of these origins make the calls of the API, with their cookies, and no others.
    pub(super) fn cors(&self, request_headers: &[HeaderName], response_headers: &[HeaderName]) -> CorsLayer {
        let origins = self.clone();
        let allowed = AllowOrigin::predicate(move |origin, _| origins.allow(origin));
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_credentials(true)
            .allow_methods([Method::POST, Method::DELETE])
            .allow_headers(request_headers.to_vec())
            .expose_headers(response_headers.to_vec())
            .max_age(MaxAge::exact(REMEMBERED))
            .vary([header::ORIGIN])
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        let Some((scheme, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let default_port = match scheme {
            "https" => "443",
            "http" if !self.tls => "80",
            _ => return false,
        };
        let place = Place::of(authority, default_port);
        (self.addresses)().iter().any(|address| Place::of(address, "") == place)
    }

    /// The nodes that a page may ask, as the sources of a Content-Security-Policy. `host` is what the browser calls this
    /// node: a page of `localhost` asks the others there as well, as its cookies are only sent there.
    pub(super) fn sources(&self, host: &str) -> Vec<String> {
        let here = Place::of(host, "").host;
        let name = |address: String| match Place::of(&address, "") {
            Place { host: Host::Loopback, port } if here == Host::Loopback => {
                format!("{}:{port}", host_of(host))
            }
            _ => address,
        };
        // Policies have no form for IPv6 addresses, and must not be added to by an address.
        let sayable = |source: &String| source.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b));
        (self.addresses)().into_iter().map(name).filter(sayable).collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Loopback,
    Name(String),
}

/// Where a page is from.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    host: Host,
    port: String,
}

impl Place {
    fn of(authority: &str, default_port: &str) -> Self {
        let host = host_of(authority);
        let port = authority[host.len()..].strip_prefix(':').unwrap_or(default_port).to_owned();
        let is_loopback = LOOPBACK.iter().any(|name| host.eq_ignore_ascii_case(name));
        Self { host: if is_loopback { Host::Loopback } else { Host::Name(host.to_ascii_lowercase()) }, port }
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
        Origins::new(move || addresses.clone(), tls)
    }

    fn allows(origins: &Origins, origin: &'static str) -> bool {
        origins.allow(&HeaderValue::from_static(origin))
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
}
