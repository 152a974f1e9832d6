//! What a command came to. Every command has exactly one outcome; a rejection is a normal one.

use super::{AccountId, ConversationId, Revision, Seq, SessionId, TimeMs};

/// The result of applying a [`super::Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was changed.
    Rejected(Rejection),
    /// An account was made, now or by an earlier command with the same request id.
    AccountCreated {
        /// The new account.
        account: AccountId,
        /// The revision that made it.
        revision: Revision,
        /// An earlier command made it.
        repeated: bool,
    },
    /// A session was opened.
    SessionOpened {
        /// The new session.
        session: SessionId,
        /// Its account.
        account: AccountId,
        /// When it ends.
        expires_at: TimeMs,
        /// The revision that opened it.
        revision: Revision,
    },
    /// Sessions were closed.
    SessionsClosed {
        /// How many.
        count: u32,
        /// The revision that closed them.
        revision: Revision,
    },
    /// An account was deleted.
    AccountDeleted {
        /// The revision from which on its messages are tombstones.
        revision: Revision,
        /// Messages that became tombstones.
        deleted_messages: u64,
    },
    /// A part of what was left of a deleted account was worked through.
    AccountErased {
        /// The revision afterwards.
        revision: Revision,
        /// Nothing is left.
        done: bool,
    },
    /// A message was stored, now or by an earlier command with the same client id.
    MessageSent(MessageSent),
    /// One result for each receipt, in order.
    ReceiptsApplied(Vec<ReceiptResult>),
    /// Messages were deleted.
    MessagesDeleted {
        /// How many changed.
        deleted: u32,
        /// How many were unknown, foreign or deleted already.
        ignored: u32,
        /// The revision afterwards.
        revision: Revision,
    },
    /// Accounts, sessions, invitations or settings were changed.
    Changed {
        /// Sessions that were closed, or rows that were removed.
        count: u64,
        /// The revision of the state afterwards.
        revision: Revision,
    },
    /// An invitation was made, now or by an earlier command with the same code.
    InvitationCreated {
        /// When it expires.
        expires_at: TimeMs,
        /// The revision that made it: also its id.
        revision: Revision,
    },
    /// A digest was noted or reported. The state is as before.
    DigestNoted,
    /// A join token exists, now or since an earlier command with the same hash.
    JoinTokenIssued {
        /// When it expires.
        expires_at: TimeMs,
    },
    /// The join token belongs to the admission number of the command.
    JoinTokenRedeemed,
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSent {
    /// Its conversation.
    pub conversation: ConversationId,
    /// Its place there.
    pub seq: Seq,
    /// The revision that stored it: also the message's id.
    pub revision: Revision,
    /// When.
    pub time: TimeMs,
    /// It had been stored before.
    pub repeated: bool,
}

/// What a single receipt came to: the watermark afterwards and the revision of the state.
pub type ReceiptResult = Result<(Seq, Revision), Rejection>;

/// Why a command changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The name belongs to an account, or did once.
    UsernameTaken,
    /// The session was closed, or never was.
    SessionUnknown,
    /// The session's time is over.
    SessionExpired,
    /// The account does not exist (any more).
    AccountUnknown,
    /// There is no account of the recipient's name.
    RecipientUnknown,
    /// The recipient's account was deleted.
    RecipientDeleted,
    /// The conversation does not exist, or the caller is not a member.
    ConversationUnknown,
    /// The client id belongs to a message with another text or recipient.
    ClientIdReused,
    /// The join token does not exist, has expired, or was used by another node.
    JoinTokenInvalid,
    /// As many join tokens exist as there may be.
    JoinTokensFull,
    /// The sender has stored as much as an account may.
    QuotaExceeded,
    /// Nobody may create an account.
    RegistrationClosed,
    /// Only holders of an invitation may create an account.
    InvitationNeeded,
    /// The invitation is unknown, expired or used up.
    InvitationInvalid,
    /// There are as many invitations as there may be.
    TooManyInvitations,
    /// An operator has disabled the account.
    AccountDisabled,
    /// The password was changed after it was verified.
    PasswordOutdated,
    /// The account has no such session.
    TargetUnknown,
    /// The bytes in the log are no command in any version.
    Malformed,
}
