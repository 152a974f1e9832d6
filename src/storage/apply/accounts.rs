//! Accounts and sessions.

use std::ops::ControlFlow;

use rusqlite::{OptionalExtension, params};

use super::{Applier, execute};
use crate::chat::limits::SESSIONS_PER_ACCOUNT_MAX;
use crate::chat::{
    AccountId, ClientId, ConversationId, EventKind, Outcome, Rejection, Revision, Seq, SessionId, TimeMs, TokenHash,
};
use crate::storage::error::{Context, StorageError};
use crate::storage::history::{self, Link};
use crate::storage::schema::DELETION_OF_ACCOUNT;

impl Applier<'_> {
    pub(super) fn create_account(
        &mut self,
        username: String,
        password_hash: &str,
        request_id: Option<ClientId>,
    ) -> Result<Outcome, StorageError> {
        if let Some(request_id) = request_id
            && let Some((account, name)) = self.account_of_request(request_id)?
        {
            return Ok(match name == username {
                // The account's id is the revision that made it.
                true => Outcome::AccountCreated { account, revision: Revision(account.0), repeated: true },
                false => Outcome::Rejected(Rejection::ClientIdReused),
            });
        }
        if self.caches.account(self.conn, &username)?.is_some() {
            return Ok(Outcome::Rejected(Rejection::UsernameTaken));
        }
        let revision = self.next_revision();
        let account = AccountId(revision.0);
        let sql = "INSERT INTO account (id, username, password_hash, request_id, created_ms, deleted) \
                   VALUES (?1, ?2, ?3, ?4, ?5, 0)";
        execute(self.conn, sql, params![account, username, password_hash, request_id, self.clock])
            .context("store an account")?;
        Ok(Outcome::AccountCreated { account, revision, repeated: false })
    }

    fn account_of_request(&self, request_id: ClientId) -> Result<Option<(AccountId, String)>, StorageError> {
        self.conn
            .prepare_cached("SELECT id, username FROM account WHERE request_id = ?1")
            .and_then(|mut statement| {
                statement.query_row([request_id], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .context("look for a request id")
    }

    pub(super) fn open_session(
        &mut self,
        account: AccountId,
        token_hash: &TokenHash,
        lifetime_ms: u64,
    ) -> Result<Outcome, StorageError> {
        let exists = self
            .conn
            .prepare_cached("SELECT 1 FROM account WHERE id = ?1 AND deleted = 0")
            .and_then(|mut statement| statement.exists([account]))
            .context("look for an account")?;
        if !exists {
            return Ok(Outcome::Rejected(Rejection::AccountUnknown));
        }
        if let Some((session, owner, expires_at)) = self.session_of_token(token_hash)? {
            // The same command again: tokens are random. The session that it opened stays as it is.
            let revision = Revision(session.0);
            return Ok(match owner == account {
                true => Outcome::SessionOpened { session, account, expires_at, revision },
                false => Outcome::Rejected(Rejection::ClientIdReused),
            });
        }
        let revision = self.next_revision();
        let session = SessionId(revision.0);
        let expires_at = TimeMs(self.clock.0.saturating_add(lifetime_ms).min(i64::MAX.unsigned_abs()));
        let sql =
            "INSERT INTO session (id, token_hash, account_id, created_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
        execute(self.conn, sql, params![session, token_hash, account, self.clock, expires_at])
            .context("store a session")?;
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

    /// The sessions of an account, oldest first, without the newest `keep`.
    fn sessions_of(&self, account: AccountId, keep: usize) -> Result<Vec<SessionId>, StorageError> {
        let read = || -> rusqlite::Result<Vec<SessionId>> {
            let sql = "SELECT id FROM session WHERE account_id = ?1 ORDER BY id DESC LIMIT -1 OFFSET ?2";
            let keep = i64::try_from(keep).unwrap_or(i64::MAX);
            self.conn.prepare_cached(sql)?.query_map(params![account, keep], |row| row.get(0))?.collect()
        };
        let mut sessions = read().context("read the sessions of an account")?;
        sessions.reverse();
        Ok(sessions)
    }

    fn end_sessions(&mut self, sessions: Vec<SessionId>) -> Result<u32, StorageError> {
        let mut count = 0;
        for session in sessions {
            execute(self.conn, "DELETE FROM session WHERE id = ?1", [session]).context("close a session")?;
            self.caches.forget_session(session);
            self.closed_sessions.push(session);
            self.fold_row([session.0]);
            count += 1;
        }
        Ok(count)
    }

    /// The account's messages become tombstones, one revision and one event for each conversation; then the account
    /// goes, with a revision of its own. All in one command: nobody sees half of it.
    pub(super) fn delete_account(&mut self, session: SessionId) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let mut deleted_messages = 0;
        for conversation in self.conversations_of(account)? {
            deleted_messages += self.leave_tombstones(account, conversation)?;
        }
        let sessions = self.sessions_of(account, 0)?;
        self.end_sessions(sessions)?;
        let username: String = self
            .conn
            .query_row("SELECT username FROM account WHERE id = ?1", [account], |row| row.get(0))
            .context("read the name of an account")?;
        execute(self.conn, "UPDATE account SET password_hash = '', deleted = 1 WHERE id = ?1", [account])
            .context("delete an account")?;
        self.caches.forget_account(&username);
        Ok(Outcome::AccountDeleted { revision: self.next_revision(), deleted_messages })
    }

    fn conversations_of(&self, account: AccountId) -> Result<Vec<ConversationId>, StorageError> {
        let read = || -> rusqlite::Result<Vec<ConversationId>> {
            let sql = "SELECT conversation_id FROM member WHERE account_id = ?1 ORDER BY conversation_id";
            self.conn.prepare_cached(sql)?.query_map([account], |row| row.get(0))?.collect()
        };
        read().context("read the conversations of an account")
    }

    /// What an account has sent in a conversation and not deleted.
    fn messages_of(&mut self, account: AccountId, id: ConversationId) -> Result<Vec<Link>, StorageError> {
        let conversation = self.caches.known_conversation(self.conn, id)?;
        let newest = history::link(self.conn, conversation.last_message_revision)?;
        let mut messages = Vec::new();
        history::walk_back(self.conn, newest, Seq(1), |link| {
            if link.sender == account && !link.deleted {
                messages.push(*link);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(messages)
    }

    fn leave_tombstones(&mut self, account: AccountId, id: ConversationId) -> Result<u64, StorageError> {
        let messages = self.messages_of(account, id)?;
        for message in &messages {
            self.leave_tombstone(message)?;
        }
        let revision = self.next_revision();
        self.remember_deletion(revision, id, DELETION_OF_ACCOUNT, account, &[])?;
        let conversation = self.change(id)?;
        conversation.last_revision = revision;
        let position = conversation
            .position(account)
            .ok_or_else(|| StorageError::Corrupt(format!("account {account} is not in its conversation {id}")))?;
        conversation.marks[position].has_left = true;
        let members = conversation.members.clone();
        let member_name = members[position].username.clone();
        self.event(revision, id, members, EventKind::AccountDeleted { member: account, member_name });
        Ok(messages.len() as u64)
    }
}
