//! Protobuf encoding of commands and outcomes: on disk in the log, and between nodes when a follower forwards.
//!
//! Encoding cannot fail and is the same on every node. Decoding checks everything that the types of [`chat`]
//! guarantee and nothing more. [`super::intake`] checks the limits of values before a command is proposed, and a
//! command in the log is applied as it is. Bytes from disk or from a peer never cause a panic.

mod accounts;

pub(super) use accounts::{decode_registration, encode_registration};

use prost::Message as _;
use thiserror::Error;

use chat::{
    AccountId, ClientId, Command, ConversationId, Destination, DigestReport, MessageSent, Outcome, ReceiptItem,
    ReceiptResult, Rejection, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash,
};
use proto::log::v1 as pb;
use trace::TraceContext;

/// The reason why a message is not a command or an outcome of this version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The kind is missing, or was added by a later version.
    #[error("{0} of a kind that this version does not know")]
    UnknownKind(&'static str),
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field of bytes has the wrong length.
    #[error("{field} has {found} bytes, not {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// Its actual length in bytes.
        found: usize,
        /// Its required length in bytes.
        expected: usize,
    },
    /// The reason of a rejection is not known to this version.
    #[error("unknown reason of a rejection: {0}")]
    UnknownReason(i32),
}

/// The sampled traces of the commands in an encoded `log.v1.Batch`. The bodies are skipped, not decoded.
pub fn traces(batch: &[u8]) -> Vec<TraceContext> {
    /// A `Batch` without its other fields.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Traces {
        #[prost(message, repeated, tag = "1")]
        proposals: Vec<Trace>,
    }
    /// A `Proposal` without its other fields.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Trace {
        #[prost(string, tag = "2")]
        traceparent: String,
    }
    // A batch that cannot be decoded is detected when it is applied.
    let proposals = Traces::decode(batch).unwrap_or_default().proposals;
    proposals.iter().filter_map(|proposal| trace(&proposal.traceparent)).collect()
}

/// The trace of a proposal, if it is sampled.
pub fn trace(traceparent: &str) -> Option<TraceContext> {
    traceparent.parse().ok().filter(|trace: &TraceContext| trace.is_sampled())
}

/// The `traceparent` of a proposal in the log and in requests to the leader. Empty unless the trace is sampled.
pub fn traceparent(trace: Option<TraceContext>) -> String {
    trace.filter(|trace| trace.is_sampled()).map(|trace| trace.to_string()).unwrap_or_default()
}

/// Whether an encoded `log.v1.Batch` may contain an `EraseAccount`, which is short but takes milliseconds to apply. It
/// searches for the key of its field, so other bytes may match by chance.
pub fn may_erase(batch: &[u8]) -> bool {
    const KEY: [u8; 2] = [0xaa, 0x01];
    batch.windows(KEY.len()).any(|bytes| bytes == KEY)
}

/// Encodes a command for the log.
pub fn encode_command(command: &Command) -> pb::Command {
    use pb::command::Kind;
    let kind = match command {
        Command::CreateAccount { username, password_hash, request_id, invitation } => {
            Kind::CreateAccount(pb::CreateAccount {
                username: username.clone(),
                password_hash: password_hash.clone(),
                request_id: request_id.map(|id| id.0.to_vec()).unwrap_or_default(),
                invitation: invitation.map(|hash| hash.0.to_vec()).unwrap_or_default(),
            })
        }
        Command::OpenSession { account, token_hash, lifetime_ms, login } => {
            Kind::OpenSession(accounts::encode_open_session(*account, token_hash, *lifetime_ms, login))
        }
        Command::CloseSession { session, all } => {
            Kind::CloseSession(pb::CloseSession { session_id: session.0, all: *all })
        }
        Command::DeleteAccount { session } => Kind::DeleteAccount(pb::DeleteAccount { session_id: session.0 }),
        Command::BeginAccountDeletion { session } => {
            Kind::BeginAccountDeletion(pb::BeginAccountDeletion { session_id: session.0 })
        }
        Command::EraseAccount { account, limit } => {
            Kind::EraseAccount(pb::EraseAccount { account_id: account.0, limit: *limit })
        }
        Command::SendMessage { session, to, client_id, body } => Kind::SendMessage(pb::SendMessage {
            session_id: session.0,
            to: Some(match to {
                Destination::Person(name) => pb::send_message::To::Recipient(name.clone()),
                Destination::Conversation(id) => pb::send_message::To::ConversationId(id.0),
            }),
            client_id: client_id.0.to_vec(),
            body: body.clone(),
        }),
        Command::Receipts(items) => Kind::Receipts(pb::Receipts { items: items.iter().map(encode_receipt).collect() }),
        Command::DeleteMessages { session, messages, for_everyone } => Kind::DeleteMessages(pb::DeleteMessages {
            session_id: session.0,
            message_ids: messages.clone(),
            for_everyone: *for_everyone,
        }),
        Command::Account(command) => accounts::encode(command),
        Command::NoteDigest => Kind::NoteDigest(pb::NoteDigest {}),
        Command::ReportDigest(report) => Kind::ReportDigest(pb::ReportDigest {
            node_id: report.node_id,
            mark_index: report.mark,
            digest: report.digest.0.to_vec(),
        }),
        Command::IssueJoinToken { token_hash, lifetime_ms } => {
            Kind::IssueJoinToken(pb::IssueJoinToken { token_hash: token_hash.0.to_vec(), lifetime_ms: *lifetime_ms })
        }
        Command::RedeemJoinToken { token_hash, admission } => {
            Kind::RedeemJoinToken(pb::RedeemJoinToken { token_hash: token_hash.0.to_vec(), admission: *admission })
        }
    };
    pb::Command { kind: Some(kind) }
}

fn encode_receipt(item: &ReceiptItem) -> pb::Receipt {
    pb::Receipt {
        session_id: item.session.0,
        conversation_id: item.conversation.0,
        up_to_seq: item.up_to.0,
        read: item.read,
    }
}

/// Decodes a command encoded by [`encode_command`].
pub fn decode_command(command: pb::Command) -> Result<Command, DecodeError> {
    use pb::command::Kind;
    Ok(match command.kind.ok_or(DecodeError::UnknownKind("a command"))? {
        Kind::CreateAccount(c) => Command::CreateAccount {
            username: c.username,
            password_hash: c.password_hash,
            request_id: match c.request_id.as_slice() {
                [] => None,
                bytes => Some(ClientId(array("request_id", bytes)?)),
            },
            invitation: accounts::optional_hash("invitation", &c.invitation)?,
        },
        Kind::OpenSession(c) => accounts::decode_open_session(c)?,
        Kind::CloseSession(c) => Command::CloseSession { session: SessionId(c.session_id), all: c.all },
        Kind::DeleteAccount(c) => Command::DeleteAccount { session: SessionId(c.session_id) },
        Kind::BeginAccountDeletion(c) => Command::BeginAccountDeletion { session: SessionId(c.session_id) },
        Kind::EraseAccount(c) => Command::EraseAccount { account: AccountId(c.account_id), limit: c.limit },
        Kind::SendMessage(c) => Command::SendMessage {
            session: SessionId(c.session_id),
            to: match c.to.ok_or(DecodeError::Missing("the destination"))? {
                pb::send_message::To::Recipient(name) => Destination::Person(name),
                pb::send_message::To::ConversationId(id) => Destination::Conversation(ConversationId(id)),
            },
            client_id: ClientId(array("client_id", &c.client_id)?),
            body: c.body,
        },
        Kind::Receipts(c) => Command::Receipts(c.items.iter().map(decode_receipt).collect()),
        Kind::DeleteMessages(c) => Command::DeleteMessages {
            session: SessionId(c.session_id),
            messages: c.message_ids,
            for_everyone: c.for_everyone,
        },
        Kind::NoteDigest(pb::NoteDigest {}) => Command::NoteDigest,
        Kind::ReportDigest(c) => Command::ReportDigest(DigestReport {
            node_id: c.node_id,
            mark: c.mark_index,
            digest: StateDigest(array("digest", &c.digest)?),
        }),
        Kind::IssueJoinToken(c) => Command::IssueJoinToken {
            token_hash: TokenHash(array("token_hash", &c.token_hash)?),
            lifetime_ms: c.lifetime_ms,
        },
        Kind::RedeemJoinToken(c) => Command::RedeemJoinToken {
            token_hash: TokenHash(array("token_hash", &c.token_hash)?),
            admission: c.admission,
        },
        other => Command::Account(accounts::decode(other)?),
    })
}

fn decode_receipt(item: &pb::Receipt) -> ReceiptItem {
    ReceiptItem {
        session: SessionId(item.session_id),
        conversation: ConversationId(item.conversation_id),
        up_to: Seq(item.up_to_seq),
        read: item.read,
    }
}

/// Encodes an outcome for the follower that forwarded the command.
pub fn encode_outcome(outcome: &Outcome) -> pb::Outcome {
    use pb::outcome::Kind;
    let kind = match outcome {
        Outcome::Rejected(reason) => Kind::Rejected(pb::Rejected { reason: encode_rejection(*reason) }),
        Outcome::AccountCreated { account, revision, repeated } => Kind::AccountCreated(pb::AccountCreated {
            account_id: account.0,
            revision: revision.0,
            repeated: *repeated,
        }),
        Outcome::SessionOpened { session, account, expires_at, revision } => Kind::SessionOpened(pb::SessionOpened {
            session_id: session.0,
            account_id: account.0,
            expires_at_ms: expires_at.0,
            revision: revision.0,
        }),
        Outcome::SessionsClosed { count, revision } => {
            Kind::SessionsClosed(pb::SessionsClosed { count: *count, revision: revision.0 })
        }
        Outcome::AccountDeleted { revision, deleted_messages } => {
            Kind::AccountDeleted(pb::AccountDeleted { revision: revision.0, deleted_messages: *deleted_messages })
        }
        Outcome::MessageSent(sent) => Kind::MessageSent(pb::MessageSent {
            conversation_id: sent.conversation.0,
            seq: sent.seq.0,
            revision: sent.revision.0,
            time_ms: sent.time.0,
            repeated: sent.repeated,
        }),
        Outcome::ReceiptsApplied(results) => {
            Kind::ReceiptsApplied(pb::ReceiptsApplied { items: results.iter().map(encode_receipt_result).collect() })
        }
        Outcome::MessagesDeleted { deleted, ignored, revision } => Kind::MessagesDeleted(pb::MessagesDeleted {
            deleted_count: *deleted,
            ignored_count: *ignored,
            revision: revision.0,
        }),
        Outcome::Changed { count, revision } => Kind::Changed(pb::Changed { count: *count, revision: revision.0 }),
        Outcome::InvitationCreated { expires_at, revision } => {
            Kind::InvitationCreated(pb::InvitationCreated { expires_at_ms: expires_at.0, revision: revision.0 })
        }
        Outcome::DigestNoted => Kind::DigestNoted(pb::DigestNoted {}),
        Outcome::JoinTokenIssued { expires_at } => {
            Kind::JoinTokenIssued(pb::JoinTokenIssued { expires_at_ms: expires_at.0 })
        }
        Outcome::JoinTokenRedeemed => Kind::JoinTokenRedeemed(pb::JoinTokenRedeemed {}),
        Outcome::AccountErased { revision, done } => {
            Kind::AccountErased(pb::AccountErased { revision: revision.0, done: *done })
        }
    };
    pb::Outcome { kind: Some(kind) }
}

fn encode_receipt_result(result: &ReceiptResult) -> pb::ReceiptApplied {
    match result {
        Ok((seq, revision)) => pb::ReceiptApplied { rejection: 0, seq: seq.0, revision: revision.0 },
        Err(reason) => pb::ReceiptApplied { rejection: encode_rejection(*reason), seq: 0, revision: 0 },
    }
}

/// Decodes an outcome encoded by [`encode_outcome`].
pub fn decode_outcome(outcome: pb::Outcome) -> Result<Outcome, DecodeError> {
    use pb::outcome::Kind;
    Ok(match outcome.kind.ok_or(DecodeError::UnknownKind("an outcome"))? {
        Kind::Rejected(o) => Outcome::Rejected(decode_rejection(o.reason)?),
        Kind::AccountCreated(o) => Outcome::AccountCreated {
            account: AccountId(o.account_id),
            revision: Revision(o.revision),
            repeated: o.repeated,
        },
        Kind::SessionOpened(o) => Outcome::SessionOpened {
            session: SessionId(o.session_id),
            account: AccountId(o.account_id),
            expires_at: TimeMs(o.expires_at_ms),
            revision: Revision(o.revision),
        },
        Kind::SessionsClosed(o) => Outcome::SessionsClosed { count: o.count, revision: Revision(o.revision) },
        Kind::AccountDeleted(o) => {
            Outcome::AccountDeleted { revision: Revision(o.revision), deleted_messages: o.deleted_messages }
        }
        Kind::MessageSent(o) => Outcome::MessageSent(MessageSent {
            conversation: ConversationId(o.conversation_id),
            seq: Seq(o.seq),
            revision: Revision(o.revision),
            time: TimeMs(o.time_ms),
            repeated: o.repeated,
        }),
        Kind::ReceiptsApplied(o) => {
            Outcome::ReceiptsApplied(o.items.iter().map(decode_receipt_result).collect::<Result<_, _>>()?)
        }
        Kind::MessagesDeleted(o) => Outcome::MessagesDeleted {
            deleted: o.deleted_count,
            ignored: o.ignored_count,
            revision: Revision(o.revision),
        },
        Kind::Changed(o) => Outcome::Changed { count: o.count, revision: Revision(o.revision) },
        Kind::InvitationCreated(o) => {
            Outcome::InvitationCreated { expires_at: TimeMs(o.expires_at_ms), revision: Revision(o.revision) }
        }
        Kind::DigestNoted(pb::DigestNoted {}) => Outcome::DigestNoted,
        Kind::JoinTokenIssued(o) => Outcome::JoinTokenIssued { expires_at: TimeMs(o.expires_at_ms) },
        Kind::JoinTokenRedeemed(pb::JoinTokenRedeemed {}) => Outcome::JoinTokenRedeemed,
        Kind::AccountErased(o) => Outcome::AccountErased { revision: Revision(o.revision), done: o.done },
    })
}

fn decode_receipt_result(item: &pb::ReceiptApplied) -> Result<ReceiptResult, DecodeError> {
    Ok(match item.rejection {
        0 => Ok((Seq(item.seq), Revision(item.revision))),
        reason => Err(decode_rejection(reason)?),
    })
}

/// The number of a rejection, on the wire and in the table `rejected_send`.
pub(super) fn encode_rejection(reason: Rejection) -> i32 {
    let reason = match reason {
        Rejection::UsernameTaken => pb::Rejection::UsernameTaken,
        Rejection::SessionUnknown => pb::Rejection::SessionUnknown,
        Rejection::SessionExpired => pb::Rejection::SessionExpired,
        Rejection::AccountUnknown => pb::Rejection::AccountUnknown,
        Rejection::RecipientUnknown => pb::Rejection::RecipientUnknown,
        Rejection::RecipientDeleted => pb::Rejection::RecipientDeleted,
        Rejection::ConversationUnknown => pb::Rejection::ConversationUnknown,
        Rejection::ClientIdReused => pb::Rejection::ClientIdReused,
        Rejection::JoinTokenInvalid => pb::Rejection::JoinTokenInvalid,
        Rejection::JoinTokensFull => pb::Rejection::JoinTokensFull,
        Rejection::QuotaExceeded => pb::Rejection::QuotaExceeded,
        Rejection::RegistrationClosed => pb::Rejection::RegistrationClosed,
        Rejection::InvitationNeeded => pb::Rejection::InvitationNeeded,
        Rejection::InvitationInvalid => pb::Rejection::InvitationInvalid,
        Rejection::TooManyInvitations => pb::Rejection::TooManyInvitations,
        Rejection::AccountDisabled => pb::Rejection::AccountDisabled,
        Rejection::PasswordOutdated => pb::Rejection::PasswordOutdated,
        Rejection::TargetUnknown => pb::Rejection::TargetUnknown,
        Rejection::Malformed => pb::Rejection::Malformed,
    };
    i32::from(reason)
}

/// Decodes a rejection encoded by [`encode_rejection`].
pub(super) fn decode_rejection(reason: i32) -> Result<Rejection, DecodeError> {
    match pb::Rejection::try_from(reason) {
        Ok(pb::Rejection::UsernameTaken) => Ok(Rejection::UsernameTaken),
        Ok(pb::Rejection::SessionUnknown) => Ok(Rejection::SessionUnknown),
        Ok(pb::Rejection::SessionExpired) => Ok(Rejection::SessionExpired),
        Ok(pb::Rejection::AccountUnknown) => Ok(Rejection::AccountUnknown),
        Ok(pb::Rejection::RecipientUnknown) => Ok(Rejection::RecipientUnknown),
        Ok(pb::Rejection::RecipientDeleted) => Ok(Rejection::RecipientDeleted),
        Ok(pb::Rejection::ConversationUnknown) => Ok(Rejection::ConversationUnknown),
        Ok(pb::Rejection::ClientIdReused) => Ok(Rejection::ClientIdReused),
        Ok(pb::Rejection::JoinTokenInvalid) => Ok(Rejection::JoinTokenInvalid),
        Ok(pb::Rejection::JoinTokensFull) => Ok(Rejection::JoinTokensFull),
        Ok(pb::Rejection::QuotaExceeded) => Ok(Rejection::QuotaExceeded),
        Ok(pb::Rejection::RegistrationClosed) => Ok(Rejection::RegistrationClosed),
        Ok(pb::Rejection::InvitationNeeded) => Ok(Rejection::InvitationNeeded),
        Ok(pb::Rejection::InvitationInvalid) => Ok(Rejection::InvitationInvalid),
        Ok(pb::Rejection::TooManyInvitations) => Ok(Rejection::TooManyInvitations),
        Ok(pb::Rejection::AccountDisabled) => Ok(Rejection::AccountDisabled),
        Ok(pb::Rejection::PasswordOutdated) => Ok(Rejection::PasswordOutdated),
        Ok(pb::Rejection::TargetUnknown) => Ok(Rejection::TargetUnknown),
        Ok(pb::Rejection::Malformed) => Ok(Rejection::Malformed),
        Ok(pb::Rejection::Unspecified) | Err(_) => Err(DecodeError::UnknownReason(reason)),
    }
}

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Length { field, found: bytes.len(), expected: N })
}

#[cfg(test)]
mod tests;
