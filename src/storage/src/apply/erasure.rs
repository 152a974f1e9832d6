//! The deletion of an account, in bounded steps.
//!
//! [`Command::BeginAccountDeletion`](chat::Command) takes effect at once for readers. The sessions end and the
//! account is marked as deleted. From its revision on, every read checks the account and shows its messages as
//! tombstones. The remaining work is to notify the members of each conversation and to overwrite the bodies. The leader
//! proposes `EraseAccount` until that is done. Each such command does at most `limit` units of work and saves its
//! progress in a row of `erasure`, so that the next leader can continue. Invariants: no message is sent in a
//! conversation of a deleted account any more, so the number of remaining messages only decreases. An `EraseAccount`
//! for an account without remaining work changes nothing.

use rusqlite::{OptionalExtension, params};

use super::applier::Applier;
use crate::db::execute;
use crate::error::{Context, StorageError};
use crate::history;
use chat::limits::ERASE_UNITS_MAX;
use chat::{AccountId, ConversationId, Outcome, Revision, SessionId};

/// A row of `erasure`.
struct Erasure {
    overwriting: bool,
    /// The conversation that was begun last.
    conversation: ConversationId,
    /// The next message there; 0 if none is left.
    next: Revision,
}

impl Applier<'_> {
    /// Deletes the account of a session as far as readers can see. [`Self::erase_account`] does the remaining work.
    pub(super) fn begin_account_deletion(&mut self, session: SessionId) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        self.begin_erasure(account)
    }

    /// Begins the deletion of an account that is not deleted yet.
    pub(super) fn begin_erasure(&mut self, account: AccountId) -> Result<Outcome, StorageError> {
        self.end_account(account)?;
        self.caches.note_deletion(account);
        let deleted_messages = self.use_nothing(account)?;
        let sql = "INSERT INTO erasure (account_id, stage, conversation_id, revision) VALUES (?1, 0, 0, 0)";
        execute(self.conn, sql, [account]).context("note what is to be erased")?;
        Ok(Outcome::AccountDeleted { revision: self.next_revision(), deleted_messages })
    }

    /// Does up to `limit` units of the remaining work of a deletion. A unit is a conversation notified or a message
    /// examined.
    pub(super) fn erase_account(&mut self, account: AccountId, limit: u32) -> Result<Outcome, StorageError> {
        let Some(mut erasure) = self.erasure(account)? else {
            return Ok(Outcome::AccountErased { revision: self.revision, done: true });
        };
        let mut left = limit.clamp(1, ERASE_UNITS_MAX);
        while left > 0 {
            if erasure.next > Revision(0) {
                erasure.next = self.erase_message(account, erasure.next)?;
                left -= 1;
                continue;
            }
            match self.next_conversation(account, erasure.conversation)? {
                Some(conversation) if erasure.overwriting => {
                    erasure.conversation = conversation;
                    let known = self.caches.known_conversation(self.conn, conversation)?;
                    erasure.next = known.head.last_message_revision;
                }
                Some(conversation) => {
                    erasure.conversation = conversation;
                    self.nothing_unread(account, conversation)?;
                    self.leave_conversation(account, conversation)?;
                    left -= 1;
                }
                None if erasure.overwriting => {
                    execute(self.conn, "DELETE FROM erasure WHERE account_id = ?1", [account])
                        .context("end an erasure")?;
                    return Ok(Outcome::AccountErased { revision: self.revision, done: true });
                }
                None => (erasure.overwriting, erasure.conversation) = (true, ConversationId(0)),
            }
        }
        let Erasure { overwriting, conversation, next } = erasure;
        let sql = "UPDATE erasure SET stage = ?2, conversation_id = ?3, revision = ?4 WHERE account_id = ?1";
        execute(self.conn, sql, params![account, overwriting, conversation, next]).context("note an erasure")?;
        self.fold_row([u64::from(overwriting), conversation.0, next.0]);
        Ok(Outcome::AccountErased { revision: self.revision, done: false })
    }

    fn erasure(&self, account: AccountId) -> Result<Option<Erasure>, StorageError> {
        let sql = "SELECT stage, conversation_id, revision FROM erasure WHERE account_id = ?1";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| {
                    Ok(Erasure { overwriting: row.get(0)?, conversation: row.get(1)?, next: row.get(2)? })
                };
                statement.query_row([account], read).optional()
            })
            .context("read what is to be erased")
    }

    fn next_conversation(
        &self,
        account: AccountId,
        after: ConversationId,
    ) -> Result<Option<ConversationId>, StorageError> {
        let sql = "SELECT conversation_id FROM member WHERE account_id = ?1 AND conversation_id > ?2 \
                   ORDER BY conversation_id LIMIT 1";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(params![account, after], |row| row.get(0)).optional())
            .context("read the conversations of an account")
    }

    /// Clears the unread count of each member whose other members have all left, because all their messages are
    /// tombstones.
    fn nothing_unread(&mut self, account: AccountId, id: ConversationId) -> Result<(), StorageError> {
        let conversation = self.change(id)?;
        let last_seq = conversation.head.last_seq.0;
        let mut changed = Vec::new();
        for position in 0..conversation.marks.len() {
            if conversation.members[position].account == account || !conversation.others_have_left(position) {
                continue;
            }
            let mark = conversation.mark(position);
            let unread = last_seq.saturating_sub(mark.read.0);
            mark.gone = unread.saturating_sub(mark.sent.saturating_sub(mark.sent_read));
            changed.push((position as u64, mark.gone));
        }
        changed.into_iter().for_each(|(position, gone)| self.fold_row([position, gone]));
        Ok(())
    }

    /// Overwrites a message if the account sent it. Returns the message before it.
    fn erase_message(&self, account: AccountId, revision: Revision) -> Result<Revision, StorageError> {
        let link = history::link(self.conn, revision)?;
        if link.previous >= revision {
            return Err(StorageError::Corrupt(format!(
                "message {revision} names {}, which is not before it",
                link.previous
            )));
        }
        if link.sender == account && !link.deleted {
            execute(self.conn, "UPDATE message SET body = '', deleted = 1 WHERE revision = ?1", [revision])
                .context("erase a message")?;
        }
        Ok(link.previous)
    }
}
