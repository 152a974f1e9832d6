//! Reports every call to the observer (method, result, duration), and sets up its trace.
//!
//! The trace is the caller's (`traceparent`), or begins here. The caller receives its id in the details of an error
//! and, if it is sampled, in `traceresponse`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue},
    middleware::Next,
    response::Response,
};
use tonic::{Code, Status};

use super::{
    Inner, call,
    status::{self, Fault},
};
use proto::METHODS;
use trace::{Call, TraceContext};

/// Observes calls. Invoked during each call, so it must not block.
pub trait ApiObserver: Send + Sync + 'static {
    /// A call arrived. `method` is the short name of one of [`proto::METHODS`], or [`OTHER`].
    fn began(&self, method: &'static str);
    /// The call was answered, or its stream began. The code is `CANCELLED` if the caller disconnected before that.
    fn ended(&self, method: &'static str, code: &'static str, fault: Fault, took: Duration);
    /// A message was sent again, and got the same answer as the first time.
    fn repeated(&self);
    /// A subscriber asked to resume after a revision that this cluster does not have. It missed events, or belongs to
    /// another cluster.
    fn cursor_refused(&self);
    /// A backup was made and sent completely.
    fn backed_up(&self);
}

/// All other methods: health, reflection, unknown ones.
pub const OTHER: &str = "other";

/// The header with the caller's trace.
const TRACE_PARENT: &str = "traceparent";
/// The header that returns the trace to the caller.
const TRACE_RESPONSE: &str = "traceresponse";

/// Runs a call and reports it.
pub(super) async fn observe(api: Arc<Inner>, request: Request, next: Next) -> Response {
    let (method, name) = method(request.uri().path());
    let call = api.tracer.call(name, trace(request.headers()));
    api.observer.began(method);
    let context = call.context();
    let (began, code, fault) = (Instant::now(), Code::Cancelled, Fault::Caller);
    let mut running = Running { observer: &*api.observer, method, began, code, fault, call };
    let timeout = call::timeout_of(request.headers());
    let answering = async {
        let response = next.run(request).await;
        // A successful answer carries its status after the body.
        let refusal = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok);
        let fault = refusal.as_ref().map_or(Fault::None, |refusal| status::fault(refusal, timeout));
        if let Some(refusal) = refusal.as_ref().filter(|_| fault == Fault::Service) {
            let (code, reason) = (status::name_of(refusal.code()), refusal.message());
            tracing::warn!(method, code, reason, "A call failed");
        }
        (response, refusal, fault)
    };
    let (mut response, refusal, fault) = running.call.run(answering).await;
    running.fault = fault;
    running.code = refusal.as_ref().map_or(Code::Ok, Status::code);
    if let Some(refusal) = refusal.filter(|_| context.is_some()) {
        response = status::traced(refusal, context).into_http();
    }
    let traced = context.filter(|context| api.tracer.is_on() && context.is_sampled());
    // Succeeds, as a trace context is plain text.
    if let Some(Ok(text)) = traced.map(|context| HeaderValue::try_from(context.to_string())) {
        response.headers_mut().insert(TRACE_RESPONSE, text);
    }
    response
}

/// The trace context that a caller gave, if it is well-formed.
pub(super) fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    headers.get(TRACE_PARENT)?.to_str().ok()?.parse().ok()
}

/// A call in progress. Its end is always reported, on drop.
struct Running<'a> {
    observer: &'a dyn ApiObserver,
    method: &'static str,
    began: Instant,
    code: Code,
    fault: Fault,
    call: Call,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let code = status::name_of(self.code);
        self.observer.ended(self.method, code, self.fault, self.began.elapsed());
        self.call.end(code, self.fault == Fault::Service);
    }
}

/// The short and the full name of a method. Both are constants, so that a caller cannot invent label values.
fn method(path: &str) -> (&'static str, &'static str) {
    let asked = path.strip_prefix('/').unwrap_or_default();
    let full = METHODS.iter().find(|method| **method == asked);
    let known = full.and_then(|full| full.split_once('/').map(|(_, short)| (short, *full)));
    known.unwrap_or((OTHER, OTHER))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn methods_are_known_by_their_full_names() {
        let send = "chat.v1.ChatService/SendMessage";
        assert_eq!(method(&format!("/{send}")), ("SendMessage", send));
        for unknown in [
            "/chat.v1.ChatService/Send",
            "/chat.v1.Anything/SendMessage",
            "/chat.v1.ChatService/x/SendMessage",
            "/grpc.health.v1.Health/Check",
            "/SendMessage",
            "",
            "/",
        ] {
            assert_eq!(method(unknown), (OTHER, OTHER), "{unknown}");
        }
    }

    #[test]
    fn short_names_are_unique() {
        let short: BTreeSet<_> = METHODS.iter().map(|full| method(&format!("/{full}")).0).collect();
        assert_eq!(short.len(), METHODS.len());
        assert!(!short.contains(OTHER));
    }
}
