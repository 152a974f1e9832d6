//! Privacy settings of accounts: whether read receipts are exchanged, and whether session activity is recorded.
//!
//! Invariants:
//!
//! - Other members see that a message was read only if all members of the conversation exchanged read receipts when it
//!   was marked read. A later change of a setting neither reveals earlier reads nor hides reads already shown.
//! - For an account that does not record session activity, no row reveals when a session was used.

use rusqlite::params;

use super::applier::Applier;
use crate::db::execute;
use crate::error::{Context, StorageError};
use chat::{AccountId, Member, Outcome, Privacy, PrivacyChange, SessionId};

impl Applier<'_> {
    pub(super) fn set_privacy(&mut self, session: SessionId, change: PrivacyChange) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let before = self.caches.privacy(self.conn, account)?;
        let after = change.applied_to(before);
        if after == before {
            return Ok(Outcome::Changed { count: 0, revision: self.revision });
        }
        if after == Privacy::default() {
            self.forget_privacy(account)?;
        } else {
            let sql = "INSERT INTO privacy (account_id, read_receipts, session_activity) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (account_id) DO UPDATE SET read_receipts = ?2, session_activity = ?3";
            execute(self.conn, sql, params![account, after.read_receipts, after.session_activity])
                .context("store privacy settings")?;
            self.caches.forget_privacy(account);
        }
        if before.session_activity && !after.session_activity {
            self.forget_activity(account)?;
        }
        Ok(Outcome::Changed { count: 1, revision: self.next_revision() })
    }

    /// Restores the default settings.
    pub(super) fn forget_privacy(&mut self, account: AccountId) -> Result<(), StorageError> {
        let sql = "DELETE FROM privacy WHERE account_id = ?1";
        if execute(self.conn, sql, [account]).context("forget privacy settings")? > 0 {
            self.caches.forget_privacy(account);
        }
        Ok(())
    }

    /// Whether the members of a conversation exchange read receipts.
    pub(super) fn share_reads(&mut self, members: &[Member]) -> Result<bool, StorageError> {
        for member in members {
            if !self.caches.privacy(self.conn, member.account)?.read_receipts {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the recorded activity of an account's sessions. The end of a session reveals its last use as well. A
    /// session with an idle timeout therefore gets its full idle time from now on.
    fn forget_activity(&mut self, account: AccountId) -> Result<(), StorageError> {
        let sql = "SELECT id FROM session WHERE account_id = ?1 AND ends_ms <= ?2 ORDER BY id";
        let ended = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement.query_map(params![account, self.clock], |row| row.get(0))?.collect::<rusqlite::Result<_>>()
            })
            .context("read the sessions that have ended")?;
        self.end_sessions(ended)?;
        let sql = "UPDATE session SET used_ms = created_ms, \
                   ends_ms = CASE WHEN idle_ms > 0 THEN min(expires_ms, ?2 + idle_ms) ELSE ends_ms END WHERE id = ?1";
        let mut sessions = self.sessions_of(account, 0)?;
        sessions.sort_unstable();
        for session in sessions {
            execute(self.conn, sql, params![session, self.clock]).context("forget the use of a session")?;
            self.caches.forget_session(session);
            self.fold_row([session.0]);
        }
        Ok(())
    }
}
