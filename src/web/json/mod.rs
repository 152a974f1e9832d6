//! The calls of `chat.v1` as JSON over HTTP, for browsers and `curl`: `POST /chat.v1.ChatService/SendMessage`.
//!
//! Owns the way of a JSON request to the gRPC services of the same process and back, in the style of the [Connect
//! protocol](https://connectrpc.com/docs/protocol): the canonical JSON of the messages, an error as an object under an HTTP
//! status that fits, a stream as one object per line. Invariants:
//! - No rule is made here: a request becomes the very bytes that a gRPC client would send, and goes the same way.
//! - What cannot be read is refused before it reaches a service, with the place of the mistake.
//! - A request is bounded before it is read, an answer by the services' own limits.
//!
//! A page can have its token kept from it, in a cookie (`session`); `DELETE /session` removes that cookie and asks no service. Left out: who may call (the token goes along), deadlines,
//! limits and metrics, which are those of the services.

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
use futures_util::stream;
use tonic::{Status, transport::server::TcpConnectInfo};
use tower::ServiceExt as _;

use self::{
    failure::{Failure, Refusal},
    frames::Frames,
    protocol::{Method, Protocol},
    session::{SESSION, Session},
};
use super::{guard::Arrival, origins::Origins};
use crate::{
    chat::limits::REQUEST_BYTES_MAX,
    net::{answer::Held, gate::Ticket, receive::Receiver},
    proto::{PREFIX_BYTES, framed},
};

/// Largest request: JSON may need six bytes for one of the message's, but those that do are few.
const JSON_BYTES_MAX: usize = 4 * REQUEST_BYTES_MAX;
/// What a request and an answer are.
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What a stream is: an object in each line.
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// For what is the caller's alone, and of now.
const NEVER_KEPT: HeaderValue = HeaderValue::from_static("no-store");
/// Headers of the request that mean the same to the services.
const REQUEST_HEADERS: [&str; 2] = ["authorization", "traceparent"];
/// Headers of their answer that mean the same to the caller.
const RESPONSE_HEADERS: [&str; 1] = ["traceresponse"];
/// How long the caller waits, in ms.
const TIMEOUT: &str = "connect-timeout-ms";

/// The services, once there are any: a node that does not belong to a cluster yet has none.
pub type Services = Arc<OnceLock<Router>>;

/// The routes of the API. Calls are answered by `services`, those of pages if they are of these `origins`.
///
/// # Panics
/// When the descriptors that were compiled in are broken.
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

/// Makes refusals, in the form of all errors, for what never reaches a method.
pub(super) struct Refuser(Protocol);

impl Refuser {
    /// # Panics
    /// When the descriptors that were compiled in are broken.
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

/// Removes the cookie of an account. The session that it was for stays what it is: this needs nobody but the node that is asked, and is
/// for a browser that is to forget it while there is no majority to close it.
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
            let Some(status) = status else { return self.translate(method, answer, session).await };
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

    /// From the services' answer to the caller's.
    async fn translate(
        self: &Arc<Self>,
        method: Method,
        answer: HttpResponse<Body>,
        session: Option<Session>,
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
            // A proxy that collects answers would keep events back.
            response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
            response
        } else {
            let mut message = frames.only().await.map_err(Refusal::Service)?;
            let mut cookies = Vec::new();
            if let Some(session) = session {
                (message, cookies) = session.keep(&method, message, now_ms()).map_err(Refusal::Service)?;
            }
            let mut response = Response::new(Body::from(method.decode(&message).map_err(Refusal::Service)?));
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

/// The request to the services: the bytes of a gRPC client, with the headers that mean the same to them.
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
    // Whose session it has to be.
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

/// What the lives of cookies are counted from.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// As gRPC spells it. What is not a number counts as not given, as it does there.
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
