//! Registration: the setting that controls who may create an account, and invitations.

use rusqlite::{OptionalExtension, params};

use super::applier::Applier;
use crate::codec;
use crate::db::execute;
use crate::error::{Context, StorageError};
use chat::limits::INVITATIONS_MAX;
use chat::{Outcome, Registration, Rejection, Revision, TimeMs, TokenHash};

impl Applier<'_> {
    /// Whether an account may be created, and the invitation that this uses up.
    pub(super) fn admission(
        &self,
        invitation: Option<&TokenHash>,
    ) -> Result<Result<Option<Revision>, Rejection>, StorageError> {
        match registration(self.conn)? {
            Registration::Open => return Ok(Ok(None)),
            Registration::Closed => return Ok(Err(Rejection::RegistrationClosed)),
            Registration::Invitation => {}
        }
        let Some(code_hash) = invitation else { return Ok(Err(Rejection::InvitationNeeded)) };
        let sql = "SELECT id FROM invitation WHERE code_hash = ?1 AND used < uses AND expires_ms > ?2";
        let found = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(params![code_hash, self.clock], |row| row.get(0)).optional())
            .context("look for an invitation")?;
        Ok(found.map(Some).ok_or(Rejection::InvitationInvalid))
    }

    pub(super) fn use_invitation(&mut self, invitation: Revision) -> Result<(), StorageError> {
        execute(self.conn, "UPDATE invitation SET used = used + 1 WHERE id = ?1", [invitation])
            .context("use an invitation")?;
        self.fold_row([invitation.0]);
        Ok(())
    }

    pub(super) fn set_registration(&mut self, registration: Registration) -> Result<Outcome, StorageError> {
        if self::registration(self.conn)? == registration {
            return Ok(Outcome::Changed { count: 0, revision: self.revision });
        }
        let sql = "INSERT INTO setting (name, value) VALUES ('registration', ?1) \
                   ON CONFLICT (name) DO UPDATE SET value = ?1";
        let value = i32::from(codec::encode_registration(registration));
        execute(self.conn, sql, [value]).context("store a setting")?;
        Ok(Outcome::Changed { count: 1, revision: self.next_revision() })
    }

    pub(super) fn create_invitation(
        &mut self,
        code_hash: &TokenHash,
        uses: u32,
        lifetime_ms: u64,
    ) -> Result<Outcome, StorageError> {
        let made = self
            .conn
            .prepare_cached("SELECT id, expires_ms FROM invitation WHERE code_hash = ?1")
            .and_then(|mut statement| statement.query_row([code_hash], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .context("look for an invitation")?;
        if let Some((revision, expires_at)) = made {
            // A repeat of the same command: codes are random.
            return Ok(Outcome::InvitationCreated { expires_at, revision });
        }
        let count: u32 = self
            .conn
            .prepare_cached("SELECT count(*) FROM invitation")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .context("count the invitations")?;
        if count >= INVITATIONS_MAX {
            return Ok(Outcome::Rejected(Rejection::TooManyInvitations));
        }
        let revision = self.next_revision();
        let expires_at = TimeMs(self.clock.0.saturating_add(lifetime_ms).min(i64::MAX.unsigned_abs()));
        let sql = "INSERT INTO invitation (id, code_hash, uses, used, created_ms, expires_ms) \
                   VALUES (?1, ?2, ?3, 0, ?4, ?5)";
        execute(self.conn, sql, params![revision, code_hash, uses, self.clock, expires_at])
            .context("store an invitation")?;
        Ok(Outcome::InvitationCreated { expires_at, revision })
    }

    pub(super) fn revoke_invitation(&mut self, invitation: Revision) -> Result<Outcome, StorageError> {
        let count = execute(self.conn, "DELETE FROM invitation WHERE id = ?1", [invitation])
            .context("withdraw an invitation")?;
        let revision = if count == 0 { self.revision } else { self.next_revision() };
        Ok(Outcome::Changed { count: count as u64, revision })
    }

    pub(super) fn remove_invitations(&mut self, before: TimeMs, limit: u32) -> Result<u64, StorageError> {
        let sql = "DELETE FROM invitation WHERE id IN \
                   (SELECT id FROM invitation WHERE expires_ms <= ?1 ORDER BY expires_ms, id LIMIT ?2)";
        let count = execute(self.conn, sql, params![before, limit]).context("remove expired invitations")?;
        Ok(count as u64)
    }
}

/// The setting that controls who may create an account.
pub(crate) fn registration(conn: &rusqlite::Connection) -> Result<Registration, StorageError> {
    let value: Option<i32> = conn
        .prepare_cached("SELECT value FROM setting WHERE name = 'registration'")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)).optional())
        .context("read a setting")?;
    let Some(value) = value else { return Ok(Registration::default()) };
    codec::decode_registration(value)
        .ok_or_else(|| StorageError::Corrupt(format!("registration {value} does not exist")))
}
