//! Errors in HTTP and JSON. The codes and their HTTP statuses are Connect's.

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::protocol::Protocol;
use net::receive::NotReceived;

/// The domain of the reasons.
const DOMAIN: &str = "quorum-chat";
/// The prefix of the types of details.
const TYPES: &str = "type.googleapis.com/";

/// A request that is rejected.
pub(super) enum Refusal {
    /// Rejected before it reached a service.
    Http(StatusCode, Box<Status>),
    /// Rejected by a service.
    Service(Status),
}

impl Refusal {
    pub(super) fn here(http: StatusCode, code: Code, reason: &str, message: &str) -> Self {
        let details = ErrorDetails::with_error_info(reason, DOMAIN, [] as [(String, String); 0]);
        Self::Http(http, Box::new(Status::with_error_details(code, message, details)))
    }

    pub(super) fn no_method() -> Self {
        let message = "there is no such method; the address is /chat.v1.ChatService/SendMessage, for instance";
        Self::here(StatusCode::NOT_FOUND, Code::Unimplemented, "NO_METHOD", message)
    }

    pub(super) fn not_json() -> Self {
        let message = "the content type has to be application/json";
        Self::here(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "NOT_JSON", message)
    }

    pub(super) fn encoded() -> Self {
        let message = "the node takes requests without a content encoding";
        Self::here(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "CONTENT_ENCODED", message)
    }

    pub(super) fn too_large() -> Self {
        let message = "the request is larger than the node takes";
        Self::here(StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, "REQUEST_TOO_LARGE", message)
    }

    pub(super) fn unreadable(cause: &dyn std::fmt::Display) -> Self {
        let message = format!("not a valid request: {cause}");
        Self::here(StatusCode::BAD_REQUEST, Code::InvalidArgument, "INVALID_REQUEST", &message)
    }

    pub(super) fn not_received(problem: NotReceived) -> Self {
        match problem {
            NotReceived::TooLarge => Self::too_large(),
            NotReceived::Incomplete => {
                let message = "the request did not arrive as a whole in time";
                Self::here(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, "REQUEST_INCOMPLETE", message)
            }
            NotReceived::BrokenOff => Self::unreadable(&"it broke off"),
            NotReceived::Full => {
                let message = "too much to do: too many requests are being received";
                Self::here(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "OVERLOADED", message)
            }
        }
    }

    pub(super) fn no_session() -> Self {
        Self::unreadable(&"Chat-Session has to name the account")
    }

    /// A bug of this program, as every request comes on a connection.
    pub(super) fn no_connection() -> Self {
        Self::Service(Status::internal("the connection of the request is not known"))
    }

    pub(super) fn starting() -> Self {
        let message = "this node is starting, and not part of its cluster yet; ask another one";
        Self::here(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "NODE_STARTING", message)
    }
}

/// An error as an object: `{"code": "not_found", "message": "...", "details": [...]}`.
pub(super) struct Failure(Value);

impl Failure {
    /// Converts a status. Each detail has its type, its bytes as in Connect, and its text under `debug`.
    pub(super) fn of(status: &Status, protocol: &Protocol) -> Self {
        let mut details = tonic_types::Status::decode(status.details()).unwrap_or_default().details;
        // The most useful detail comes first.
        details.sort_by_key(|detail| !detail.type_url.ends_with("/google.rpc.ErrorInfo"));
        let details: Vec<Value> = details
            .iter()
            .map(|detail| {
                let kind = detail.type_url.strip_prefix(TYPES).unwrap_or(&detail.type_url);
                json!({
                    "type": kind,
                    "value": STANDARD_NO_PAD.encode(&detail.value),
                    "debug": protocol.json(kind, &detail.value),
                })
            })
            .collect();
        Self(json!({ "code": name_of(status.code()), "message": status.message(), "details": details }))
    }

    pub(super) fn json(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }

    /// The last line of a stream that failed.
    pub(super) fn line(self) -> Vec<u8> {
        json!({ "error": self.0 }).to_string().into_bytes()
    }
}

fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // The caller has disconnected, so this is not received.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_told_in_words() {
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", DOMAIN, [] as [(String, String); 0]);
        details.add_bad_request_violation("body", "must not be empty");
        details.set_retry_info(Some(std::time::Duration::from_secs(1)));
        let status = Status::with_error_details(Code::InvalidArgument, "body: must not be empty", details);
        let json: Value = serde_json::from_slice(&Failure::of(&status, &Protocol::new()).json()).unwrap();
        assert_eq!((&json["code"], &json["message"]), (&json!("invalid_argument"), &json!("body: must not be empty")));
        let debugs: Vec<_> = json["details"].as_array().unwrap().iter().map(|detail| &detail["debug"]).collect();
        assert_eq!(debugs[0], &json!({ "reason": "INVALID_FIELD", "domain": DOMAIN }));
        assert_eq!(
            (&debugs[1]["retryDelay"], &debugs[2]["fieldViolations"][0]["field"]),
            (&json!("1s"), &json!("body"))
        );
        assert_eq!(json["details"][0]["type"], "google.rpc.ErrorInfo");
        // A status without details, and one with malformed details.
        for details in [&b""[..], b"\xff\xff"] {
            let status = Status::with_details(Code::Internal, "x", details.to_vec().into());
            let json: Value = serde_json::from_slice(&Failure::of(&status, &Protocol::new()).json()).unwrap();
            assert_eq!(json, json!({ "code": "internal", "message": "x", "details": [] }));
        }
    }
}
