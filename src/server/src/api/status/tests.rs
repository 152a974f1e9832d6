//! The code, the reason and the retry of each status.

use super::*;

fn reason(status: &Status) -> (Code, String, bool) {
    let details = status.get_error_details();
    let info = details.error_info().expect("every status has ErrorInfo");
    assert_eq!(info.domain, DOMAIN);
    (status.code(), info.reason.clone(), details.retry_info().is_some_and(|r| r.retry_delay.is_some()))
}

fn is(status: Status, code: Code, name: &str, retry: bool) {
    assert_eq!(reason(&status), (code, name.to_owned(), retry), "{status}");
}

#[test]
fn fields_are_named() {
    let status = invalid(Invalid::new("body", "must not be empty"));
    is(status.clone(), Code::InvalidArgument, "INVALID_FIELD", false);
    let details = status.get_error_details();
    let violations = &details.bad_request().expect("BadRequest").field_violations;
    assert_eq!((violations[0].field.as_str(), violations[0].description.as_str()), ("body", "must not be empty"));
}

#[test]
fn rejections() {
    let map = |r| rejection(r, "bob", "client_message_id");
    is(map(Rejection::UsernameTaken), Code::AlreadyExists, "USERNAME_TAKEN", false);
    is(map(Rejection::SessionUnknown), Code::Unauthenticated, "TOKEN_INVALID", false);
    is(map(Rejection::SessionExpired), Code::Unauthenticated, "TOKEN_EXPIRED", false);
    is(map(Rejection::AccountUnknown), Code::NotFound, "USER_UNKNOWN", false);
    is(map(Rejection::RecipientUnknown), Code::NotFound, "USER_UNKNOWN", false);
    is(map(Rejection::RecipientDeleted), Code::FailedPrecondition, "USER_DELETED", false);
    is(map(Rejection::ConversationUnknown), Code::NotFound, "CONVERSATION_UNKNOWN", false);
    is(map(Rejection::JoinTokenInvalid), Code::PermissionDenied, "JOIN_TOKEN_INVALID", false);
    is(map(Rejection::JoinTokensFull), Code::ResourceExhausted, "JOIN_TOKENS_FULL", true);
    let reused = map(Rejection::ClientIdReused);
    is(reused.clone(), Code::InvalidArgument, "CLIENT_MESSAGE_ID_REUSED", false);
    assert!(reused.get_error_details().has_bad_request_violations());
}

#[tokio::test]
async fn proposals() {
    let now = tokio::time::Instant::now();
    let later = now + Duration::from_secs(60);
    is(propose(&ProposeError::NoLeader, later), Code::Unavailable, "NO_LEADER", true);
    is(propose(&ProposeError::Overloaded, later), Code::ResourceExhausted, "OVERLOADED", true);
    is(propose(&ProposeError::Stopped, later), Code::Unavailable, "NODE_STOPPING", true);
    let unknown = ProposeError::OutcomeUnknown("timeout".into());
    is(propose(&unknown, later), Code::Aborted, "OUTCOME_UNKNOWN", false);
    is(propose(&unknown, now), Code::DeadlineExceeded, "OUTCOME_UNKNOWN", false);
    is(after_apply(stopping()), Code::Aborted, "OUTCOME_UNKNOWN", false);
    is(after_apply(revision_not_reached(2, 1)), Code::DeadlineExceeded, "REVISION_NOT_REACHED", false);
}

#[test]
fn the_rest() {
    is(read(&ReadError::NoLeader), Code::Unavailable, "NO_LEADER", true);
    is(read(&ReadError::Deadline), Code::DeadlineExceeded, "NOT_CONFIRMED", false);
    is(read(&ReadError::Stopped), Code::Unavailable, "NODE_STOPPING", true);
    is(login_throttled(Duration::from_secs(2)), Code::ResourceExhausted, "LOGIN_THROTTLED", true);
    is(session_mismatch(), Code::Unauthenticated, "SESSION_MISMATCH", false);
    is(cut(DisconnectReason::Slow), Code::Aborted, "SLOW_SUBSCRIBER", false);
    is(cut(DisconnectReason::SessionClosed), Code::Unauthenticated, "TOKEN_INVALID", false);
    is(cut(DisconnectReason::Stopping), Code::Unavailable, "NODE_STOPPING", true);
    let not_taken = TransferError::NotTaken("another node leads".into());
    is(transfer(&not_taken, "n9"), Code::FailedPrecondition, "NOT_TAKEN_OVER", false);
    is(transfer(&TransferError::Silent, "n9"), Code::FailedPrecondition, "NODE_SILENT", false);
    is(transfer(&TransferError::NotAVoter, "n9"), Code::FailedPrecondition, "NOT_A_VOTER", false);
    is(member(&MemberError::NoLeader, "n9"), Code::Unavailable, "NO_LEADER", true);
    is(member(&MemberError::NodeUnknown, "n9"), Code::NotFound, "NODE_UNKNOWN", false);
    let conflict = MemberError::Conflict("not now".into());
    is(member(&conflict, "n9"), Code::FailedPrecondition, "MEMBERSHIP_CONFLICT", false);
    let unknown = MemberError::Unknown("no answer".into());
    is(member(&unknown, "n9"), Code::DeadlineExceeded, "OUTCOME_UNKNOWN", false);
    is(subscriptions(TooManySubscriptions), Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", false);
}
