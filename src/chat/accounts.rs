//! Commands about accounts, their sessions, and who may register.

use super::{Revision, SessionId, TimeMs, TokenHash};

/// What a login adds to the opening of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    /// Milliseconds without use after which the session ends; 0: only its lifetime ends it.
    pub idle_ms: u64,
    /// The revision that set the password which was verified. Another one is a rejection. `None`: not checked.
    pub password_revision: Option<Revision>,
    /// Hash of the token by which the account knows the caller's device from now on.
    pub device: Option<TokenHash>,
    /// PHC string of the same password with stronger parameters.
    pub rehash: Option<String>,
}

/// Who may create an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Registration {
    /// Everybody.
    #[default]
    Open,
    /// Holders of an invitation.
    Invitation,
    /// Nobody.
    Closed,
}

/// What others see of an account, and what is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Privacy {
    /// Read receipts are exchanged with others: both sides of a conversation have to allow it.
    pub read_receipts: bool,
    /// The use of sessions is noted.
    pub session_activity: bool,
}

impl Default for Privacy {
    fn default() -> Self {
        Self { read_receipts: true, session_activity: true }
    }
}

/// A change of [`Privacy`]. `None`: the setting stays as it is.
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

/// A change of accounts, sessions, invitations or settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountCommand {
    /// Replace the password of the caller's account, and end its other sessions.
    ChangePassword {
        /// The caller's session, which stays.
        session: SessionId,
        /// The revision that set the password which was verified.
        password_revision: Revision,
        /// PHC string of the new password.
        password_hash: String,
    },
    /// Replace the password of an account, and end its sessions. For operators.
    ResetPassword {
        /// Whose.
        username: String,
        /// PHC string of the new password.
        password_hash: String,
    },
    /// Forbid or allow an account to log in; to forbid it ends its sessions. For operators.
    SetDisabled {
        /// Which account.
        username: String,
        /// Forbid it.
        disabled: bool,
    },
    /// End all sessions of an account. For operators.
    EndSessions {
        /// Whose.
        username: String,
    },
    /// Delete an account like its owner can. For operators.
    Purge {
        /// Which account.
        username: String,
    },
    /// End another session of the caller's account, and forget its device.
    RevokeSession {
        /// The caller's session.
        session: SessionId,
        /// The session to end; may be the caller's.
        target: SessionId,
    },
    /// Note that sessions were used. Unknown ones are ignored.
    TouchSessions(Vec<SessionId>),
    /// Set who may create an account. For operators.
    SetRegistration(Registration),
    /// Make an invitation. For operators.
    CreateInvitation {
        /// Hash of its code.
        code_hash: TokenHash,
        /// Accounts that it allows.
        uses: u32,
        /// Milliseconds from the command's time until it expires.
        lifetime_ms: u64,
    },
    /// Withdraw an invitation. For operators.
    RevokeInvitation {
        /// The revision that made it.
        invitation: Revision,
    },
    /// Remove the rows of sessions and invitations that expired.
    RemoveExpired {
        /// Rows that expired before this moment, on the replicated clock.
        before: TimeMs,
        /// Most rows of each kind.
        limit: u32,
    },
    /// Change what others see of the caller's account, and what is kept of it.
    SetPrivacy {
        /// The caller's session.
        session: SessionId,
        /// The settings that change.
        change: PrivacyChange,
    },
}
