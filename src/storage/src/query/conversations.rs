//! Pages of conversations, lists of conversations, and counts.
//!
//! A message that an account has hidden is invisible to it, on pages and in counts. A tombstone is visible but never
//! unread.

use std::{cmp::Reverse, collections::HashMap, ops::ControlFlow};

use super::Query;
use crate::absent::{Kind, Set};
use crate::db::Int;
use crate::error::{Context, StorageError};
use crate::history::{self, Content, Link};
use crate::recent::{self, ConversationRow, Head, Mark};
use chat::limits::{PAGE_BYTES_MAX, fitting};
use chat::{AccountId, ClientId, ConversationId, Revision, Seq, TimeMs};

/// A page of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConversationPage {
    /// Messages of the page, newest first.
    pub messages: Vec<MessageRow>,
    /// Number of messages visible to the reader, on all pages.
    pub total: u64,
    /// Number of unread messages.
    pub unread: u64,
    /// Position of the newest message, visible or not.
    pub last_seq: Seq,
    /// Whether there are older messages.
    pub has_more: bool,
    /// All members, including the reader, sorted by account.
    pub members: Vec<MemberRow>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRow {
    /// The message id: the revision that stored it.
    pub id: Revision,
    /// The conversation of the message.
    pub conversation: ConversationId,
    /// Its position in the conversation.
    pub seq: Seq,
    /// The sender's account.
    pub sender: AccountId,
    /// The sender's name.
    pub sender_name: String,
    /// The text; empty when `deleted`.
    pub body: String,
    /// Time at which it was stored.
    pub time: TimeMs,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// The id assigned by the sender's client. Must only be returned to the sender.
    pub client_id: ClientId,
    /// Delivery progress of the message.
    pub status: MessageProgress,
}

/// Delivery progress of a message, for all members except its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageProgress {
    /// Stored.
    Sent,
    /// All others have received the message.
    Delivered,
    /// All others have read the message, or there are no others.
    Read,
}

/// A member of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The account.
    pub account: AccountId,
    /// The account's name.
    pub username: String,
    /// Whether the account was deleted.
    pub deleted: bool,
    /// Position up to which the member has received messages.
    pub delivered: Seq,
    /// Position up to which the member has read messages, as far as the reader may see it.
    pub read: Seq,
}

/// A conversation in the list of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationSummary {
    /// The conversation's id.
    pub conversation: ConversationId,
    /// Revision of its newest message. The list is sorted by it, and the next page takes it as `before`.
    pub last_revision: Revision,
    /// Position of the newest message, visible or not.
    pub last_seq: Seq,
    /// Number of messages unread by the account.
    pub unread: u64,
    /// The newest message visible to the account.
    pub last_message: Option<MessageRow>,
    /// All members, including the account.
    pub members: Vec<MemberRow>,
}

impl Query<'_> {
    /// A page of messages with a seq below `before`. Returns at most `limit` messages, and fewer if their bodies are
    /// long. Empty if `me` is not a member.
    pub fn conversation_page(
        &self,
        me: AccountId,
        conversation: ConversationId,
        before: Option<Seq>,
        limit: u32,
    ) -> Result<ConversationPage, StorageError> {
        let Some(view) = self.view(conversation)? else { return Ok(ConversationPage::default()) };
        let Some(mark) = view.mark(me) else { return Ok(ConversationPage::default()) };
        let Head { last_seq, last_message_revision: newest, .. } = view.row.head;
        let members = view.members(me);
        // One more than requested, to detect whether there are older messages.
        let from = before.map_or(last_seq, |before| Seq(before.0.saturating_sub(1)).min(last_seq));
        let mut messages = self.messages((me, conversation), newest, from, limit as usize + 1, &members)?;
        let found = messages.len();
        let sizes = messages.iter().map(|message| message.body.len());
        messages.truncate(fitting(sizes, PAGE_BYTES_MAX).min(limit as usize));
        let has_more = found > messages.len();
        Ok(ConversationPage {
            messages,
            total: last_seq.0.saturating_sub(mark.hidden),
            unread: view.unread(me)?,
            last_seq,
            has_more,
            members,
        })
    }

    /// Conversations of an account, newest message first. Returns at most `limit` whose newest message is older than
    /// `before`, and the total number. Scans all conversations of the account.
    pub fn conversations(
        &self,
        me: AccountId,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<(Vec<ConversationSummary>, u64), StorageError> {
        let before = before.unwrap_or(Revision(u64::MAX));
        let mut found = Vec::new();
        self.recent.each_head_of(self.conn, me, ConversationId(0), |id, head| {
            if head.last_message_revision < before {
                found.push((id, head));
            }
            ControlFlow::Continue(())
        })?;
        found.sort_unstable_by_key(|(_, head)| Reverse(head.last_message_revision));
        found.truncate(limit as usize);
        self.summaries(me, found)
    }

    /// Conversations of an account whose newest message is newer than `since`, sorted by id. Returns at most `limit`
    /// with ids after `after`, and the total number. Scans all conversations of the account.
    ///
    /// A reader of a list sorted by activity misses conversations that move to its beginning meanwhile. This list
    /// contains them, and its order does not change.
    pub fn conversations_since(
        &self,
        me: AccountId,
        (since, after): (Revision, ConversationId),
        limit: u32,
    ) -> Result<(Vec<ConversationSummary>, u64), StorageError> {
        let mut found = Vec::new();
        self.recent.each_head_of(self.conn, me, after, |id, head| {
            if found.len() == limit as usize {
                return ControlFlow::Break(());
            }
            if head.last_message_revision > since {
                found.push((id, head));
            }
            ControlFlow::Continue(())
        })?;
        self.summaries(me, found)
    }

    fn summaries(
        &self,
        me: AccountId,
        conversations: Vec<(ConversationId, Head)>,
    ) -> Result<(Vec<ConversationSummary>, u64), StorageError> {
        let summaries = conversations
            .into_iter()
            .map(|(conversation, Head { last_seq, last_message_revision: last_revision, .. })| {
                let view = self.view(conversation)?.ok_or_else(|| missing(conversation))?;
                let members = view.members(me);
                let last = self.messages((me, conversation), last_revision, last_seq, 1, &members)?;
                Ok(ConversationSummary {
                    conversation,
                    last_revision,
                    last_seq,
                    unread: view.unread(me)?,
                    last_message: last.into_iter().next(),
                    members,
                })
            })
            .collect::<Result<_, StorageError>>()?;
        let total = self
            .one("SELECT count(*) FROM member WHERE account_id = ?1", [me], |row| row.get::<_, Int>(0))
            .context("count conversations")?;
        Ok((summaries, total.0))
    }

    /// Number of messages from others that are unread by an account in a conversation; 0 if it is not a member.
    pub fn unread(&self, me: AccountId, conversation: ConversationId) -> Result<u64, StorageError> {
        self.view(conversation)?.map_or(Ok(0), |view| view.unread(me))
    }

    /// Number of messages from others that are unread by an account, in all its conversations. Scans all conversations
    /// of the account.
    pub fn unread_total(&self, me: AccountId) -> Result<u64, StorageError> {
        let mut total = 0;
        self.recent.each_mark_of(self.conn, me, |head, mark, partner| {
            let unread = match (unread(head, mark)?, partner) {
                (1.., Some(partner)) if self.is_deleted(partner)? => 0,
                (unread, _) => unread,
            };
            total = u64::saturating_add(total, unread);
            Ok(())
        })?;
        Ok(total)
    }

    fn view(&self, conversation: ConversationId) -> Result<Option<View>, StorageError> {
        let found = self.recent.conversation(self.conn, conversation)?;
        Ok(found.map(|(row, rows)| View { row, rows }))
    }

    /// The members of a conversation, sorted by account, as visible to one of them.
    pub fn members(&self, me: AccountId, conversation: ConversationId) -> Result<Vec<MemberRow>, StorageError> {
        Ok(self.view(conversation)?.map_or_else(Vec::new, |view| view.members(me)))
    }

    /// Visible messages of a conversation, newest first, beginning at `from`. `newest` is the newest message of the
    /// conversation.
    fn messages(
        &self,
        (me, conversation): (AccountId, ConversationId),
        newest: Revision,
        from: Seq,
        limit: usize,
        members: &[MemberRow],
    ) -> Result<Vec<MessageRow>, StorageError> {
        let mut messages = Vec::new();
        if from == Seq(0) || limit == 0 {
            return Ok(messages);
        }
        let progress: HashMap<AccountId, (&MemberRow, Seq, Seq)> =
            members.iter().map(|member| (member.account, others(member, members))).collect();
        let hidden = Set { account: me, conversation, kind: Kind::Hidden };
        let whole = |link: Link| history::content(self.conn, &link).map(|content| (link, content));
        let mut later: Option<Link> = None;
        for seq in hidden.outside(self.conn, from, limit)? {
            let (link, content) = match later {
                Some(later) if later.seq.0 == seq.0 + 1 => history::previous(self.conn, &later)?,
                Some(later) => whole(history::find_before(self.conn, later, seq)?)?,
                None => whole(history::find(self.conn, newest, seq)?)?,
            };
            let known = progress.get(&link.sender).ok_or_else(|| not_a_member(conversation))?;
            messages.push(message(&link, content, known));
            later = Some(link);
        }
        Ok(messages)
    }
}

/// A message, as a page shows it. `known` is its sender, and how far all others are.
fn message(link: &Link, content: Content, (sender, delivered, read): &(&MemberRow, Seq, Seq)) -> MessageRow {
    let status = if link.seq <= *read {
        MessageProgress::Read
    } else if link.seq <= *delivered {
        MessageProgress::Delivered
    } else {
        MessageProgress::Sent
    };
    // The message of a deleted account may not be overwritten yet.
    let withheld = sender.deleted && !failpoints::is_active(failpoints::DELETED_ACCOUNT_SHOWN);
    MessageRow {
        id: link.revision,
        conversation: link.conversation,
        seq: link.seq,
        sender: link.sender,
        sender_name: sender.username.clone(),
        body: if withheld { String::new() } else { content.body },
        time: content.time,
        deleted: link.deleted || withheld,
        client_id: content.client_id,
        status,
    }
}

/// A conversation and its members.
struct View {
    row: ConversationRow,
    rows: Vec<recent::MemberRow>,
}

impl View {
    /// The members, as visible to one of them.
    fn members(&self, me: AccountId) -> Vec<MemberRow> {
        let member = |row: &recent::MemberRow| MemberRow {
            account: row.account,
            username: row.username.to_string(),
            deleted: row.has_left,
            delivered: row.mark.delivered,
            read: if row.account == me { row.mark.read } else { row.mark.shown },
        };
        self.rows.iter().map(member).collect()
    }

    fn mark(&self, account: AccountId) -> Option<Mark> {
        self.rows.iter().find(|row| row.account == account).map(|row| row.mark)
    }

    /// Number of messages from others that are unread by an account; 0 if it is not a member. Messages of a partner
    /// whose account was deleted do not count.
    fn unread(&self, me: AccountId) -> Result<u64, StorageError> {
        let Some(mark) = self.mark(me) else { return Ok(0) };
        let mut others = self.rows.iter().filter(|row| row.account != me);
        if self.row.is_direct && others.next().is_some_and(|partner| partner.has_left) {
            return Ok(0);
        }
        unread(self.row.head, mark)
    }
}

/// Number of unread messages from others that are neither deleted nor hidden.
fn unread(head: Head, mark: Mark) -> Result<u64, StorageError> {
    let others = |all: Seq, own: u64| all.0.checked_sub(own);
    others(head.last_seq, mark.sent)
        .zip(others(mark.read, mark.sent_read))
        .and_then(|(received, read)| received.checked_sub(read)?.checked_sub(mark.gone))
        .ok_or_else(|| StorageError::Corrupt("a member has read more messages than there are".into()))
}

/// The positions up to which all members except `member` have received and read messages. Without other members, the
/// largest position.
fn others<'a>(member: &'a MemberRow, members: &[MemberRow]) -> (&'a MemberRow, Seq, Seq) {
    let others = || members.iter().filter(|other| other.account != member.account);
    let end = Seq(u64::MAX);
    let delivered = others().map(|other| other.delivered).min().unwrap_or(end);
    let read = others().map(|other| other.read).min().unwrap_or(end);
    (member, delivered, read)
}

fn missing(conversation: ConversationId) -> StorageError {
    StorageError::Corrupt(format!("conversation {conversation} is listed and missing"))
}

/// The error for a message whose sender is missing among the members.
pub(super) fn not_a_member(conversation: ConversationId) -> StorageError {
    StorageError::Corrupt(format!("the sender of a message does not belong to conversation {conversation}"))
}
