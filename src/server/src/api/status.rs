//! The only mapping of errors and rejections to `tonic::Status`.
//!
//! Every status carries `google.rpc.ErrorInfo` with a reason of `proto/chat/v1` and the domain [`DOMAIN`]. `BadRequest`
//! names invalid fields. `RetryInfo` gives the delay if a retry helps. `RequestInfo` contains the id of the call's
//! trace, if it has one.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{passwords::PasswordError, receipts::ReceiptsError};
use crate::delivery::{DisconnectReason, TooManySubscriptions};
use chat::{
    Rejection,
    limits::{Invalid, JOIN_TOKENS_MAX},
};
use raft::{MemberError, ProposeError, ReadError, Refusal, TransferError};
use storage::StorageError;
use trace::TraceContext;

/// The party at fault for the end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call succeeded.
    None,
    /// The caller.
    Caller,
    /// The node, or the cluster.
    Service,
}

impl Fault {
    /// The label of the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Caller => "caller",
            Self::Service => "service",
        }
    }
}

/// Shortest caller's timeout at which the service counts as at fault. Finding the leader takes about this long.
const TIMEOUT_MIN: Duration = Duration::from_millis(250);
/// Reasons of DEADLINE_EXCEEDED that the caller causes.
const ASKED_TOO_MUCH: [&str; 2] = ["REQUEST_INCOMPLETE", "REVISION_NOT_REACHED"];

/// The domain of every reason.
pub const DOMAIN: &str = "quorum-chat";

/// About the duration of an election.
const RETRY_LEADER: Duration = Duration::from_millis(250);
/// Longer than a full queue takes to drain.
const RETRY_OVERLOADED: Duration = Duration::from_millis(100);
/// Join tokens expire within an hour, one by one.
const RETRY_JOIN_TOKENS: Duration = Duration::from_secs(60);
/// Another node can be called at once. This one restarts within seconds.
const RETRY_STOPPING: Duration = Duration::from_millis(100);

/// Space becomes free only when data is deleted or volumes grow.
const RETRY_STORAGE: Duration = Duration::from_secs(5);

fn status(code: Code, reason: &str, message: impl Into<String>, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, [] as [(String, String); 0]);
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

fn field(reason: &str, field: &str, problem: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, [] as [(String, String); 0]);
    details.add_bad_request_violation(field, problem);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {problem}"), details)
}

/// The name of a status code in the protocol.
pub(super) fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The party at fault for the end of a call. An end that a caller alone can cause never counts as the service's fault
/// and alerts no operator: a disconnect, an incomplete request, a revision that does not exist, or a timeout that is
/// too short.
///
/// `timeout` is the caller's timeout, if any.
pub(super) fn fault(status: &Status, timeout: Option<Duration>) -> Fault {
    let is_patient = timeout.is_none_or(|given| given >= TIMEOUT_MIN);
    match status.code() {
        Code::Ok => Fault::None,
        Code::Unknown | Code::Internal | Code::DataLoss => Fault::Service,
        Code::Unavailable | Code::Aborted if is_patient => Fault::Service,
        Code::DeadlineExceeded if is_patient && !is_of(status, &ASKED_TOO_MUCH) => Fault::Service,
        _ => Fault::Caller,
    }
}

fn is_of(status: &Status, reasons: &[&str]) -> bool {
    status.get_error_details().error_info().is_some_and(|info| reasons.contains(&info.reason.as_str()))
}

/// The caller has disconnected, so this status is not received.
pub(super) fn broken_off() -> Status {
    Status::cancelled("the request broke off")
}

/// Adds the id of the trace, if the call has one, as `RequestInfo`, for the caller to quote.
pub(super) fn traced(status: Status, trace: Option<TraceContext>) -> Status {
    let Some(trace) = trace else { return status };
    let mut details = status.get_error_details();
    details.set_request_info(trace.trace_id_text(), "");
    let (code, message, metadata) = (status.code(), status.message(), status.metadata().clone());
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

/// A field of the request violates a limit.
pub(super) fn invalid(problem: Invalid) -> Status {
    field("INVALID_FIELD", problem.field, &problem.problem)
}

/// The request could not be decoded; `name` is the field if it is known.
pub(super) fn undecodable(name: Option<&str>, problem: &str) -> Status {
    match name {
        Some(name) => field("INVALID_FIELD", name, problem),
        None => status(Code::InvalidArgument, "INVALID_REQUEST", format!("not a valid request: {problem}"), None),
    }
}

/// The request exceeds the size limit.
pub(super) fn too_large(problem: &str) -> Status {
    status(Code::ResourceExhausted, "REQUEST_TOO_LARGE", problem, None)
}

/// The request did not arrive in time or broke off. Nothing was executed.
pub(super) fn request_incomplete() -> Status {
    status(Code::DeadlineExceeded, "REQUEST_INCOMPLETE", "the request did not arrive as a whole in time", None)
}

/// The `authorization: Bearer` entry is missing.
pub(super) fn token_missing() -> Status {
    status(Code::Unauthenticated, "TOKEN_MISSING", "the call needs `authorization: Bearer <token>`; see Login", None)
}

/// The token belongs to no session.
pub(super) fn token_invalid() -> Status {
    status(Code::Unauthenticated, "TOKEN_INVALID", "the token belongs to no open session", None)
}

/// The session belongs to another account than the request names.
pub(super) fn session_mismatch() -> Status {
    let text = "the session belongs to another account than Chat-Session names; log in again";
    status(Code::Unauthenticated, "SESSION_MISMATCH", text, None)
}

/// The session has expired.
pub(super) fn token_expired() -> Status {
    status(Code::Unauthenticated, "TOKEN_EXPIRED", "the session has expired; log in again", None)
}

/// No account has this name.
pub(super) fn user_unknown(name: &str) -> Status {
    status(Code::NotFound, "USER_UNKNOWN", format!("there is no account {name:?}"), None)
}

/// The password is wrong.
pub(super) fn password_wrong() -> Status {
    status(Code::Unauthenticated, "PASSWORD_WRONG", "the password is wrong", None)
}

/// Whole seconds for people: rounded up, at least one.
fn seconds(wait: Duration) -> u128 {
    wait.as_millis().div_ceil(1000).max(1)
}

/// Too many failed logins. The next attempt is accepted after `wait`.
pub(super) fn login_throttled(wait: Duration) -> Status {
    let text = format!("too many failed logins; try again in {} s", seconds(wait));
    status(Code::ResourceExhausted, "LOGIN_THROTTLED", text, Some(wait))
}

/// Too many registrations. The next attempt is accepted after `wait`.
pub(super) fn registration_throttled(wait: Duration) -> Status {
    let text = format!("too many accounts were created lately; try again in {} s", seconds(wait));
    status(Code::ResourceExhausted, "REGISTRATION_THROTTLED", text, Some(wait))
}

/// An operator has disabled the account.
pub(super) fn account_disabled() -> Status {
    status(Code::FailedPrecondition, "ACCOUNT_DISABLED", "an operator has disabled the account", None)
}

/// The conversation does not exist, or the caller is not a member.
pub(super) fn conversation_unknown() -> Status {
    status(Code::NotFound, "CONVERSATION_UNKNOWN", "the caller has no such conversation", None)
}

/// This node did not reach the requested revision in time.
pub(super) fn revision_not_reached(asked: u64, have: u64) -> Status {
    let text = format!("this node is at revision {have} and did not reach {asked} in time");
    status(Code::DeadlineExceeded, "REVISION_NOT_REACHED", text, None)
}

/// The cluster has no such revision yet.
pub(super) fn revision_in_future(asked: u64, have: u64) -> Status {
    let text = format!("after_revision is {asked}, but the newest revision is {have}");
    status(Code::OutOfRange, "REVISION_IN_FUTURE", text, None)
}

/// The cluster was restored from a backup that is older than this revision.
pub(super) fn revision_lost(asked: u64) -> Status {
    let text = format!(
        "the revision {asked} was lost when the cluster was recreated from a backup or a single node: read the \
         affected data again"
    );
    status(Code::OutOfRange, "REVISION_LOST", text, None)
}

/// A bounded resource of this node is exhausted. Nothing was executed.
pub(super) fn overloaded(what: &str) -> Status {
    status(Code::ResourceExhausted, "OVERLOADED", format!("too much to do: {what}"), Some(RETRY_OVERLOADED))
}

/// There is no leader, or it is unreachable. Nothing was executed.
pub(super) fn no_leader() -> Status {
    let text = "no leader is known, or it did not answer; nothing was done";
    status(Code::Unavailable, "NO_LEADER", text, Some(RETRY_LEADER))
}

/// The node is draining. Nothing was executed.
pub(super) fn stopping() -> Status {
    let text = "the node is stopping; ask another one";
    status(Code::Unavailable, "NODE_STOPPING", text, Some(RETRY_STOPPING))
}

/// No node has this name.
pub(super) fn node_unknown(name: &str) -> Status {
    status(Code::NotFound, "NODE_UNKNOWN", format!("there is no node {name:?}"), None)
}

/// The node has no vote, so it cannot lead.
pub(super) fn not_a_voter(name: &str) -> Status {
    status(Code::FailedPrecondition, "NOT_A_VOTER", format!("{name:?} is not a voter"), None)
}

/// An internal error. The cause is logged, but not returned.
pub(super) fn internal(what: &str, cause: &dyn std::fmt::Display) -> Status {
    tracing::error!(error = %cause, "{what}");
    status(Code::Internal, "INTERNAL", what, None)
}

/// The outcome is unknown: the change may have been applied, or may still be.
fn outcome_unknown(cause: &str, expired: bool) -> Status {
    let code = if expired { Code::DeadlineExceeded } else { Code::Aborted };
    let text = format!("the change may or may not be applied ({cause}); retry as the call's documentation says");
    status(code, "OUTCOME_UNKNOWN", text, None)
}

/// The change is applied, but the rest of the answer could not be read here. Never UNAVAILABLE or RESOURCE_EXHAUSTED,
/// which mean that nothing was applied.
pub(super) fn after_apply(cause: Status) -> Status {
    match cause.code() {
        Code::Unavailable | Code::ResourceExhausted => outcome_unknown(cause.message(), false),
        _ => cause,
    }
}

/// The account exceeds one of its rates. Nothing was applied.
fn rate_limited(limit: &str, retry: Duration) -> Status {
    let metadata = [("limit".to_owned(), limit.to_owned())];
    let mut details = ErrorDetails::with_error_info("RATE_LIMITED", DOMAIN, metadata);
    details.set_retry_info(Some(retry));
    let text = format!("the account exceeds its rate of {limit}; nothing was applied");
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

/// The volumes are low on space. Nothing was applied.
fn storage_low() -> Status {
    let text = "the cluster is low on space: it takes no messages and accounts now; deletions and reads go on";
    status(Code::ResourceExhausted, "STORAGE_LOW", text, Some(RETRY_STORAGE))
}

/// A proposal without an outcome. `deadline` is the call's.
pub(super) fn propose(error: &ProposeError, deadline: tokio::time::Instant) -> Status {
    match error {
        ProposeError::NoLeader => no_leader(),
        ProposeError::Overloaded => overloaded("the queue of changes is full; nothing was applied"),
        ProposeError::Refused(Refusal::RateLimited { rate, retry }) => rate_limited(rate.name(), *retry),
        ProposeError::Refused(Refusal::StorageLow) => storage_low(),
        ProposeError::OutcomeUnknown(cause) => outcome_unknown(cause, tokio::time::Instant::now() >= deadline),
        // The fields were checked before: a bug, or a leader of a version that does not know the command.
        ProposeError::Unfit(cause) => internal("the change was refused", cause),
        ProposeError::Stopped => stopping(),
    }
}

/// Receipts without a result.
pub(super) fn receipts(error: &ReceiptsError, deadline: tokio::time::Instant) -> Status {
    match error {
        ReceiptsError::Overloaded => overloaded("the queue of receipts is full; nothing was applied"),
        ReceiptsError::Deadline => outcome_unknown("the deadline passed", true),
        ReceiptsError::Begun(error) => after_apply(receipts(error, deadline)),
        ReceiptsError::Stopped => stopping(),
        ReceiptsError::Propose(error) => propose(error, deadline),
        ReceiptsError::Outcome(outcome) => internal("a receipt has the outcome of another command", outcome),
    }
}

/// A read that the leader did not confirm. Another attempt may succeed, whatever the cause.
pub(super) fn read(error: &ReadError) -> Status {
    match error {
        ReadError::NoLeader => no_leader(),
        ReadError::Deadline => {
            let text = "the leader did not confirm in time that this node has everything that was acknowledged";
            status(Code::DeadlineExceeded, "NOT_CONFIRMED", text, None)
        }
        ReadError::Stopped => stopping(),
    }
}

/// A snapshot that was not made.
pub(super) fn snapshot(error: &ReadError) -> Status {
    match error {
        ReadError::Deadline => outcome_unknown("the snapshot was not finished in time", true),
        other => read(other),
    }
}

/// A backup that was not made.
pub(super) fn backup(error: &StorageError) -> Status {
    if error.is_full() {
        return status(Code::ResourceExhausted, "NO_SPACE", format!("the node cannot make a backup: {error}"), None);
    }
    storage(error)
}

/// The receiver of a backup accepts nothing.
pub(super) fn receiver_stalled() -> Status {
    status(Code::DeadlineExceeded, "RECEIVER_STALLED", "the receiver of the backup takes nothing", None)
}

/// A transfer of leadership that was rejected or not confirmed.
pub(super) fn transfer(error: &TransferError, to: &str) -> Status {
    match error {
        TransferError::NoLeader => no_leader(),
        TransferError::NotAVoter => not_a_voter(to),
        TransferError::Silent => {
            let text = format!("{to:?} does not answer the leader; leadership stays where it is");
            status(Code::FailedPrecondition, "NODE_SILENT", text, None)
        }
        error @ TransferError::NotTaken(_) => {
            status(Code::FailedPrecondition, "NOT_TAKEN_OVER", format!("{to:?}: {error}"), None)
        }
        TransferError::Unknown(cause) => outcome_unknown(cause, true),
    }
}

/// A change of the membership that was rejected or not confirmed.
pub(super) fn member(error: &MemberError, name: &str) -> Status {
    match error {
        MemberError::NoLeader => no_leader(),
        MemberError::NodeUnknown => node_unknown(name),
        MemberError::Conflict(reason) => status(Code::FailedPrecondition, "MEMBERSHIP_CONFLICT", reason.clone(), None),
        MemberError::Unknown(cause) => outcome_unknown(cause, true),
    }
}

/// This node's database failed. Other nodes have their own.
pub(super) fn storage(error: &StorageError) -> Status {
    if matches!(error, StorageError::ReadTooLong(_)) {
        return status(Code::ResourceExhausted, "READ_TOO_LONG", "the read looks at more than one read may", None);
    }
    tracing::error!(error = %error, "the database could not be read");
    let text = "this node cannot read its database; ask another one";
    status(Code::Unavailable, "STORAGE_FAILED", text, Some(RETRY_STOPPING))
}

/// A password that could not be processed.
pub(super) fn password(error: &PasswordError) -> Status {
    match error {
        PasswordError::Overloaded => overloaded("too many passwords are being checked"),
        PasswordError::Failed(cause) => internal("the password could not be worked on", cause),
    }
}

/// The reason why a subscription ended.
pub(super) fn cut(cut: DisconnectReason) -> Status {
    match cut {
        DisconnectReason::Slow => {
            let text = "the reader does not keep up; subscribe again after the last revision seen";
            status(Code::Aborted, "SLOW_SUBSCRIBER", text, None)
        }
        DisconnectReason::SessionClosed => token_invalid(),
        // Subscribers resume by themselves. One that is opened at the moment of a reset may get this status.
        DisconnectReason::Reset | DisconnectReason::Stopping => stopping(),
    }
}

/// The account has too many streams on this node.
pub(super) fn subscriptions(error: TooManySubscriptions) -> Status {
    status(Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", error.to_string(), None)
}

/// A rejection of the state machine. `name` is the other account that the request named.
pub(super) fn rejection(rejection: Rejection, name: &str, id_field: &'static str) -> Status {
    match rejection {
        Rejection::UsernameTaken => {
            status(Code::AlreadyExists, "USERNAME_TAKEN", format!("the name {name:?} is taken"), None)
        }
        Rejection::SessionUnknown => token_invalid(),
        Rejection::SessionExpired => token_expired(),
        Rejection::AccountUnknown | Rejection::RecipientUnknown => user_unknown(name),
        Rejection::RecipientDeleted => {
            status(Code::FailedPrecondition, "USER_DELETED", format!("the account {name:?} was deleted"), None)
        }
        Rejection::ConversationUnknown => conversation_unknown(),
        Rejection::QuotaExceeded => {
            let text = "the account has stored as much as it may; delete large messages, and send with a new id";
            status(Code::ResourceExhausted, "QUOTA_EXCEEDED", text, None)
        }
        Rejection::RegistrationClosed => {
            status(Code::PermissionDenied, "REGISTRATION_CLOSED", "nobody may create an account here", None)
        }
        Rejection::InvitationNeeded => {
            status(Code::PermissionDenied, "INVITATION_NEEDED", "creating an account needs an invitation", None)
        }
        Rejection::InvitationInvalid => {
            let text = "the invitation is unknown, expired or used up";
            status(Code::PermissionDenied, "INVITATION_INVALID", text, None)
        }
        Rejection::TooManyInvitations => {
            let text = "there are too many invitations; revoke some first";
            status(Code::ResourceExhausted, "TOO_MANY_INVITATIONS", text, None)
        }
        Rejection::AccountDisabled => account_disabled(),
        // The password was changed a moment ago.
        Rejection::PasswordOutdated => password_wrong(),
        Rejection::TargetUnknown => status(Code::NotFound, "SESSION_UNKNOWN", "the account has no such session", None),
        // The node checks its proposals, so another node wrote these bytes to the log.
        Rejection::Malformed => internal("the change was rejected as malformed", &name),
        Rejection::JoinTokenInvalid => {
            status(Code::PermissionDenied, "JOIN_TOKEN_INVALID", "the join token is not valid", None)
        }
        Rejection::JoinTokensFull => {
            let text = format!("{JOIN_TOKENS_MAX} join tokens exist already; each expires within an hour");
            status(Code::ResourceExhausted, "JOIN_TOKENS_FULL", text, Some(RETRY_JOIN_TOKENS))
        }
        Rejection::ClientIdReused => {
            field("CLIENT_MESSAGE_ID_REUSED", id_field, "was used before, for something else; make a new UUID")
        }
    }
}

#[cfg(test)]
mod tests;
