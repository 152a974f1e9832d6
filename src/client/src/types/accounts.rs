//! Accounts, their sessions and settings.

use proto::chat::v1 as pb;

use super::{ReadHeader, each, from_wire};

/// A new account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountCreated {
    /// Id of the account. Never reused.
    pub account_id: u64,
    /// Revision that created it.
    pub revision: u64,
    /// Whether an earlier attempt of the same call had created it.
    pub repeated: bool,
}

from_wire!(AccountCreated, pb::CreateAccountResponse { account_id, revision, repeated });

/// A new session.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The session's token, which is valid on every node. Keep it secret.
    pub token: String,
    /// When the session ends unless it is used.
    pub expires_at_ms: u64,
    /// Id of the account.
    pub account_id: u64,
    /// Revision that opened the session.
    pub revision: u64,
    /// Number of messages that the account has yet to read.
    pub unread_count: u64,
    /// Marks this device as one that has logged in before: see [`Client::keep_device`](crate::Client::keep_device).
    /// Keep it secret.
    pub device_token: String,
}

from_wire!(Login, pb::LoginResponse { token, expires_at_ms, account_id, revision, unread_count, device_token });

/// Without the secrets.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { expires_at_ms, account_id, revision, unread_count, .. } = self;
        f.debug_struct("Login")
            .field("expires_at_ms", expires_at_ms)
            .field("account_id", account_id)
            .field("revision", revision)
            .field("unread_count", unread_count)
            .finish_non_exhaustive()
    }
}

/// Who may create accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// Whether accounts can be created at all.
    pub open: bool,
    /// Whether that needs an invitation.
    pub invitation_needed: bool,
}

from_wire!(Registration, pb::GetRegistrationResponse { open, invitation_needed });

/// The password was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordChanged {
    /// Number of other sessions that were closed.
    pub closed_sessions: u64,
    /// Revision of the change.
    pub revision: u64,
}

from_wire!(PasswordChanged, pb::ChangePasswordResponse { closed_sessions, revision });

/// The account was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountDeleted {
    /// Revision of the change.
    pub revision: u64,
    /// Number of its messages whose bodies are erased.
    pub deleted_messages: u64,
}

from_wire!(AccountDeleted, pb::DeleteAccountResponse { revision, deleted_messages });

/// An open session of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Id of the session.
    pub session_id: u64,
    /// When it was opened.
    pub created_ms: u64,
    /// When it was last used, to the hour. `None`: the account does not record it.
    pub used_ms: Option<u64>,
    /// When it ends unless it is used again.
    pub expires_at_ms: u64,
    /// Whether it is the session of this client.
    pub current: bool,
}

impl From<pb::Session> for Session {
    fn from(wire: pb::Session) -> Self {
        let pb::Session { session_id, created_ms, used_ms, expires_at_ms, current, .. } = wire;
        Self { session_id, created_ms, used_ms: Some(used_ms).filter(|ms| *ms > 0), expires_at_ms, current }
    }
}

/// What others see of the account, and what the service stores about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privacy {
    /// Whether read receipts are exchanged with others.
    pub read_receipts: bool,
    /// Whether the use of sessions is recorded.
    pub session_activity: bool,
}

from_wire!(Privacy, pb::GetPrivacyResponse { read_receipts, session_activity });

/// A change of [`Privacy`]. What is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrivacyChange {
    /// Whether to exchange read receipts with others. Without, the account does not see theirs either.
    pub read_receipts: Option<bool>,
    /// Whether to record the use of sessions.
    pub session_activity: Option<bool>,
}

impl From<PrivacyChange> for pb::SetPrivacyRequest {
    fn from(change: PrivacyChange) -> Self {
        let PrivacyChange { read_receipts, session_activity } = change;
        Self { read_receipts, session_activity }
    }
}

/// An account as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Id of the account. Never reused.
    pub account_id: u64,
    /// Its name.
    pub username: String,
    /// Whether it was deleted. Only its name remains then.
    pub deleted: bool,
}

from_wire!(Account, pb::Account { account_id, username, deleted });

/// A page of accounts, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountPage {
    /// The accounts of this page.
    pub accounts: Vec<Account>,
    /// Token for the next page. `None`: this is the last one.
    pub next_page_token: Option<String>,
    /// Number of matching accounts on all pages.
    pub total_count: u64,
    /// Source and age of the data.
    pub header: ReadHeader,
}

impl From<pb::ListAccountsResponse> for AccountPage {
    fn from(wire: pb::ListAccountsResponse) -> Self {
        Self {
            accounts: each(wire.accounts),
            next_page_token: Some(wire.next_page_token).filter(|token| !token.is_empty()),
            total_count: wire.total_count,
            header: wire.header.into(),
        }
    }
}
