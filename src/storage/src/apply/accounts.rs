//! Accounts: creation, change of password, disabling, deletion.

use std::ops::ControlFlow;

use rusqlite::{OptionalExtension, Row, params};

use super::applier::Applier;
use crate::db::execute;
use crate::error::{Context, StorageError};
use crate::history::{self, Link};
use crate::schema::DELETION_OF_ACCOUNT;
use chat::{AccountId, ClientId, ConversationId, EventKind, Outcome, Rejection, Revision, Seq, SessionId, TokenHash};

impl Applier<'_> {
    pub(super) fn create_account(
        &mut self,
        username: String,
        password_hash: &str,
        request_id: Option<ClientId>,
        invitation: Option<&TokenHash>,
    ) -> Result<Outcome, StorageError> {
        if let Some(request_id) = request_id
            && let Some((account, name)) = self.account_of_request(request_id)?
        {
            return Ok(match name == username {
                // The account's id is the revision that created it.
                true => Outcome::AccountCreated { account, revision: Revision(account.0), repeated: true },
                false => Outcome::Rejected(Rejection::ClientIdReused),
            });
        }
        let admitted_by = match self.admission(invitation)? {
            Ok(invitation) => invitation,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        if self.caches.account(self.conn, &username)?.is_some() {
            return Ok(Outcome::Rejected(Rejection::UsernameTaken));
        }
        if let Some(invitation) = admitted_by {
            self.use_invitation(invitation)?;
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

    /// Whether the password that a caller has verified is still current, and whether the account may log in.
    pub(super) fn check_login(
        &self,
        account: AccountId,
        verified: Option<Revision>,
    ) -> Result<Result<(), Rejection>, StorageError> {
        let found = self
            .conn
            .prepare_cached("SELECT deleted, disabled, password_revision FROM account WHERE id = ?1")
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| Ok((row.get::<_, bool>(0)?, row.get::<_, bool>(1)?, row.get(2)?));
                statement.query_row([account], read).optional()
            })
            .context("look for an account")?;
        Ok(match found {
            None | Some((true, _, _)) => Err(Rejection::AccountUnknown),
            Some((_, _, set)) if verified.is_some_and(|verified| verified != set) => Err(Rejection::PasswordOutdated),
            Some((_, true, _)) => Err(Rejection::AccountDisabled),
            Some(_) => Ok(()),
        })
    }

    pub(super) fn change_password(
        &mut self,
        session: SessionId,
        verified: Revision,
        password_hash: &str,
    ) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        if self.has_password(account, password_hash)? {
            return Ok(Outcome::Changed { count: 0, revision: self.revision });
        }
        if let Err(reason) = self.check_login(account, Some(verified))? {
            return Ok(Outcome::Rejected(reason));
        }
        self.replace_password(account, password_hash, Some(session))
    }

    pub(super) fn reset_password(&mut self, username: &str, password_hash: &str) -> Result<Outcome, StorageError> {
        let Some(account) = self.existing(username)? else { return Ok(Outcome::Rejected(Rejection::AccountUnknown)) };
        if self.has_password(account, password_hash)? {
            return Ok(Outcome::Changed { count: 0, revision: self.revision });
        }
        self.replace_password(account, password_hash, None)
    }

    /// Whether the account already has this hash. Salts are random, so the same command was applied before.
    fn has_password(&self, account: AccountId, password_hash: &str) -> Result<bool, StorageError> {
        self.conn
            .prepare_cached("SELECT 1 FROM account WHERE id = ?1 AND password_hash = ?2")
            .and_then(|mut statement| statement.exists(params![account, password_hash]))
            .context("compare a password")
    }

    /// Replaces the password. Ends the account's sessions and forgets its devices, except for those of `keep`.
    fn replace_password(
        &mut self,
        account: AccountId,
        password_hash: &str,
        keep: Option<SessionId>,
    ) -> Result<Outcome, StorageError> {
        let revision = self.next_revision();
        let sql = "UPDATE account SET password_hash = ?2, password_revision = ?3 WHERE id = ?1";
        execute(self.conn, sql, params![account, password_hash, revision]).context("store a password")?;
        self.forget_devices(account, keep)?;
        let mut sessions = self.sessions_of(account, 0)?;
        sessions.retain(|session| Some(*session) != keep);
        let count = self.end_sessions(sessions)?;
        Ok(Outcome::Changed { count: u64::from(count), revision })
    }

    pub(super) fn set_disabled(&mut self, username: &str, disabled: bool) -> Result<Outcome, StorageError> {
        let Some(account) = self.existing(username)? else { return Ok(Outcome::Rejected(Rejection::AccountUnknown)) };
        let sql = "UPDATE account SET disabled = ?2 WHERE id = ?1 AND disabled <> ?2";
        let changed = execute(self.conn, sql, params![account, disabled]).context("disable an account")?;
        if changed == 0 {
            return Ok(Outcome::Changed { count: 0, revision: self.revision });
        }
        let revision = self.next_revision();
        let sessions = if disabled { self.sessions_of(account, 0)? } else { Vec::new() };
        let count = self.end_sessions(sessions)?;
        Ok(Outcome::Changed { count: u64::from(count), revision })
    }

    pub(super) fn purge(&mut self, username: &str) -> Result<Outcome, StorageError> {
        match self.existing(username)? {
            Some(account) => self.begin_erasure(account),
            None => Ok(Outcome::Rejected(Rejection::AccountUnknown)),
        }
    }

    /// The account with a name, unless it is deleted.
    pub(super) fn existing(&mut self, username: &str) -> Result<Option<AccountId>, StorageError> {
        let account = self.caches.account(self.conn, username)?;
        Ok(account.filter(|account| !account.deleted).map(|account| account.id))
    }

    /// Deletes an account as versions before 0.1.0 proposed it. The messages become tombstones, with one revision and
    /// one event for each conversation; then the account is marked as deleted. The work is unbounded, so the command is
    /// no longer proposed. It is kept because logs that contain it have to produce the same state as before.
    pub(super) fn delete_account(&mut self, session: SessionId) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let mut deleted_messages = 0;
        for conversation in self.conversations_of(account)? {
            deleted_messages += self.leave_tombstones(account, conversation)?;
        }
        self.end_account(account)?;
        Ok(Outcome::AccountDeleted { revision: self.next_revision(), deleted_messages })
    }

    /// Ends the sessions of an account, and marks it as deleted.
    pub(super) fn end_account(&mut self, account: AccountId) -> Result<(), StorageError> {
        let sessions = self.sessions_of(account, 0)?;
        self.end_sessions(sessions)?;
        let username = self.caches.name(self.conn, account)?;
        execute(self.conn, "UPDATE account SET password_hash = '', deleted = 1 WHERE id = ?1", [account])
            .context("delete an account")?;
        self.forget_devices(account, None)?;
        self.forget_privacy(account)?;
        self.caches.forget_account(&username);
        Ok(())
    }

    fn conversations_of(&self, account: AccountId) -> Result<Vec<ConversationId>, StorageError> {
        let read = || -> rusqlite::Result<Vec<ConversationId>> {
            let sql = "SELECT conversation_id FROM member WHERE account_id = ?1 ORDER BY conversation_id";
            self.conn.prepare_cached(sql)?.query_map([account], |row| row.get(0))?.collect()
        };
        read().context("read the conversations of an account")
    }

    /// The messages that an account has sent in a conversation and not deleted.
    fn messages_of(&mut self, account: AccountId, id: ConversationId) -> Result<Vec<Link>, StorageError> {
        let conversation = self.caches.known_conversation(self.conn, id)?;
        let newest = history::link(self.conn, conversation.head.last_message_revision)?;
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
        self.leave_conversation(account, id)?;
        Ok(messages.len() as u64)
    }

    /// Marks an account as deleted in a conversation, and emits the event that notifies the members.
    pub(super) fn leave_conversation(&mut self, account: AccountId, id: ConversationId) -> Result<(), StorageError> {
        let revision = self.next_revision();
        self.remember_deletion(revision, id, DELETION_OF_ACCOUNT, account, &[])?;
        let conversation = self.change(id)?;
        conversation.head.last_revision = revision;
        let position = conversation
            .position(account)
            .ok_or_else(|| StorageError::Corrupt(format!("account {account} is not in its conversation {id}")))?;
        conversation.marks[position].has_left = true;
        let members = conversation.members.clone();
        let member_name = members[position].username.clone();
        self.event(revision, id, members, EventKind::AccountDeleted { member: account, member_name });
        Ok(())
    }
}
