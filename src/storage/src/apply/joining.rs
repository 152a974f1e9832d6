//! Join tokens: permissions for nodes that the cluster does not know.
//!
//! Invariants: a token admits one node, identified by its admission number. At most [`JOIN_TOKENS_MAX`] rows exist.
//! Both commands remove the rows that have expired on the replicated clock. Tokens do not advance the revision, because
//! no reader waits for one.

use rusqlite::{OptionalExtension, params};

use super::applier::Applier;
use crate::db::execute;
use crate::error::{Context, StorageError};
use chat::limits::JOIN_TOKENS_MAX;
use chat::{Outcome, Rejection, TimeMs, TokenHash};

impl Applier<'_> {
    pub(super) fn issue_join_token(
        &mut self,
        token_hash: &TokenHash,
        lifetime_ms: u64,
    ) -> Result<Outcome, StorageError> {
        self.remove_expired_join_tokens()?;
        if let Some((expires_at, _)) = self.join_token(token_hash)? {
            return Ok(Outcome::JoinTokenIssued { expires_at });
        }
        let count: usize = self
            .conn
            .prepare_cached("SELECT count(*) FROM join_token")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .context("count join tokens")?;
        if count >= JOIN_TOKENS_MAX {
            return Ok(Outcome::Rejected(Rejection::JoinTokensFull));
        }
        let expires_at = TimeMs(self.clock.0.saturating_add(lifetime_ms).min(i64::MAX.unsigned_abs()));
        let sql = "INSERT INTO join_token (token_hash, expires_ms, admission) VALUES (?1, ?2, zeroblob(8))";
        execute(self.conn, sql, params![token_hash, expires_at]).context("store a join token")?;
        Ok(Outcome::JoinTokenIssued { expires_at })
    }

    pub(super) fn redeem_join_token(
        &mut self,
        token_hash: &TokenHash,
        admission: u64,
    ) -> Result<Outcome, StorageError> {
        self.remove_expired_join_tokens()?;
        let invalid = Outcome::Rejected(Rejection::JoinTokenInvalid);
        let Some((_, owner)) = self.join_token(token_hash)? else { return Ok(invalid) };
        match owner {
            _ if admission == 0 => Ok(invalid),
            0 => {
                let sql = "UPDATE join_token SET admission = ?2 WHERE token_hash = ?1";
                execute(self.conn, sql, params![token_hash, admission.to_le_bytes()]).context("use a join token")?;
                Ok(Outcome::JoinTokenRedeemed)
            }
            owner if owner == admission => Ok(Outcome::JoinTokenRedeemed),
            _ => Ok(invalid),
        }
    }

    /// Expiry of a token, and the admission number that has used it (0 if unused).
    fn join_token(&self, token_hash: &TokenHash) -> Result<Option<(TimeMs, u64)>, StorageError> {
        let row: Option<(TimeMs, [u8; 8])> = self
            .conn
            .prepare_cached("SELECT expires_ms, admission FROM join_token WHERE token_hash = ?1")
            .and_then(|mut statement| {
                statement.query_row([token_hash], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .context("look for a join token")?;
        Ok(row.map(|(expires_at, owner)| (expires_at, u64::from_le_bytes(owner))))
    }

    fn remove_expired_join_tokens(&mut self) -> Result<(), StorageError> {
        let sql = "DELETE FROM join_token WHERE expires_ms <= ?1";
        let count = execute(self.conn, sql, [self.clock]).context("remove expired join tokens")?;
        self.fold_row([count as u64]);
        Ok(())
    }
}
