//! Outcomes of commands. Every command has exactly one outcome. A rejection is a normal outcome.

use super::{AccountId, ConversationId, Revision, Seq, SessionId, TimeMs};

/// The result of applying a [`super::Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command was rejected, without a visible change.
    Rejected(Rejection),
    /// An account was created, now or by an earlier command with the same request id.
    AccountCreated {
        /// The new account.
        account: AccountId,
        /// The revision that created it.
        revision: Revision,
        /// Whether an earlier command created it.
        repeated: bool,
    },
    /// A session was opened.
    SessionOpened {
        /// The new session.
        session: SessionId,
        /// Its account.
        account: AccountId,
        /// Time at which it ends.
        expires_at: TimeMs,
        /// The revision that opened it.
        revision: Revision,
    },
    /// Sessions were closed.
    SessionsClosed {
        /// Number of sessions.
        count: u32,
        /// The revision that closed them.
        revision: Revision,
    },
    /// An account was deleted.
    AccountDeleted {
        /// The revision from which on its messages are tombstones.
        revision: Revision,
        /// Number of messages that became tombstones.
        deleted_messages: u64,
    },
    /// A part of the remaining work of an account deletion was done.
    AccountErased {
        /// The revision afterwards.
        revision: Revision,
        /// Whether no work is left.
        done: bool,
    },
    /// A message was stored, now or by an earlier command with the same client id.
    MessageSent(MessageSent),
    /// One result for each receipt, in order.
    ReceiptsApplied(Vec<ReceiptResult>),
    /// Messages were deleted.
    MessagesDeleted {
        /// Number of messages changed.
        deleted: u32,
        /// Number of messages that were unknown, foreign or deleted already.
        ignored: u32,
        /// The revision afterwards.
        revision: Revision,
    },
    /// Accounts, sessions, invitations or settings were changed.
    Changed {
        /// Number of sessions closed or recorded as used, of rows removed, or of settings changed.
        count: u64,
        /// The revision of the state afterwards.
        revision: Revision,
    },
    /// An invitation was created, now or by an earlier command with the same code.
    InvitationCreated {
        /// Time at which it expires.
        expires_at: TimeMs,
        /// The revision that created it, which is also its id.
        revision: Revision,
    },
    /// A digest was noted or reported. The state is unchanged.
    DigestNoted,
    /// A join token exists, now or since an earlier command with the same hash.
    JoinTokenIssued {
        /// Time at which it expires.
        expires_at: TimeMs,
    },
    /// The join token belongs to the admission number of the command.
    JoinTokenRedeemed,
}

/// The position and time of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSent {
    /// Its conversation.
    pub conversation: ConversationId,
    /// Its position in the conversation.
    pub seq: Seq,
    /// The revision that stored it, which is also the message's id.
    pub revision: Revision,
    /// Time at which it was stored, on the replicated clock.
    pub time: TimeMs,
    /// Whether it had been stored before.
    pub repeated: bool,
}

/// The result of a single receipt: the watermark afterwards and the revision of the state.
pub type ReceiptResult = Result<(Seq, Revision), Rejection>;

/// The reason why a command changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The name belongs to an account, possibly a deleted one.
    UsernameTaken,
    /// The session was closed, or never existed.
    SessionUnknown,
    /// The session has expired.
    SessionExpired,
    /// The account does not exist, or was deleted.
    AccountUnknown,
    /// There is no account with the recipient's name.
    RecipientUnknown,
    /// The recipient's account was deleted.
    RecipientDeleted,
    /// The conversation does not exist, or the caller is not a member.
    ConversationUnknown,
    /// The client id, request id or token was used before, in a different command.
    ClientIdReused,
    /// The join token does not exist, has expired, or was used by another node.
    JoinTokenInvalid,
    /// The maximum number of join tokens exists.
    JoinTokensFull,
    /// The sender's storage quota is exceeded.
    QuotaExceeded,
    /// Registration is closed.
    RegistrationClosed,
    /// Only holders of an invitation may create an account.
    InvitationNeeded,
    /// The invitation is unknown, expired or used up.
    InvitationInvalid,
    /// The maximum number of invitations exists.
    TooManyInvitations,
    /// An operator has disabled the account.
    AccountDisabled,
    /// The password was changed after it was verified.
    PasswordOutdated,
    /// The account has no such session.
    TargetUnknown,
    /// The bytes in the log are not a command in any version.
    Malformed,
}
