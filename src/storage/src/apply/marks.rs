//! Receipts, which advance watermarks, and deletions of messages.

use std::collections::BTreeMap;

use rusqlite::params;

use super::applier::Applier;
use super::cache::MemberMark;
use crate::absent::{Kind, Set};
use crate::db::{Int, execute};
use crate::error::{Context, StorageError};
use crate::history::{self, Link};
use crate::recent::Mark;
use crate::schema::{DELETION_FOR_EVERYONE, DELETION_FOR_MEMBER};
use chat::{
    AccountId, ConversationId, EventKind, Outcome, ReceiptItem, ReceiptResult, Rejection, Revision, Seq, SessionId,
};

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
        let MemberMark { mark, has_left, .. } = conversation.marks[position];
        let members = conversation.members.clone();
        let up_to = item.up_to.min(conversation.head.last_seq);
        let delivered = mark.delivered.max(up_to);
        let read = if item.read { mark.read.max(up_to) } else { mark.read };
        let seq = if item.read { read } else { delivered };
        if (delivered, read) == (mark.delivered, mark.read) {
            return Ok(Ok((seq, self.revision)));
        }
        let (newest, last_seq) = (conversation.head.last_message_revision, conversation.head.last_seq);
        let alone = conversation.others_have_left(position);
        let (sent_read, gone) = match read > mark.read {
            true => self.counted((id, account), mark, read, (newest, last_seq), alone)?,
            false => (mark.sent_read, mark.gone),
        };
        let shown = if read > mark.read && self.share_reads(&members)? { read } else { mark.shown };
        let revision = self.next_revision();
        let time = self.clock;
        let conversation = self.change(id)?;
        conversation.head.last_revision = revision;
        let (receipt_revision, receipt_time, sent) = (revision, time, mark.sent);
        let mut moved = Mark { delivered, read, sent_read, gone, receipt_revision, receipt_time, shown, ..mark };
        let is_seen = (delivered, shown) != (mark.delivered, mark.shown);
        if is_seen {
            (moved.shown_revision, moved.shown_time) = (revision, time);
        }
        *conversation.mark(position) = moved;
        self.fold_row([sent, sent_read, gone, u64::from(has_left)]);
        if shown != read {
            self.fold_row([shown.0, moved.shown_revision.0]);
        }
        let member_name = members[position].username.clone();
        let shown = is_seen.then_some(shown);
        let kind = EventKind::Receipt { member: account, member_name, delivered, read, shown };
        self.event(revision, id, members, kind);
        Ok(Ok((seq, revision)))
    }

    /// `sent_read` and `gone` of a member that has now read up to `read`, in a conversation of one or two members. The
    /// message at `read` contains its ordinal among the messages of its sender, so that one lookup counts the messages
    /// of both members. `alone` means that all other members have left.
    fn counted(
        &self,
        (conversation, account): (ConversationId, AccountId),
        mark: Mark,
        read: Seq,
        (newest, last_seq): (Revision, Seq),
        alone: bool,
    ) -> Result<(u64, u64), StorageError> {
        let (now_read, unread) = (read.0 - mark.read.0, last_seq.0 - read.0);
        if unread == 0 {
            return Ok((mark.sent, 0));
        }
        let link = history::find(self.conn, newest, read)?;
        let sent_read = if link.sender == account { link.sent } else { read.0.saturating_sub(link.sent) };
        if alone {
            return Ok((sent_read, unread.saturating_sub(mark.sent.saturating_sub(sent_read))));
        }
        let set = Set { account, conversation, kind: Kind::Gone };
        let gone = match now_read < unread {
            true => mark.gone.saturating_sub(set.count(self.conn, mark.read, read)?),
            false => set.count(self.conn, read, last_seq)?,
        };
        Ok((sent_read, gone))
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
        // Sorted, because the order determines the revisions.
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
            conversation.head.last_revision = revision;
            let members = conversation.members.clone();
            let kind = match for_everyone {
                true => EventKind::DeletedForEveryone { seqs },
                false => EventKind::DeletedForMember { member: account, seqs },
            };
            self.event(revision, id, members, kind);
        }
        Ok(Outcome::MessagesDeleted { deleted, ignored, revision: self.revision })
    }

    /// Deletes one message. Returns `None` if it is unknown, already deleted, or not the caller's to delete.
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
            let (unread, has_left) = (seq > conversation.marks[position].mark.read, conversation.has_left(sender));
            let sql = "INSERT OR IGNORE INTO hidden (account_id, conversation_id, seq) VALUES (?1, ?2, ?3)";
            if execute(self.conn, sql, params![account, id, seq]).context("hide a message")? == 0 {
                return Ok(None);
            }
            Set { account, conversation: id, kind: Kind::Hidden }.insert(self.conn, seq)?;
            self.change(id)?.one_more_hidden(position);
            let is_new =
                sender != account && Set { account, conversation: id, kind: Kind::Gone }.insert(self.conn, seq)?;
            if is_new && unread && !has_left {
                let gone = self.change(id)?.one_more_gone(position);
                self.fold_row([position as u64, gone]);
            }
        }
        Ok(Some((id, seq)))
    }

    /// Deletes a message for all members.
    pub(super) fn leave_tombstone(&mut self, message: &Link) -> Result<(), StorageError> {
        let id = message.conversation;
        let recipients = self.change(id)?.recipients(message);
        self.take_body(message)?;
        for (position, account, unread) in recipients {
            let is_new = Set { account, conversation: id, kind: Kind::Gone }.insert(self.conn, message.seq)?;
            if is_new && unread {
                let gone = self.change(id)?.one_more_gone(position);
                self.fold_row([position as u64, gone]);
            }
        }
        Ok(())
    }

    /// Overwrites the body of a message, and reduces the sender's usage.
    fn take_body(&mut self, message: &Link) -> Result<(), StorageError> {
        let bytes: Int = self
            .conn
            .prepare_cached("SELECT octet_length(body) FROM message WHERE revision = ?1")
            .and_then(|mut statement| statement.query_row([message.revision], |row| row.get(0)))
            .context("read the length of a message")?;
        self.use_less(message.sender, bytes.0)?;
        execute(self.conn, "UPDATE message SET body = '', deleted = 1 WHERE revision = ?1", [message.revision])
            .context("delete a message")?;
        Ok(())
    }

    /// Stores a deletion for subscriptions that resume later.
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
