//! Commands about accounts, their sessions, and registration.

use super::{Revision, SessionId, TimeMs, TokenHash};

/// Details of a login, when a session is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    /// Idle timeout of the session in milliseconds; 0 means that only its lifetime ends it.
    pub idle_ms: u64,
    /// The revision that set the verified password. The command is rejected if the password was set by another
    /// revision. `None` skips the check.
    pub password_revision: Option<Revision>,
    /// Hash of the token that identifies the caller's device to the account from now on.
    pub device: Option<TokenHash>,
    /// PHC string of the same password, hashed with stronger parameters.
    pub rehash: Option<String>,
}

/// The setting that controls who may create an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Registration {
    /// Anyone may.
    #[default]
    Open,
    /// Only holders of an invitation may.
    Invitation,
    /// No one may.
    Closed,
}

/// Privacy settings of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Privacy {
    /// Whether read receipts are exchanged with others. Both sides of a conversation have to allow it.
    pub read_receipts: bool,
    /// Whether session activity is recorded.
    pub session_activity: bool,
}

impl Default for Privacy {
    fn default() -> Self {
        Self { read_receipts: true, session_activity: true }
    }
}

/// A change of [`Privacy`]. `None` keeps a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PrivacyChange {
    /// The new value of [`Privacy::read_receipts`].
    pub read_receipts: Option<bool>,
    /// The new value of [`Privacy::session_activity`].
    pub session_activity: Option<bool>,
}

impl PrivacyChange {
    /// The settings after the change.
    #[must_use]
    pub fn applied_to(self, before: Privacy) -> Privacy {
        Privacy {
            read_receipts: self.read_receipts.unwrap_or(before.read_receipts),
            session_activity: self.session_activity.unwrap_or(before.session_activity),
        }
    }
}

/// A change to accounts, sessions, invitations or settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountCommand {
    /// Replaces the password of the caller's account, and ends its other sessions.
    ChangePassword {
        /// The caller's session, which is kept.
        session: SessionId,
        /// The revision that set the verified password.
        password_revision: Revision,
        /// PHC string of the new password.
        password_hash: String,
    },
    /// Replaces the password of an account, and ends its sessions. For operators.
    ResetPassword {
        /// Name of the account.
        username: String,
        /// PHC string of the new password.
        password_hash: String,
    },
    /// Forbids or allows logins of an account. Forbidding them ends its sessions. For operators.
    SetDisabled {
        /// Name of the account.
        username: String,
        /// Whether logins are forbidden.
        disabled: bool,
    },
    /// Ends all sessions of an account. For operators.
    EndSessions {
        /// Name of the account.
        username: String,
    },
    /// Deletes an account as its owner could. For operators.
    Purge {
        /// Name of the account.
        username: String,
    },
    /// Ends a session of the caller's account, and forgets its device.
    RevokeSession {
        /// The caller's session.
        session: SessionId,
        /// The session to end. It may be the caller's.
        target: SessionId,
    },
    /// Records that sessions were used. Unknown ones are ignored.
    TouchSessions(Vec<SessionId>),
    /// Sets who may create an account. For operators.
    SetRegistration(Registration),
    /// Creates an invitation. For operators.
    CreateInvitation {
        /// Hash of its code.
        code_hash: TokenHash,
        /// Number of accounts that it permits.
        uses: u32,
        /// Milliseconds from the command's time until it expires.
        lifetime_ms: u64,
    },
    /// Withdraws an invitation. For operators.
    RevokeInvitation {
        /// The revision that created it.
        invitation: Revision,
    },
    /// Removes expired rows of sessions and invitations.
    RemoveExpired {
        /// Rows that expired by this time, on the replicated clock, are removed.
        before: TimeMs,
        /// Maximum number of rows of each kind.
        limit: u32,
    },
    /// Changes the privacy settings of the caller's account.
    SetPrivacy {
        /// The caller's session.
        session: SessionId,
        /// The settings to change.
        change: PrivacyChange,
    },
}
