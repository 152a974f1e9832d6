//! What stands before every route of the web port: the host that is asked for, and the page that asks.
//!
//! Refuses, before anything of the request is read or done: a host that is not the cluster's (421, against DNS rebinding), the
//! page of another origin (403), and a request that changes something and that the browser calls cross-site without naming its
//! origin (403). A caller that is no browser sends neither header and is not affected. `/livez` answers to any host: load
//! balancers probe it by address, and it says nothing.
//!
//! It also says how the request arrived ([`Arrival`]) and adds `Strict-Transport-Security` where that was over TLS.
//! Does not cover: who the caller is (the services decide).

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};

use super::{
    json::Refuser,
    origins::{Origins, is_loopback_or_address},
};
use crate::net::gate::Ticket;

/// Longest part of a refused name that is repeated to the caller.
const SHOWN_CHARS_MAX: usize = 100;

/// How a request arrived. An extension of every request of the web port.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arrival {
    /// Whether the browser's connection is encrypted.
    pub(super) secure: bool,
}

struct Guard {
    origins: Origins,
    refuser: Refuser,
    /// `None` for a port that sends none.
    transport: Option<HeaderValue>,
}

/// A request that is not let in.
#[derive(Debug, PartialEq, Eq)]
enum Denial {
    /// For this host.
    Host(String),
    /// From a page of this origin.
    Origin(String),
    /// From a page that the browser does not name.
    CrossSite,
}

/// `routes` behind the checks of this module. Over TLS, browsers are told to use nothing else for `hsts_seconds` (0: to forget
/// what they were told before).
pub fn guarded(routes: Router, origins: &Origins, hsts_seconds: u64) -> Router {
    let transport = HeaderValue::try_from(format!("max-age={hsts_seconds}")).ok();
    let guard = Guard { origins: origins.clone(), refuser: Refuser::new(), transport };
    routes.layer(from_fn_with_state(Arc::new(guard), check))
}

async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    if request.uri().path() == "/livez" {
        return next.run(request).await;
    }
    let host = match guard.examine(request.method(), request.uri(), request.headers()) {
        Ok(host) => host.to_owned(),
        Err(denial) => return guard.refuse(request.method(), &denial),
    };
    // Not the caller behind it: a proxy says how the browser's connection is.
    let peer = request.extensions().get::<Arc<Ticket>>().map(|ticket| ticket.peer().ip());
    let arrival = Arrival { secure: guard.origins.is_secure(peer, request.headers()) };
    request.extensions_mut().insert(arrival);
    let mut response = next.run(request).await;
    if arrival.secure
        && !is_loopback_or_address(&host)
        && let Some(transport) = &guard.transport
    {
        response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, transport.clone());
    }
    response
}

/// The hosts that a request names: the one in its address (HTTP/2, and HTTP/1.1 through a proxy), and those in its headers.
fn hosts<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
    let named = headers.get_all(header::HOST).into_iter().map(|host| host.to_str().unwrap_or_default());
    uri.authority().map(axum::http::uri::Authority::as_str).into_iter().chain(named)
}

impl Guard {
    /// The host that is asked for, when the request is let in.
    fn examine<'a>(&self, method: &Method, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Denial> {
        // A request that names two hosts means one of them to somebody on the way: both have to be right.
        if let Some(bad) = hosts(uri, headers).find(|host| !self.origins.allow_host(host)) {
            return Err(Denial::Host(bad.to_owned()));
        }
        let host = hosts(uri, headers).next().ok_or_else(|| Denial::Host(String::new()))?;
        let foreign = headers.get_all(header::ORIGIN).iter().find(|origin| !self.origins.allow_origin(origin, host));
        if let Some(origin) = foreign {
            return Err(Denial::Origin(origin.to_str().unwrap_or_default().to_owned()));
        }
        // Members on several hosts are cross-site to each other, and then the origin says that it is one of theirs.
        let is_cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        if is_cross_site && !method.is_safe() && !headers.contains_key(header::ORIGIN) {
            return Err(Denial::CrossSite);
        }
        Ok(host)
    }

    fn refuse(&self, method: &Method, denial: &Denial) -> Response {
        let shown = |name: &str| -> String { name.chars().take(SHOWN_CHARS_MAX).collect() };
        let (http, reason, message) = match denial {
            Denial::Host(host) => {
                let host = shown(host);
                let text = format!(
                    "this node does not answer for the host {host:?}; if browsers reach it under this name, add the host to \
                     CHAT_WEB_HOSTS on every node"
                );
                (StatusCode::MISDIRECTED_REQUEST, "HOST_NOT_ALLOWED", text)
            }
            Denial::Origin(origin) => {
                let origin = shown(origin);
                let text = format!(
                    "pages of {origin:?} may not use this node; if it is a name of this cluster, add the host to \
                     CHAT_WEB_HOSTS on every node"
                );
                (StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED", text)
            }
            Denial::CrossSite => {
                let text = "pages of other sites may not use this node".to_owned();
                (StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED", text)
            }
        };
        let kind = HeaderValue::from_static("nosniff");
        if method.is_safe() && method != Method::OPTIONS {
            return (http, [(header::X_CONTENT_TYPE_OPTIONS, kind)], format!("{message}\n")).into_response();
        }
        self.refuser.refuse(http, reason, &message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::WebAccess;

    fn guard() -> Guard {
        let access = WebAccess { own: "n1.example:8080".into(), on_loopback: true, ..WebAccess::default() };
        let origins = Origins::new(|| vec!["n2.example:8080".into(), "127.0.0.2:1".into()], access);
        Guard { origins, refuser: Refuser::new(), transport: None }
    }

    fn examine(method: Method, uri: &'static str, pairs: &[(&'static str, &'static str)]) -> Result<String, Denial> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let uri = Uri::from_static(uri);
        guard().examine(&method, &uri, &headers).map(str::to_owned)
    }

    #[test]
    fn every_host_that_a_request_names_has_to_be_the_clusters() {
        let get = |uri, pairs: &[_]| examine(Method::GET, uri, pairs);
        assert_eq!(get("/", &[("host", "n2.example:8080")]), Ok("n2.example:8080".into()));
        assert_eq!(get("http://n1.example:8080/", &[]), Ok("n1.example:8080".into()), "HTTP/2");
        let evil = || Err(Denial::Host("evil.example".into()));
        assert_eq!(get("/", &[("host", "evil.example")]), evil());
        assert_eq!(get("http://evil.example/", &[("host", "n1.example:8080")]), evil());
        assert_eq!(get("http://n1.example/", &[("host", "evil.example")]), evil());
        assert_eq!(get("/", &[("host", "n1.example"), ("host", "evil.example")]), evil());
        assert_eq!(get("/", &[]), Err(Denial::Host(String::new())));
    }

    #[test]
    fn pages_of_others_are_refused() {
        let post = |pairs: &[_]| examine(Method::POST, "/x/y", &[&[("host", "localhost:8080")], pairs].concat()).err();
        assert_eq!(post(&[]), None, "no browser");
        assert_eq!(post(&[("origin", "http://n2.example:8080"), ("sec-fetch-site", "cross-site")]), None);
        assert_eq!(post(&[("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")]), None);
        for origin in ["http://evil.example", "null", ""] {
            assert_eq!(post(&[("origin", origin)]), Some(Denial::Origin(origin.into())));
        }
        assert_eq!(
            post(&[("origin", "http://localhost:8080"), ("origin", "http://evil.example")]),
            Some(Denial::Origin("http://evil.example".into()))
        );
        assert_eq!(post(&[("sec-fetch-site", "cross-site")]), Some(Denial::CrossSite));
        // A link of another site to the page is a link.
        let link = [("host", "localhost:8080"), ("sec-fetch-site", "cross-site")];
        assert!(examine(Method::GET, "/", &link).is_ok());
    }

    #[test]
    fn a_refusal_names_the_host_and_the_setting() {
        let response = guard().refuse(&Method::GET, &Denial::Host("x\u{202e}".into()));
        assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
        let response = guard().refuse(&Method::POST, &Denial::Origin("http://evil.example".into()));
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }
}
