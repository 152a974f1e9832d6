//! The calls of `chat.v1` as JSON over HTTP, for browsers and `curl`: `POST /chat.v1.ChatService/SendMessage`.
//!
//! Owns the translation of a JSON request to the gRPC services of the same process and back, in the style of the
//! [Connect protocol](https://connectrpc.com/docs/protocol): the canonical JSON of the messages, an error as an object
//! with a matching HTTP status, a stream as one object per line.
//!
//! Invariants:
//! - No rule is defined here. A request becomes the same bytes that a gRPC client would send, and takes the same path.
//! - An unreadable request is rejected before it reaches a service, with the place of the mistake.
//! - A request is bounded before it is read. An answer is bounded by the services' own limits.
//!
//! A page can keep its token in a cookie that it cannot read (`session`). `DELETE /session` removes that cookie without
//! a call to a service.
//!
//! Does not cover: authorization (the token is passed on), deadlines, limits and metrics, which belong to the services.

mod failure;
mod frames;
mod protocol;
mod session;

use std::{
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{self, HeaderMap, HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{delete, post},
};
use bytes::Bytes;
use flate2::Compression;
use futures_util::stream;
use tonic::{Status, transport::server::TcpConnectInfo};
use tower::ServiceExt as _;

use self::{
    failure::{Failure, Refusal},
    frames::Frames,
    protocol::{Method, Protocol},
    session::{SESSION, Session},
};
use super::{
    arrival::Arrival,
    encoding::{accepts_gzip, gzip},
    origins::Origins,
};
use chat::limits::REQUEST_BYTES_MAX;
use net::{answer::Held, gate::Ticket, receive::Receiver};
use proto::{PREFIX_BYTES, framed};

/// Largest request. JSON may need six bytes for one byte of the message, but such bytes are rare.
const JSON_BYTES_MAX: usize = 4 * REQUEST_BYTES_MAX;
/// The media type of requests and answers.
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The media type of a stream: one object per line.
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// For answers that are current and belong to one caller.
const NEVER_KEPT: HeaderValue = HeaderValue::from_static("no-store");
/// Request headers that are passed to the services unchanged.
const REQUEST_HEADERS: [&str; 2] = ["authorization", "traceparent"];
/// Response headers of the services that are passed to the caller unchanged.
const RESPONSE_HEADERS: [&str; 1] = ["traceresponse"];
/// Methods whose answers are compressed on request. They do not contain a secret and a stranger's text, whose
/// similarity the length would reveal (BREACH): everyone who can write into them can see their content anyway.
const PACKED: [&str; 3] = ["ListAccounts", "ListNodes", "ReadConversation"];
/// Sizes that are worth compressing and take at most a few milliseconds.
const PACKED_BYTES: std::ops::RangeInclusive<usize> = 1024..=256 * 1024;
/// The caller's timeout, in ms.
const TIMEOUT: &str = "connect-timeout-ms";

/// The services. Empty until the node belongs to a cluster.
pub type Services = Arc<OnceLock<Router>>;

/// The routes of the API. `services` answer the calls. Pages need one of these `origins`.
///
/// # Panics
/// The compiled-in descriptors are broken.
pub fn json_router(services: Services, origins: &Origins, receiver: Arc<Receiver>) -> Router {
    let api = Arc::new(Api { services, protocol: Protocol::new(), receiver });
    let mut asked: Vec<HeaderName> = REQUEST_HEADERS.map(HeaderName::from_static).into();
    asked.extend([header::CONTENT_TYPE, HeaderName::from_static(SESSION), HeaderName::from_static(TIMEOUT)]);
    let cors = origins.cors(&asked, &RESPONSE_HEADERS.map(HeaderName::from_static));
    Router::new()
        .route("/{service}/{method}", post(answer).with_state(Arc::clone(&api)))
        .route("/session", delete(forget).with_state(api))
        .layer(cors)
}

/// Makes the responses for requests that are rejected before they reach a method, in the form of all errors.
pub(super) struct Refuser(Protocol);

impl Refuser {
    /// # Panics
    /// The compiled-in descriptors are broken.
    pub(super) fn new() -> Self {
        Self(Protocol::new())
    }

    pub(super) fn refuse(&self, http: StatusCode, reason: &str, message: &str) -> Response {
        Refusal::here(http, tonic::Code::PermissionDenied, reason, message).into_response(&self.0)
    }
}

struct Api {
    services: Services,
    protocol: Protocol,
    receiver: Arc<Receiver>,
}

async fn answer(
    State(api): State<Arc<Api>>,
    Path((service, method)): Path<(String, String)>,
    request: Request,
) -> Response {
    match api.call(&service, &method, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(&api.protocol),
    }
}

/// Removes the cookie of an account. Its session stays open. This needs only the local node: it lets a browser forget
/// the session while there is no quorum to close it.
async fn forget(State(api): State<Arc<Api>>, arrival: Extension<Arrival>, headers: HeaderMap) -> Response {
    let session = Session::of(&headers, arrival.secure).and_then(|session| session.ok_or_else(Refusal::no_session));
    match session.and_then(|session| session.removed().map_err(Refusal::Service)) {
        Ok(cookies) => {
            let mut response = (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, NEVER_KEPT)]).into_response();
            set_cookies(&mut response, cookies);
            response
        }
        Err(refusal) => refusal.into_response(&api.protocol),
    }
}

fn set_cookies(response: &mut Response, cookies: Vec<HeaderValue>) {
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

impl Api {
    async fn call(self: &Arc<Self>, service: &str, method: &str, request: Request) -> Result<Response, Refusal> {
        let method = self.protocol.method(service, method).ok_or_else(Refusal::no_method)?;
        if !is_json(request.headers()) {
            return Err(Refusal::not_json());
        }
        if is_encoded(request.headers()) {
            return Err(Refusal::encoded());
        }
        let secure = request.extensions().get::<Arrival>().is_some_and(|arrival| arrival.secure);
        let session = Session::of(request.headers(), secure)?;
        let services = self.services.get().ok_or_else(Refusal::starting)?;
        let (head, body) = request.into_parts();
        let ticket = head.extensions.get::<Arc<Ticket>>().ok_or_else(Refusal::no_connection)?;
        let owner = ticket.proven_account().unwrap_or_else(|| ticket.stranger(&head.extensions));
        let received = self.receiver.receive(ticket, owner, body, JSON_BYTES_MAX).await;
        let (text, _bytes) = received.map_err(Refusal::not_received)?;
        let message = method.read(&text).map_err(|error| Refusal::unreadable(&error))?;
        let mut message = framed(&message).map_err(Refusal::Service)?;
        let mut cookies = Vec::new();
        if let Some(session) = &session {
            session.check_login(&method, &message[PREFIX_BYTES..])?;
            message = session.introduce(&method, message, &head.headers).map_err(Refusal::Service)?;
            if !head.headers.contains_key(header::AUTHORIZATION) {
                cookies = session.authorizations(&head.headers);
            }
        }
        let mut cookies = cookies.into_iter().peekable();
        loop {
            let call = service_request(&head, &message, session.as_ref(), cookies.next());
            let Ok(answer) = services.clone().oneshot(call).await;
            let status = Status::from_header_map(answer.headers()).filter(|status| status.code() != tonic::Code::Ok);
            let Some(status) = status else {
                let packs = PACKED.contains(&method.name()) && accepts_gzip(&head.headers);
                return self.translate(method, answer, session, packs).await;
            };
            if cookies.peek().is_some() && Session::is_not_this_one(&status) {
                continue;
            }
            let removed = match session.filter(|_| Session::is_mismatch(&status)) {
                Some(session) => session.removed().map_err(Refusal::Service)?,
                None => Vec::new(),
            };
            let mut response = Refusal::Service(status).into_response(&self.protocol);
            set_cookies(&mut response, removed);
            return Ok(response);
        }
    }

    /// Translates the answer of the services for the caller.
    async fn translate(
        self: &Arc<Self>,
        method: Method,
        answer: HttpResponse<Body>,
        session: Option<Session>,
        packs: bool,
    ) -> Result<Response, Refusal> {
        let (head, body) = answer.into_parts();
        let mut frames = Frames::new(body);
        let mut response = if method.is_stream() {
            let api = Arc::clone(self);
            let lines = stream::unfold(Some((frames, method)), move |open| {
                let api = Arc::clone(&api);
                async move {
                    let (mut frames, method) = open?;
                    let next =
                        frames.next().await.and_then(|message| message.map(|bytes| method.decode(&bytes)).transpose());
                    let (mut line, open) = match next {
                        Ok(Some(line)) => (line, Some((frames, method))),
                        Ok(None) => return None,
                        Err(status) => (Failure::of(&status, &api.protocol).line(), None),
                    };
                    line.push(b'\n');
                    Some((Ok::<_, std::convert::Infallible>(line), open))
                }
            });
            let mut response = Response::new(Body::from_stream(lines));
            response.headers_mut().insert(header::CONTENT_TYPE, JSON_LINES);
            // A proxy that buffers answers would hold events back.
            response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
            response
        } else {
            let mut message = frames.only().await.map_err(Refusal::Service)?;
            let mut cookies = Vec::new();
            if let Some(session) = session {
                (message, cookies) = session.keep(&method, message, now_ms()).map_err(Refusal::Service)?;
            }
            let text = method.decode(&message).map_err(Refusal::Service)?;
            let is_packed = packs && PACKED_BYTES.contains(&text.len());
            let body = if is_packed { gzip(&text, Compression::fast()).into() } else { Body::from(text) };
            let mut response = Response::new(body);
            if is_packed {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
            response.headers_mut().insert(header::CONTENT_TYPE, JSON);
            set_cookies(&mut response, cookies);
            response
        };
        response.headers_mut().insert(header::CACHE_CONTROL, NEVER_KEPT);
        copy(&RESPONSE_HEADERS, &head.headers, response.headers_mut());
        if let Some(held) = head.extensions.get::<Held>() {
            response.extensions_mut().insert(held.clone());
        }
        Ok(response)
    }
}

/// The request to the services: the bytes of a gRPC client, with the headers that are passed on.
fn service_request(
    head: &http::request::Parts,
    message: &Bytes,
    session: Option<&Session>,
    cookie: Option<HeaderValue>,
) -> Request {
    let mut call = Request::new(Body::from(message.clone()));
    *call.method_mut() = head.method.clone();
    *call.uri_mut() = head.uri.clone();
    let headers = call.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    copy(&REQUEST_HEADERS, &head.headers, headers);
    if let Some(authorization) = cookie {
        headers.insert(header::AUTHORIZATION, authorization);
    }
    // The account that the session has to belong to.
    if let Some(name) = session.and_then(|session| HeaderValue::try_from(session.name()).ok()) {
        headers.insert(SESSION, name);
    }
    if let Some(timeout) = timeout(&head.headers) {
        headers.insert("grpc-timeout", timeout);
    }
    if let Some(from) = head.extensions.get::<TcpConnectInfo>() {
        call.extensions_mut().insert(from.clone());
    }
    if let Some(ticket) = head.extensions.get::<Arc<Ticket>>() {
        call.extensions_mut().insert(Arc::clone(ticket));
    }
    call
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn copy(names: &[&'static str], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(*name) {
            to.insert(*name, value.clone());
        }
    }
}

/// The reference time for the lifetimes of cookies.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The timeout in the format of gRPC. As there, a value that is not a number counts as absent.
fn timeout(headers: &HeaderMap) -> Option<HeaderValue> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let ms: u32 = text.parse().ok().filter(|ms| *ms <= 99_999_999)?;
    HeaderValue::try_from(format!("{ms}m")).ok()
}

impl Refusal {
    fn into_response(self, protocol: &Protocol) -> Response {
        let (http, failure) = match self {
            Self::Http(http, status) => (http, Failure::of(&status, protocol)),
            Self::Service(status) => (failure::http_status(status.code()), Failure::of(&status, protocol)),
        };
        let mut response = Response::new(Body::from(failure.json()));
        *response.status_mut() = http;
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        response.headers_mut().insert(header::CACHE_CONTROL, NEVER_KEPT);
        if http == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response.headers_mut().insert("accept-post", JSON);
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }
}
