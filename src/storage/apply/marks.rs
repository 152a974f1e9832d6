//! Receipts, which move watermarks, and deletions of messages.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::{Applier, execute};
use crate::chat::{
    AccountId, ConversationId, EventKind, Outcome, ReceiptItem, ReceiptResult, Rejection, Revision, Seq, SessionId,
};
use crate::storage::error::{Context, StorageError};
use crate::storage::schema::{DELETION_FOR_EVERYONE, DELETION_FOR_MEMBER};

impl Applier<'_> {
    pub(super) fn receipts(&mut self, items: &[ReceiptItem]) -> Result<Outcome, StorageError> {
        let results = items.iter().map(|item| self.receipt(item)).collect::<Result<_, _>>()?;
        Ok(Outcome::ReceiptsApplied(results))
    }

    fn receipt(&mut self, item: &ReceiptItem) -> Result<ReceiptResult, StorageError> {
        let account = match self.caller(item.session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Err(reason)),
        };
        let id = item.conversation;
        let Some(conversation) = self.caches.conversation(self.conn, id)? else {
            return Ok(Err(Rejection::ConversationUnknown));
        };
        let Some(position) = conversation.position(account) else {
            return Ok(Err(Rejection::ConversationUnknown));
        };
        let mark = conversation.marks[position];
        let up_to = item.up_to.min(conversation.last_seq);
        let delivered = mark.delivered.max(up_to);
        let read = if item.read { mark.read.max(up_to) } else { mark.read };
        let seq = if item.read { read } else { delivered };
        if (delivered, read) == (mark.delivered, mark.read) {
            return Ok(Ok((seq, self.revision)));
        }
        let revision = self.next_revision();
        let time = self.clock;
        let conversation = self.change(id)?;
        conversation.last_revision = revision;
        let mark = &mut conversation.marks[position];
        (mark.delivered, mark.read, mark.receipt_revision, mark.receipt_time) = (delivered, read, revision, time);
        mark.dirty = true;
        let members = conversation.members.clone();
        let member_name = members[position].username.clone();
        self.event(revision, id, members, EventKind::Receipt { member: account, member_name, delivered, read });
        Ok(Ok((seq, revision)))
    }

    pub(super) fn delete_messages(
        &mut self,
        session: SessionId,
        messages: &[u64],
        for_everyone: bool,
    ) -> Result<Outcome, StorageError> {
        let account = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        // Sorted, because the order decides about revisions.
        let mut changed: BTreeMap<ConversationId, Vec<Seq>> = BTreeMap::new();
        let (mut deleted, mut ignored) = (0, 0);
        for message in messages {
            match self.delete_message(account, Revision(*message), for_everyone)? {
                Some((conversation, seq)) => {
                    changed.entry(conversation).or_default().push(seq);
                    deleted += 1;
                }
                None => ignored += 1,
            }
        }
        for (id, mut seqs) in changed {
            seqs.sort_unstable();
            let revision = self.next_revision();
            let kind = if for_everyone { DELETION_FOR_EVERYONE } else { DELETION_FOR_MEMBER };
            self.remember_deletion(revision, id, kind, account, &seqs)?;
            let conversation = self.change(id)?;
            conversation.last_revision = revision;
            let members = conversation.members.clone();
            let kind = match for_everyone {
                true => EventKind::DeletedForEveryone { seqs },
                false => EventKind::DeletedForMember { member: account, seqs },
            };
            self.event(revision, id, members, kind);
        }
        Ok(Outcome::MessagesDeleted { deleted, ignored, revision: self.revision })
    }

    /// Deletes one message. `None`: it is unknown, not the caller's to delete, or deleted already.
    fn delete_message(
        &mut self,
        account: AccountId,
        message: Revision,
        for_everyone: bool,
    ) -> Result<Option<(ConversationId, Seq)>, StorageError> {
        let sql = "SELECT conversation_id, seq, sender_id, deleted FROM message WHERE revision = ?1";
        let found: Option<(ConversationId, Seq, AccountId, bool)> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
                statement.query_row([message], read).optional()
            })
            .context("look for a message")?;
        let Some((id, seq, sender, deleted)) = found else { return Ok(None) };
        let is_member = self.caches.conversation(self.conn, id)?.is_some_and(|found| found.position(account).is_some());
        if !is_member || (for_everyone && (sender != account || deleted)) {
            return Ok(None);
        }
        let changed = match for_everyone {
            true => execute(self.conn, "UPDATE message SET body = '', deleted = 1 WHERE revision = ?1", [message])
                .context("delete a message")?,
            false => {
                let sql = "INSERT OR IGNORE INTO hidden (account_id, conversation_id, seq) VALUES (?1, ?2, ?3)";
                execute(self.conn, sql, params![account, id, seq]).context("hide a message")?
            }
        };
        Ok((changed > 0).then_some((id, seq)))
    }

    /// Keeps a deletion for those who resume their subscription later.
    pub(super) fn remember_deletion(
        &self,
        revision: Revision,
        conversation: ConversationId,
        kind: i64,
        account: AccountId,
        seqs: &[Seq],
    ) -> Result<(), StorageError> {
        let seqs: Vec<u8> = seqs.iter().flat_map(|seq| seq.0.to_le_bytes()).collect();
        let sql = "INSERT INTO deletion (revision, conversation_id, kind, account_id, time_ms, seqs) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        execute(self.conn, sql, params![revision, conversation, kind, account, self.clock, seqs])
            .context("remember a deletion")?;
        Ok(())
    }
}
