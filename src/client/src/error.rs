//! The error type of the client library, and the classification of gRPC statuses for retries.
//!
//! Invariant: an outcome counts as known only if the service said so, or if the request cannot have left this machine.

use std::{error::Error as _, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use chat::limits::Invalid;
use net::dial::never_connected;

/// Domain of the `ErrorInfo` that the service attaches to its errors.
pub const ERROR_DOMAIN: &str = "quorum-chat";

/// What follows the message of an error whose outcome is unknown.
const OUTCOME_UNKNOWN: &str = " (an earlier attempt may have been applied; a retry with the same id settles it)";

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", if *outcome_unknown { OUTCOME_UNKNOWN } else { "" })]
pub struct ClientError {
    /// The canonical gRPC code.
    pub code: Code,
    /// The service's reason, for instance `USER_UNKNOWN`; absent when the service was not reached.
    pub reason: Option<String>,
    /// The invalid field of the request.
    pub field: Option<String>,
    /// Description of the error, for people.
    pub message: String,
    /// Time that the service asks clients to wait before a retry.
    pub retry_after: Option<Duration>,
    /// Whether the change may have been applied, or may yet be. Always false for reads.
    pub outcome_unknown: bool,
    /// The trace of the call, for diagnosis. Present if the nodes trace, or [`super::Options::trace`] is set.
    pub trace_id: Option<String>,
}

impl ClientError {
    /// Creates an error that a program detected before it sent anything.
    pub fn local(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: None,
            field: None,
            message: message.into(),
            retry_after: None,
            outcome_unknown: false,
            trace_id: None,
        }
    }

    /// Whether the call failed without effect because no node, or no leader, could be reached or the service was
    /// overloaded. A later call may succeed.
    pub fn is_unavailable(&self) -> bool {
        let unavailable = matches!(self.code, Code::Unavailable | Code::DeadlineExceeded);
        !self.outcome_unknown && (unavailable || self.has_reason("OVERLOADED"))
    }

    /// Whether the error is a timeout without any answer from the service.
    pub(super) fn is_silence(&self) -> bool {
        self.reason.is_none() && matches!(self.code, Code::DeadlineExceeded | Code::Cancelled)
    }

    /// Whether the service gave this reason.
    pub fn has_reason(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
        let violation = status.get_details_bad_request().and_then(|bad| bad.field_violations.into_iter().next());
        let message = match (status.message(), &violation) {
            ("", Some(violation)) => format!("{}: {}", violation.field, violation.description),
            ("", None) => status.code().description().to_owned(),
            (message, _) => match info.is_none().then(|| root_cause(&status)).flatten() {
                Some(cause) if cause != message => format!("{message}: {cause}"),
                _ => message.to_owned(),
            },
        };
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason),
            field: violation.map(|violation| violation.field),
            message,
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
            outcome_unknown: false,
            trace_id: status.get_details_request_info().map(|info| info.request_id).filter(|id| !id.is_empty()),
        }
    }
}

impl From<Invalid> for ClientError {
    fn from(invalid: Invalid) -> Self {
        let field = Some(invalid.field.to_owned());
        Self { field, ..Self::local(Code::InvalidArgument, invalid.to_string()) }
    }
}

/// Returns the innermost cause of a transport error, for instance "Connection refused".
fn root_cause(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let cause = cause.to_string();
    // TLS reports this for the start of an HTTP/2 connection. `net::plain` detects the opposite mistake.
    Some(if cause.contains("InvalidContentType") {
        format!("{cause}: perhaps it does not talk TLS, and this side does")
    } else {
        cause
    })
}

/// The cause of a failed attempt, which decides where the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The node: it is gone, hung or stopping.
    Node,
    /// The node works, but does not know or reach the leader.
    Leader,
    /// Neither: waiting is enough.
    Nobody,
}

/// The meaning of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The service decided: a retry has the same result.
    Final,
    /// The call can be retried.
    Retry {
        /// Whether this attempt may have applied the change.
        unknown: bool,
        /// Whether the attempt timed out without an answer.
        silent: bool,
        /// What to avoid in the next attempt.
        blame: Blame,
    },
}

impl Verdict {
    const fn retry(unknown: bool, silent: bool, blame: Blame) -> Self {
        Self::Retry { unknown, silent, blame }
    }

    /// The attempt timed out without an answer.
    pub(crate) const SILENCE: Self = Self::retry(true, true, Blame::Node);
}

/// Classifies a failed attempt.
pub(crate) fn classify(status: &Status) -> Verdict {
    match status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN) {
        Some(info) => classify_answer(status.code(), &info.reason),
        None => classify_transport(status),
    }
}

/// Classifies an error that the service returned with a reason.
fn classify_answer(code: Code, reason: &str) -> Verdict {
    match (code, reason) {
        (_, "OUTCOME_UNKNOWN") => Verdict::retry(true, code == Code::DeadlineExceeded, Blame::Leader),
        (_, "NODE_STOPPING") => Verdict::retry(false, false, Blame::Node),
        (_, "OVERLOADED" | "RATE_LIMITED" | "SLOW_SUBSCRIBER") => Verdict::retry(false, false, Blame::Nobody),
        // UNAVAILABLE from the service guarantees that nothing was applied.
        (Code::Unavailable, _) => Verdict::retry(false, false, Blame::Leader),
        (Code::DeadlineExceeded, _) => Verdict::retry(false, true, Blame::Leader),
        (Code::Aborted, _) => Verdict::retry(true, false, Blame::Leader),
        _ => Verdict::Final,
    }
}

/// Classifies a status that was made by the transport, a proxy or this side.
fn classify_transport(status: &Status) -> Verdict {
    match status.code() {
        Code::Unavailable => Verdict::retry(!never_connected(status), false, Blame::Node),
        Code::DeadlineExceeded | Code::Cancelled => Verdict::SILENCE,
        // A broken connection appears as one of these, depending on where it broke.
        Code::Aborted | Code::Unknown | Code::Internal => Verdict::retry(true, false, Blame::Node),
        // Another program listens there, or an older node: a different node may have the method. In a container, the
        // address that the cluster lists for a node may reach a different port of this container.
        Code::Unimplemented => Verdict::retry(false, false, Blame::Node),
        _ => Verdict::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn answer(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, ERROR_DOMAIN, std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(40)));
        details.add_bad_request_violation("body", "must not be empty");
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn the_details_are_kept() {
        let error = ClientError::from(answer(Code::InvalidArgument, "FIELD_INVALID"));
        assert!(error.has_reason("FIELD_INVALID"));
        assert_eq!(error.field.as_deref(), Some("body"));
        assert_eq!(error.retry_after, Some(Duration::from_millis(40)));
        assert_eq!(error.to_string(), "no");
        assert!(!error.is_unavailable());
    }

    #[test]
    fn reasons_of_another_domain_do_not_count() {
        let mut details = ErrorDetails::new();
        details.set_error_info("NO_LEADER", "some-proxy", std::collections::HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "no", details);
        // This is not the service's guarantee that nothing was applied.
        assert_eq!(classify(&status), Verdict::retry(true, false, Blame::Node));
        assert_eq!(ClientError::from(status).reason, None);
    }

    #[test]
    fn answers_of_the_service() {
        let retry = Verdict::retry;
        for (code, reason, expected) in [
            (Code::Unavailable, "NO_LEADER", retry(false, false, Blame::Leader)),
            (Code::Unavailable, "NODE_STOPPING", retry(false, false, Blame::Node)),
            (Code::Unavailable, "OVERLOADED", retry(false, false, Blame::Nobody)),
            (Code::ResourceExhausted, "OVERLOADED", retry(false, false, Blame::Nobody)),
            (Code::Aborted, "OUTCOME_UNKNOWN", retry(true, false, Blame::Leader)),
            (Code::DeadlineExceeded, "OUTCOME_UNKNOWN", retry(true, true, Blame::Leader)),
            (Code::DeadlineExceeded, "REVISION_NOT_REACHED", retry(false, true, Blame::Leader)),
            (Code::Aborted, "SLOW_SUBSCRIBER", retry(false, false, Blame::Nobody)),
            (Code::ResourceExhausted, "RATE_LIMITED", retry(false, false, Blame::Nobody)),
            (Code::ResourceExhausted, "STORAGE_LOW", Verdict::Final),
            (Code::ResourceExhausted, "QUOTA_EXCEEDED", Verdict::Final),
            (Code::ResourceExhausted, "LOGIN_THROTTLED", Verdict::Final),
            (Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", Verdict::Final),
            (Code::NotFound, "USER_UNKNOWN", Verdict::Final),
            (Code::Unauthenticated, "TOKEN_INVALID", Verdict::Final),
            (Code::InvalidArgument, "CLIENT_MESSAGE_ID_REUSED", Verdict::Final),
            (Code::Internal, "STORAGE", Verdict::Final),
        ] {
            assert_eq!(classify(&answer(code, reason)), expected, "{code:?} {reason}");
        }
    }

    #[test]
    fn what_the_transport_makes_up_is_never_taken_for_an_answer() {
        for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::Aborted] {
            assert_eq!(classify(&Status::new(code, "")), Verdict::retry(true, false, Blame::Node), "{code:?}");
        }
        for code in [Code::Cancelled, Code::DeadlineExceeded] {
            assert_eq!(classify(&Status::new(code, "")), Verdict::SILENCE, "{code:?}");
        }
        // A server without the method cannot have applied anything.
        assert_eq!(classify(&Status::new(Code::Unimplemented, "")), Verdict::retry(false, false, Blame::Node));
        for code in [Code::OutOfRange, Code::ResourceExhausted] {
            assert_eq!(classify(&Status::new(code, "")), Verdict::Final, "{code:?}");
        }
        let mut refused = Status::unavailable("tcp connect error");
        refused.set_source(std::sync::Arc::new(tonic::ConnectError("refused".into())));
        assert_eq!(classify(&refused), Verdict::retry(false, false, Blame::Node));
    }
}
