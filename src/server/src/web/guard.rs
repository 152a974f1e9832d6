//! Checks before every route of the web port: the requested host, and the page that sends the request.
//!
//! The guard rejects three kinds of requests before anything of them is read or executed: a host that is not the
//! cluster's (421, against DNS rebinding), a page of another origin (403), and an unsafe request that the browser marks
//! as cross-site without an origin (403). A caller that is not a browser sends neither header and is not affected.
//! `/livez` answers for any host: load balancers probe it by address, and it reveals nothing.
//!
//! The guard also records how the request arrived ([`Arrival`]), and adds `Strict-Transport-Security` to answers over
//! TLS.
//!
//! Does not cover: authentication, which the services do.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};

use super::{
    arrival::Arrival,
    json::Refuser,
    origins::{Origins, is_loopback_or_address},
};
use net::gate::Ticket;

/// Longest part of a rejected name that is repeated to the caller.
const SHOWN_CHARS_MAX: usize = 100;

struct Guard {
    origins: Origins,
    refuser: Refuser,
    /// `None` for a port that sends none.
    transport: Option<HeaderValue>,
}

/// Why a request is rejected.
#[derive(Debug, PartialEq, Eq)]
enum Denial {
    /// It is for this host.
    Host(String),
    /// It comes from a page of this origin.
    Origin(String),
    /// It comes from a page whose origin the browser does not state.
    CrossSite,
}

/// Wraps `routes` in the checks of this module. Over TLS, browsers must use only TLS for `hsts_seconds` (0 revokes
/// that).
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
    // The address of the peer, not of the caller behind it, because a proxy states how the browser is connected.
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

/// The hosts in a request: the one in its address (HTTP/2, and HTTP/1.1 through a proxy), and those in its headers.
fn hosts<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
    let named = headers.get_all(header::HOST).into_iter().map(|host| host.to_str().unwrap_or_default());
    uri.authority().map(axum::http::uri::Authority::as_str).into_iter().chain(named)
}

impl Guard {
    /// Checks a request. Returns the requested host if the request is accepted.
    fn examine<'a>(&self, method: &Method, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Denial> {
        // If a request names two hosts, some hop on the way may use either. So both have to be valid.
        if let Some(bad) = hosts(uri, headers).find(|host| !self.origins.allow_host(host)) {
            return Err(Denial::Host(bad.to_owned()));
        }
        let host = hosts(uri, headers).next().ok_or_else(|| Denial::Host(String::new()))?;
        let foreign = headers.get_all(header::ORIGIN).iter().find(|origin| !self.origins.allow_origin(origin, host));
        if let Some(origin) = foreign {
            return Err(Denial::Origin(origin.to_str().unwrap_or_default().to_owned()));
        }
        // Members on several hosts are cross-site to each other. In that case the origin shows that it is one of
        // theirs.
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
                    "this node does not answer for the host {host:?}; if browsers reach it under this name, add the \
                     host to CHAT_WEB_HOSTS on every node"
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
        // A link from another site to the page is allowed.
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
