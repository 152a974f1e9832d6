//! Queries on devices, open sessions, and registration.

use rusqlite::{OptionalExtension, params};

use super::Query;
use crate::apply::{registration, settings};
use crate::error::{Context, StorageError};
use chat::{AccountId, ClientId, Privacy, Registration, Revision, SessionId, TimeMs, TokenHash};

/// An open session, as visible to its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    /// The session.
    pub id: SessionId,
    /// Time at which it was opened.
    pub created_at: TimeMs,
    /// Time of its last recorded use; `None` if the account does not record session activity.
    pub used_at: Option<TimeMs>,
    /// Time at which it ends unless it is used again.
    pub ends_at: TimeMs,
}

/// An invitation, without its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvitationRow {
    /// The invitation's id: the revision that created it.
    pub id: Revision,
    /// Number of accounts that it permits.
    pub uses: u32,
    /// Number of accounts created with it.
    pub used: u32,
    /// Time of its creation.
    pub created_at: TimeMs,
    /// Time at which it expires.
    pub expires_at: TimeMs,
}

impl Query<'_> {
    /// Whether the account has logged in from this device before.
    pub fn is_known_device(&self, account: AccountId, device: &TokenHash) -> Result<bool, StorageError> {
        let sql = "SELECT 1 FROM device WHERE account_id = ?1 AND token_hash = ?2";
        Ok(self.maybe(sql, params![account, device], |_| Ok(())).context("look for a device")?.is_some())
    }

    /// The privacy settings of an account.
    pub fn privacy(&self, account: AccountId) -> Result<Privacy, StorageError> {
        settings::privacy(self.conn, account)
    }

    /// Filters sessions to those of accounts that record session activity.
    pub fn with_activity(&self, sessions: Vec<SessionId>) -> Result<Vec<SessionId>, StorageError> {
        let sql = "SELECT s.id FROM session s WHERE s.id = ?1 AND NOT EXISTS (SELECT 1 FROM privacy p \
                   WHERE p.account_id = s.account_id AND p.session_activity = 0)";
        let noted = sessions.into_iter().map(|session| self.maybe(sql, [session], |row| row.get(0)));
        let noted = noted.filter_map(Result::transpose).collect::<rusqlite::Result<_>>();
        noted.context("look whose use is noted")
    }

    /// The sessions of an account that have not ended, most recently used first.
    pub fn sessions_of(&self, account: AccountId) -> Result<Vec<OpenSession>, StorageError> {
        let sql = "SELECT id, created_ms, CASE WHEN EXISTS (SELECT 1 FROM privacy WHERE account_id = ?1 \
                   AND session_activity = 0) THEN NULL ELSE used_ms END, ends_ms FROM session WHERE account_id = ?1 \
                   AND ends_ms > (SELECT clock_ms FROM state) ORDER BY used_ms DESC, id DESC";
        let read = |row: &rusqlite::Row<'_>| {
            Ok(OpenSession { id: row.get(0)?, created_at: row.get(1)?, used_at: row.get(2)?, ends_at: row.get(3)? })
        };
        self.all(sql, [account], read).context("list sessions")
    }

    /// The setting that controls who may create an account.
    pub fn registration(&self) -> Result<Registration, StorageError> {
        registration::registration(self.conn)
    }

    /// The account that a request has created, and its name.
    pub fn account_of_request(&self, request: ClientId) -> Result<Option<(AccountId, String)>, StorageError> {
        let sql = "SELECT id, username FROM account WHERE request_id = ?1";
        self.maybe(sql, [request], |row| Ok((row.get(0)?, row.get(1)?))).context("look for a request id")
    }

    /// Whether an invitation can be used.
    pub fn is_invited(&self, code_hash: &TokenHash) -> Result<bool, StorageError> {
        let sql = "SELECT 1 FROM invitation WHERE code_hash = ?1 AND used < uses \
                   AND expires_ms > (SELECT clock_ms FROM state)";
        Ok(self.maybe(sql, [code_hash], |_| Ok(())).context("look for an invitation")?.is_some())
    }

    /// All invitations that were not removed yet, oldest first.
    pub fn invitations(&self) -> Result<Vec<InvitationRow>, StorageError> {
        let sql = "SELECT id, uses, used, created_ms, expires_ms FROM invitation ORDER BY id";
        let read = |row: &rusqlite::Row<'_>| {
            Ok(InvitationRow {
                id: row.get(0)?,
                uses: row.get(1)?,
                used: row.get(2)?,
                created_at: row.get(3)?,
                expires_at: row.get(4)?,
            })
        };
        self.all(sql, [], read).context("list invitations")
    }

    /// Whether a session or an invitation expired before a moment.
    pub fn has_expired_rows(&self, before: TimeMs) -> Result<bool, StorageError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM session WHERE ends_ms <= ?1) \
                   OR EXISTS (SELECT 1 FROM invitation WHERE expires_ms <= ?1)";
        self.one(sql, [before], |row| row.get(0))
            .optional()
            .map(|found| found.unwrap_or_default())
            .context("look for expired rows")
    }

    /// Time of an account's creation.
    pub fn account_created_at(&self, account: AccountId) -> Result<Option<TimeMs>, StorageError> {
        self.maybe("SELECT created_ms FROM account WHERE id = ?1", [account], |row| row.get(0))
            .context("read an account")
    }
}
