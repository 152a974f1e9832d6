//! Validation of commands before they enter a log, and classification of the bytes of entries.
//!
//! There are two checks, at two places and for two reasons:
//!
//! - [`check`], before a command is proposed. The command has to be of a kind that this version knows, be decodable,
//!   and respect the limits of [`chat::limits`]. Limits may change between versions, so they apply only to
//!   commands that are not in a log yet.
//! - `batch` and `command`, when an entry is applied. Bytes that are not a command in any version are *malformed*, and
//!   every node rejects them in the same way. A command that a later version may have written is an error, and the node
//!   stops. Rejecting it would make the replicas diverge.
//!
//! Invariant: the verdict on an entry depends only on its bytes and on the kinds that this version knows. A kind of a
//! later version is recognized by its shape: a command is exactly one length-delimited field, whose number is the kind,
//! at most [`KIND_MAX`]. prost drops such a field if it does not know the number. All other bytes are not a command in
//! any version.
//!
//! Does not cover: fields that a later version adds to a kind. The protocol forbids that, because a different meaning
//! requires a different kind.

use bytes::Bytes;
use prost::Message as _;
use thiserror::Error;

use super::codec::{self, DecodeError};
use super::error::StorageError;
use chat::Command;
use chat::limits::{self, Invalid};
use proto::log::v1 as pb;

/// Largest number that a kind of command may ever have.
pub const KIND_MAX: usize = 1023;

/// Why a command must not be proposed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unfit {
    /// This version cannot decode it.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// A value breaks a limit.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Checks a command before it is proposed. It neither allocates nor scans bodies: only the length of long values is
/// checked.
///
/// # Errors
/// The command must not enter a log.
pub fn check(command: &pb::Command) -> Result<(), Unfit> {
    use pb::command::Kind;
    match command.kind.as_ref().ok_or(DecodeError::UnknownKind("a command"))? {
        Kind::CreateAccount(c) => {
            limits::check_username("username", &c.username)?;
            limits::check_password_hash("password_hash", &c.password_hash)?;
            length_if_given("request_id", &c.request_id, 16)?;
            length_if_given("invitation", &c.invitation, 32)?;
        }
        Kind::OpenSession(c) => {
            length("token_hash", &c.token_hash, 32)?;
            limits::check_lifetime("lifetime_ms", c.lifetime_ms)?;
            limits::check_lifetime("idle_ms", c.idle_ms)?;
            length_if_given("device", &c.device, 32)?;
            if !c.rehash.is_empty() {
                limits::check_password_hash("rehash", &c.rehash)?;
            }
        }
        Kind::SendMessage(c) => {
            if let pb::send_message::To::Recipient(name) =
                c.to.as_ref().ok_or(DecodeError::Missing("the destination"))?
            {
                limits::check_username("recipient", name)?;
            }
            length("client_id", &c.client_id, 16)?;
            limits::check_body("body", &c.body)?;
        }
        // A node proposes one without items to wait for its own log.
        Kind::Receipts(c) => limits::check_count_at_most("items", c.items.len(), limits::RECEIPTS_MAX)?,
        Kind::DeleteMessages(c) => limits::check_count("message_ids", c.message_ids.len(), limits::DELETE_IDS_MAX)?,
        Kind::ReportDigest(c) => length("digest", &c.digest, 32)?,
        Kind::ChangePassword(c) => limits::check_password_hash("password_hash", &c.password_hash)?,
        Kind::ResetPassword(c) => {
            limits::check_username("username", &c.username)?;
            limits::check_password_hash("password_hash", &c.password_hash)?;
        }
        Kind::SetDisabled(pb::SetDisabled { username, .. })
        | Kind::EndSessions(pb::EndSessions { username })
        | Kind::PurgeAccount(pb::PurgeAccount { username }) => limits::check_username("username", username)?,
        Kind::TouchSessions(c) => limits::check_count_at_most("session_ids", c.session_ids.len(), limits::TOUCHES_MAX)?,
        Kind::CreateInvitation(c) => {
            length("code_hash", &c.code_hash, 32)?;
            limits::check_lifetime("lifetime_ms", c.lifetime_ms)?;
        }
        Kind::IssueJoinToken(c) => {
            length("token_hash", &c.token_hash, 32)?;
            limits::check_lifetime("lifetime_ms", c.lifetime_ms)?;
        }
        Kind::RedeemJoinToken(c) => length("token_hash", &c.token_hash, 32)?,
        Kind::RemoveExpired(c) => limits::check_count_at_most("limit", c.limit as usize, limits::REMOVED_MAX as usize)?,
        Kind::CloseSession(_)
        | Kind::DeleteAccount(_)
        | Kind::BeginAccountDeletion(_)
        | Kind::EraseAccount(_)
        | Kind::RevokeSession(_)
        | Kind::SetRegistration(_)
        | Kind::RevokeInvitation(_)
        | Kind::SetPrivacy(_)
        | Kind::NoteDigest(_) => {}
    }
    Ok(())
}

fn length_if_given(field: &'static str, bytes: &[u8], expected: usize) -> Result<(), DecodeError> {
    if bytes.is_empty() { Ok(()) } else { length(field, bytes, expected) }
}

fn length(field: &'static str, bytes: &[u8], expected: usize) -> Result<(), DecodeError> {
    match bytes.len() {
        found if found == expected => Ok(()),
        found => Err(DecodeError::Length { field, found, expected }),
    }
}

/// Bytes in a log that are not a command in any version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// A `log.v1.Batch` whose commands stay encoded, so that the bytes of each can be examined.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawBatch {
    #[prost(message, repeated, tag = "1")]
    pub proposals: Vec<RawProposal>,
    #[prost(uint64, tag = "20")]
    pub quota_messages: u64,
    #[prost(uint64, tag = "21")]
    pub quota_bytes: u64,
}

/// A `log.v1.Proposal` whose command stays encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawProposal {
    #[prost(uint64, tag = "1")]
    pub time_ms: u64,
    #[prost(string, tag = "2")]
    pub traceparent: String,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub command: Option<Bytes>,
}

/// Decodes the batch of an entry. It has at least one proposal.
pub(super) fn batch(batch: Bytes) -> Result<RawBatch, Malformed> {
    let batch = RawBatch::decode(batch).map_err(|error| Malformed(format!("the batch cannot be decoded: {error}")))?;
    if batch.proposals.is_empty() {
        return Err(Malformed("the batch has no proposals".into()));
    }
    Ok(batch)
}

/// Timestamp of the first proposal in an entry's batch, in milliseconds since the epoch.
pub fn first_time(batch: Bytes) -> Option<u64> {
    self::batch(batch).ok()?.proposals.first().map(|proposal| proposal.time_ms)
}

/// Decodes the command of a proposal, or returns why it is not valid in any version.
///
/// # Errors
/// [`StorageError::UnknownCommand`]: a later version may have written it.
pub(super) fn command(bytes: Option<Bytes>) -> Result<Result<Command, Malformed>, StorageError> {
    let Some(bytes) = bytes else { return Ok(Err(Malformed("the proposal has no command".into()))) };
    let Some(kind) = kind(&bytes) else { return Ok(Err(Malformed("the command is not a single field".into()))) };
    let decoded = match pb::Command::decode(bytes) {
        Ok(decoded) => decoded,
        Err(error) => return Ok(Err(Malformed(format!("the command cannot be decoded: {error}")))),
    };
    match codec::decode_command(decoded) {
        Ok(command) => Ok(Ok(command)),
        Err(DecodeError::UnknownKind(_)) if (1..=KIND_MAX).contains(&kind) => Err(StorageError::UnknownCommand(
            format!("its kind is {kind}, which this version does not know: run a newer version"),
        )),
        Err(error) => Ok(Err(Malformed(error.to_string()))),
    }
}

/// The field number, if the bytes are exactly one length-delimited field.
fn kind(mut bytes: &[u8]) -> Option<usize> {
    const LENGTH_DELIMITED: usize = 2;
    let key = prost::decode_length_delimiter(&mut bytes).ok()?;
    let length = prost::decode_length_delimiter(&mut bytes).ok()?;
    (key & 7 == LENGTH_DELIMITED && length == bytes.len()).then_some(key >> 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat::{ClientId, ConversationId, Destination, Login, SessionId, TokenHash};

    fn send(body: usize) -> pb::Command {
        codec::encode_command(&Command::SendMessage {
            session: SessionId(1),
            to: Destination::Conversation(ConversationId(1)),
            client_id: ClientId([1; 16]),
            body: "b".repeat(body),
        })
    }

    fn verdict(bytes: &[u8]) -> &'static str {
        match command(Some(Bytes::copy_from_slice(bytes))) {
            Ok(Ok(_)) => "known",
            Ok(Err(_)) => "malformed",
            Err(_) => "later",
        }
    }

    #[test]
    fn limits_decide_before_a_command_is_proposed() {
        assert_eq!(check(&send(limits::BODY_BYTES_MAX)), Ok(()));
        assert!(matches!(check(&send(limits::BODY_BYTES_MAX + 1)), Err(Unfit::Invalid(Invalid { field: "body", .. }))));
        assert!(check(&pb::Command::default()).is_err());
        let account = |username: &str, hash: &str| {
            let (username, password_hash) = (username.to_owned(), hash.to_owned());
            check(&codec::encode_command(&Command::CreateAccount {
                username,
                password_hash,
                request_id: None,
                invitation: None,
            }))
        };
        assert_eq!(account("bob", "$argon2id$v=19$m=1,t=1,p=1$AA$AA"), Ok(()));
        assert!(account("Bob", "hash").is_err() && account("bob", "").is_err() && account("bob", "a\0b").is_err());
        let open = |lifetime_ms| {
            let (account, token_hash) = (chat::AccountId(1), TokenHash([0; 32]));
            check(&codec::encode_command(&Command::OpenSession {
                account,
                token_hash,
                lifetime_ms,
                login: Login::default(),
            }))
        };
        assert!(open(limits::SESSION_LIFETIME_MS_MAX).is_ok() && open(limits::SESSION_LIFETIME_MS_MAX + 1).is_err());
        let receipts = |count| {
            let items = vec![pb::Receipt::default(); count];
            check(&pb::Command { kind: Some(pb::command::Kind::Receipts(pb::Receipts { items })) })
        };
        assert!(receipts(0).is_ok() && receipts(limits::RECEIPTS_MAX + 1).is_err());
    }

    #[test]
    fn limits_do_not_decide_about_what_is_in_a_log() {
        assert_eq!(verdict(&send(limits::BODY_BYTES_MAX + 1).encode_to_vec()), "known");
    }

    #[test]
    fn only_the_shape_of_a_command_can_be_a_later_kind() {
        // Field 99 and field 1023, an empty message and one with content.
        assert_eq!(verdict(&[0x9a, 0x06, 0x00]), "later");
        assert_eq!(verdict(&[0xfa, 0x3f, 0x02, 0x08, 0x01]), "later");
        let malformed: [&[u8]; 9] = [
            b"",
            b"\xff",
            b"garbage",
            // Field 1024; field 99 with another wire type; field 0.
            &[0x82, 0x40, 0x00],
            &[0x98, 0x06, 0x00],
            &[0x02, 0x00],
            // Bytes after the field; a length beyond the end.
            &[0x9a, 0x06, 0x00, 0x00],
            &[0x9a, 0x06, 0x05],
            // A known kind whose field has the wrong length: `OpenSession` without a token.
            &[0x12, 0x00],
        ];
        for bytes in malformed {
            assert_eq!(verdict(bytes), "malformed", "{bytes:x?}");
        }
        assert_eq!(command(None).unwrap().unwrap_err(), Malformed("the proposal has no command".into()));
        assert!(batch(Bytes::new()).is_err() && batch(Bytes::from_static(b"garbage")).is_err());
    }
}
