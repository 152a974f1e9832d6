//! Sessions, and the devices from which they were opened.

use rusqlite::{OptionalExtension, params};

use super::applier::Applier;
use crate::db::{Int, execute};
use crate::error::{Context, StorageError};
use chat::limits::{DEVICES_PER_ACCOUNT_MAX, SESSIONS_PER_ACCOUNT_MAX};
use chat::{AccountId, Login, Outcome, Rejection, Revision, SessionId, TimeMs, TokenHash};

impl Applier<'_> {
    pub(super) fn open_session(
        &mut self,
        account: AccountId,
        token_hash: &TokenHash,
        lifetime_ms: u64,
        login: &Login,
    ) -> Result<Outcome, StorageError> {
        match self.check_login(account, login.password_revision)? {
            // The session may have been opened by this same command. Then it is returned again below, regardless of
            // later changes.
            Err(Rejection::PasswordOutdated | Rejection::AccountDisabled)
                if self.session_of_token(token_hash)?.is_some() => {}
            Err(reason) => return Ok(Outcome::Rejected(reason)),
            Ok(()) => {}
        }
        if let Some((session, owner, expires_at)) = self.session_of_token(token_hash)? {
            // A repeat of the same command: tokens are random. The session that it opened is not changed.
            let revision = Revision(session.0);
            return Ok(match owner == account {
                true => Outcome::SessionOpened { session, account, expires_at, revision },
                false => Outcome::Rejected(Rejection::ClientIdReused),
            });
        }
        let revision = self.next_revision();
        let session = SessionId(revision.0);
        let expires_at = TimeMs(self.clock.0.saturating_add(lifetime_ms).min(i64::MAX.unsigned_abs()));
        let ends_at = match login.idle_ms {
            0 => expires_at,
            idle => TimeMs(self.clock.0.saturating_add(idle).min(expires_at.0)),
        };
        let sql = "INSERT INTO session (id, token_hash, account_id, created_ms, expires_ms, idle_ms, used_ms, ends_ms, \
                   device) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?4, ?7, ?8)";
        let idle = Int(login.idle_ms.min(i64::MAX.unsigned_abs()));
        let values = params![session, token_hash, account, self.clock, expires_at, idle, ends_at, login.device];
        execute(self.conn, sql, values).context("store a session")?;
        if let Some(device) = &login.device {
            self.know_device(account, device, revision)?;
        }
        if let Some(hash) = &login.rehash {
            let sql = "UPDATE account SET password_hash = ?2 WHERE id = ?1";
            execute(self.conn, sql, params![account, hash]).context("store a stronger hash")?;
        }
        let surplus = self.sessions_of(account, SESSIONS_PER_ACCOUNT_MAX)?;
        self.end_sessions(surplus)?;
        Ok(Outcome::SessionOpened { session, account, expires_at, revision })
    }

    fn session_of_token(&self, token_hash: &TokenHash) -> Result<Option<(SessionId, AccountId, TimeMs)>, StorageError> {
        self.conn
            .prepare_cached("SELECT id, account_id, expires_ms FROM session WHERE token_hash = ?1")
            .and_then(|mut statement| {
                statement.query_row([token_hash], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
            })
            .context("look for a token")
    }

    pub(super) fn close_session(&mut self, session: SessionId, all: bool) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let sessions = if all { self.sessions_of(account, 0)? } else { vec![session] };
        let count = self.end_sessions(sessions)?;
        Ok(Outcome::SessionsClosed { count, revision: self.next_revision() })
    }

    /// The sessions of an account, least recently used first, without the `keep` most recently used ones.
    pub(super) fn sessions_of(&self, account: AccountId, keep: usize) -> Result<Vec<SessionId>, StorageError> {
        let read = || -> rusqlite::Result<Vec<SessionId>> {
            let sql = "SELECT id FROM session WHERE account_id = ?1 ORDER BY used_ms DESC, id DESC LIMIT -1 OFFSET ?2";
            let keep = i64::try_from(keep).unwrap_or(i64::MAX);
            self.conn.prepare_cached(sql)?.query_map(params![account, keep], |row| row.get(0))?.collect()
        };
        let mut sessions = read().context("read the sessions of an account")?;
        sessions.reverse();
        Ok(sessions)
    }

    pub(super) fn end_sessions(&mut self, sessions: Vec<SessionId>) -> Result<u32, StorageError> {
        let mut count = 0;
        for session in sessions {
            execute(self.conn, "DELETE FROM session WHERE id = ?1", [session]).context("close a session")?;
            if !failpoints::is_active(failpoints::ENDED_SESSION_REMEMBERED) {
                self.caches.forget_session(session);
                self.closed_sessions.push(session);
            }
            self.fold_row([session.0]);
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn end_sessions_of(&mut self, username: &str) -> Result<Outcome, StorageError> {
        let Some(account) = self.existing(username)? else { return Ok(Outcome::Rejected(Rejection::AccountUnknown)) };
        let sessions = self.sessions_of(account, 0)?;
        let count = self.end_sessions(sessions)?;
        let revision = if count == 0 { self.revision } else { self.next_revision() };
        Ok(Outcome::Changed { count: u64::from(count), revision })
    }

    pub(super) fn revoke_session(&mut self, session: SessionId, target: SessionId) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let owned = self.caches.session(self.conn, target)?.is_some_and(|session| session.account == account);
        if !owned {
            return Ok(Outcome::Rejected(Rejection::TargetUnknown));
        }
        let sql =
            "DELETE FROM device WHERE account_id = ?1 AND token_hash = (SELECT device FROM session WHERE id = ?2)";
        execute(self.conn, sql, params![account, target]).context("forget a device")?;
        let count = self.end_sessions(vec![target])?;
        Ok(Outcome::SessionsClosed { count, revision: self.next_revision() })
    }

    pub(super) fn touch_sessions(&mut self, sessions: &[SessionId]) -> Result<Outcome, StorageError> {
        let mut count = 0;
        for session in sessions {
            // A session that has ended stays ended.
            let sql = "UPDATE session SET used_ms = ?2, ends_ms = CASE WHEN idle_ms > 0 \
                       THEN min(expires_ms, ?2 + idle_ms) ELSE expires_ms END \
                       WHERE id = ?1 AND used_ms < ?2 AND ends_ms > ?2 AND NOT EXISTS (SELECT 1 FROM privacy \
                       WHERE privacy.account_id = session.account_id AND session_activity = 0)";
            let changed = execute(self.conn, sql, params![session, self.clock]).context("note a use of a session")?;
            if changed > 0 {
                self.caches.forget_session(*session);
                self.fold_row([session.0]);
                count += 1;
            }
        }
        Ok(Outcome::Changed { count, revision: self.revision })
    }

    pub(super) fn remove_expired(&mut self, before: TimeMs, limit: u32) -> Result<Outcome, StorageError> {
        // Only rows that have expired are removed, even if the command names a later time.
        let before = before.min(self.clock);
        let read = || -> rusqlite::Result<Vec<SessionId>> {
            let sql = "SELECT id FROM session WHERE ends_ms <= ?1 ORDER BY ends_ms, id LIMIT ?2";
            self.conn.prepare_cached(sql)?.query_map(params![before, limit], |row| row.get(0))?.collect()
        };
        let sessions = read().context("read the expired sessions")?;
        let ended = self.end_sessions(sessions)?;
        let invitations = self.remove_invitations(before, limit)?;
        Ok(Outcome::Changed { count: u64::from(ended) + invitations, revision: self.revision })
    }

    /// Records a login from a device of the account.
    fn know_device(&mut self, account: AccountId, device: &TokenHash, revision: Revision) -> Result<(), StorageError> {
        let sql = "INSERT INTO device (account_id, token_hash, used_revision) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (account_id, token_hash) DO UPDATE SET used_revision = ?3";
        execute(self.conn, sql, params![account, device, revision]).context("store a device")?;
        let sql = "DELETE FROM device WHERE account_id = ?1 AND used_revision <= (SELECT used_revision FROM device \
                   WHERE account_id = ?1 ORDER BY used_revision DESC LIMIT 1 OFFSET ?2)";
        let keep = i64::try_from(DEVICES_PER_ACCOUNT_MAX).unwrap_or(i64::MAX);
        execute(self.conn, sql, params![account, keep]).context("forget the oldest device")?;
        Ok(())
    }

    /// Forgets the devices of an account, except for that of the session `keep`.
    pub(super) fn forget_devices(&self, account: AccountId, keep: Option<SessionId>) -> Result<(), StorageError> {
        let sql = "DELETE FROM device WHERE account_id = ?1 \
                   AND token_hash IS NOT (SELECT device FROM session WHERE id = ?2)";
        execute(self.conn, sql, params![account, keep]).context("forget the devices of an account")?;
        Ok(())
    }
}
