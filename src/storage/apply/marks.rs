//! Receipts, which move watermarks, and deletions of messages.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rusqlite::params;

use super::cache::Mark;
use super::{Applier, execute};
use crate::chat::{
    AccountId, ConversationId, EventKind, Outcome, ReceiptItem, ReceiptResult, Rejection, Revision, Seq, SessionId,
};
use crate::storage::error::{Context, StorageError};
use crate::storage::history::{self, Link};
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
        let (newest, last_seq) = (conversation.last_message_revision, conversation.last_seq);
        let (sent_read, gone) = match read > mark.read {
            true => self.counted(id, account, mark, read, newest, last_seq)?,
            false => (mark.sent_read, mark.gone),
        };
        let revision = self.next_revision();
        let time = self.clock;
        let conversation = self.change(id)?;
        conversation.last_revision = revision;
        let has_left = mark.has_left;
        let (receipt_revision, receipt_time, sent) = (revision, time, mark.sent);
        conversation.marks[position] =
            Mark { delivered, read, sent, sent_read, gone, receipt_revision, receipt_time, has_left, dirty: true };
        let members = conversation.members.clone();
        self.fold_row([sent, sent_read, gone, u64::from(has_left)]);
        let member_name = members[position].username.clone();
        self.event(revision, id, members, EventKind::Receipt { member: account, member_name, delivered, read });
        Ok(Ok((seq, revision)))
    }

    /// `sent_read` and `gone` of a member that has now read up to `read`. Looks at the messages on one side of it: each is
    /// looked at once for each member, or never, when everything is read.
    fn counted(
        &self,
        id: ConversationId,
        account: AccountId,
        mark: Mark,
        read: Seq,
        newest: Revision,
        last_seq: Seq,
    ) -> Result<(u64, u64), StorageError> {
        let (now_read, unread) = (read.0 - mark.read.0, last_seq.0 - read.0);
        if unread == 0 {
            return Ok((mark.sent, 0));
        }
        let (from, back_to) = match now_read < unread {
            true => (history::find(self.conn, newest, read)?, mark.read),
            false => (history::link(self.conn, newest)?, read),
        };
        let (mut own, mut gone) = (0, 0);
        history::walk_back(self.conn, from, Seq(back_to.0 + 1), |link| {
            if link.sender == account {
                own += 1;
            } else if link.deleted || history::is_hidden(self.conn, account, id, link.seq)? {
                gone += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(match now_read < unread {
            true => (mark.sent_read + own, mark.gone.saturating_sub(gone)),
            false => (mark.sent.saturating_sub(own), gone),
        })
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
        let Some(link) = history::look_up(self.conn, message)? else { return Ok(None) };
        let Link { conversation: id, seq, sender, deleted, .. } = link;
        let Some(conversation) = self.caches.conversation(self.conn, id)? else { return Ok(None) };
        let Some(position) = conversation.position(account) else { return Ok(None) };
        if for_everyone {
            if sender != account || deleted {
                return Ok(None);
            }
            self.leave_tombstone(&link)?;
        } else {
            let counts = sender != account && !deleted && seq > conversation.marks[position].read;
            let sql = "INSERT OR IGNORE INTO hidden (account_id, conversation_id, seq) VALUES (?1, ?2, ?3)";
            if execute(self.conn, sql, params![account, id, seq]).context("hide a message")? == 0 {
                return Ok(None);
            }
            if counts {
                let gone = self.change(id)?.one_more_gone(position);
                self.fold_row([position as u64, gone]);
            }
        }
        Ok(Some((id, seq)))
    }

    /// Deletes a message for everyone.
    pub(super) fn leave_tombstone(&mut self, message: &Link) -> Result<(), StorageError> {
        let id = message.conversation;
        let recipients = self.change(id)?.recipients_yet_to_read(message);
        execute(self.conn, "UPDATE message SET body = '', deleted = 1 WHERE revision = ?1", [message.revision])
            .context("delete a message")?;
        for (position, recipient) in recipients {
            if !history::is_hidden(self.conn, recipient, id, message.seq)? {
                let gone = self.change(id)?.one_more_gone(position);
                self.fold_row([position as u64, gone]);
            }
        }
        Ok(())
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
