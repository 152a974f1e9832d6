//! Past events for a resumed subscription, reconstructed from the rows.
//!
//! A past event reflects the current state: a message that has become a tombstone since is returned as one, and only
//! the newest receipt of each member is returned. A conversation is examined only if it has changed. The rows found go
//! through a heap that keeps the `limit` earliest ones. Once it is full, its latest revision bounds the rest of the
//! search, so that memory and work stay bounded.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rusqlite::{Row, params};

use super::Query;
use super::conversations::not_a_member;
use crate::absent::{Kind, Set};
use crate::error::{Context, StorageError};
use crate::history::{self, Link};
use crate::recent::{Head, Mark};
use crate::schema::{DELETION_FOR_EVERYONE, DELETION_FOR_MEMBER, DELETION_OF_ACCOUNT};
use chat::{AccountId, ConversationId, Event, EventKind, Member, Revision, Seq, TimeMs};

/// Messages that are looked up at a time.
const STRETCH: u64 = 64;

/// A conversation of the subscriber.
struct Candidate {
    id: ConversationId,
    head: Head,
}

/// A member's receipt, as far as an event needs it.
struct Receipt {
    delivered: Seq,
    read: Seq,
    shown: Option<Seq>,
    revision: Revision,
    time: TimeMs,
}

impl Query<'_> {
    /// Every event that concerns an account with `after` < revision <= `up_to`, in order. A result of fewer than
    /// `limit` events is complete.
    pub fn events_after(
        &self,
        me: AccountId,
        after: Revision,
        up_to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, StorageError> {
        let mut found = Earliest::new(limit, up_to);
        for candidate in self.candidates(me, after)? {
            let id = candidate.id;
            let (members, receipts) = self.receipts(me, id)?;
            if candidate.head.last_message_revision > after {
                let first = history::first_after(self.conn, candidate.head.last_message_revision, after)?;
                self.collect_messages(&mut found, &candidate, first.seq, &members, None)?;
            }
            for (member, receipt) in members.iter().zip(receipts) {
                if receipt.revision > after {
                    let kind = EventKind::Receipt {
                        member: member.account,
                        member_name: member.username.clone(),
                        delivered: receipt.delivered,
                        read: receipt.read,
                        shown: receipt.shown,
                    };
                    let (revision, time) = (receipt.revision, receipt.time);
                    found.push(Event { revision, time, conversation: id, members: members.clone(), kind, trace: None });
                }
            }
            self.collect_deletions(&mut found, me, id, after, &members)?;
        }
        Ok(found.into_events())
    }

    /// Messages from others that no client of the account has acknowledged, with `after` < revision <= `up_to`, in
    /// order, as events. Excludes messages that the account has hidden. A result of fewer than `limit` events is
    /// complete.
    pub fn undelivered(
        &self,
        me: AccountId,
        after: Revision,
        up_to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, StorageError> {
        let mut found = Earliest::new(limit, up_to);
        for candidate in self.candidates(me, after)? {
            let Head { last_seq, last_message_revision, .. } = candidate.head;
            let mark = self.recent.mark(self.conn, candidate.id, me)?.unwrap_or_default();
            if last_seq <= mark.delivered || last_message_revision <= after {
                continue;
            }
            let (members, _) = self.receipts(me, candidate.id)?;
            if members.len() == 1 {
                continue; // Notes to oneself: there are no others.
            }
            let first = history::first_after(self.conn, last_message_revision, after)?;
            let from = first.seq.max(Seq(mark.delivered.0 + 1));
            self.collect_messages(&mut found, &candidate, from, &members, Some(me))?;
        }
        Ok(found.into_events())
    }

    /// Conversations that have changed after a revision.
    fn candidates(&self, me: AccountId, after: Revision) -> Result<Vec<Candidate>, StorageError> {
        let mut found = Vec::new();
        self.recent.each_head_of(self.conn, me, ConversationId(0), |id, head| {
            if head.last_revision > after {
                found.push(Candidate { id, head });
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The members of a conversation, and the newest receipt of each that concerns `me`.
    fn receipts(&self, me: AccountId, id: ConversationId) -> Result<(Arc<[Member]>, Vec<Receipt>), StorageError> {
        let (mut members, mut receipts) = (Vec::new(), Vec::new());
        for row in self.recent.members(self.conn, id)? {
            let Mark { delivered, shown, shown_revision, .. } = row.mark;
            receipts.push(match row.account == me {
                true => {
                    let (read, revision, time) = (row.mark.read, row.mark.receipt_revision, row.mark.receipt_time);
                    let shown = (revision == shown_revision).then_some(shown);
                    Receipt { delivered, read, shown, revision, time }
                }
                // Excludes the private progress of the member. Others see each change of `delivered`.
                false => {
                    let (revision, time) = (shown_revision, row.mark.shown_time);
                    Receipt { delivered, read: shown, shown: Some(shown), revision, time }
                }
            });
            members.push(Member { account: row.account, username: row.username });
        }
        Ok((members.into(), receipts))
    }

    /// Collects messages from a seq on. With a `recipient`, only those from others that are visible to it.
    fn collect_messages(
        &self,
        found: &mut Earliest,
        candidate: &Candidate,
        from: Seq,
        members: &Arc<[Member]>,
        recipient: Option<AccountId>,
    ) -> Result<(), StorageError> {
        let Head { last_seq, last_message_revision, .. } = candidate.head;
        let mut low = from;
        while low <= last_seq {
            // Links lead backwards, so a limited number is followed at a time and then returned in forward order.
            let high = Seq(low.0.saturating_add(STRETCH - 1)).min(last_seq);
            let mut stretch = Vec::new();
            let last = history::find(self.conn, last_message_revision, high)?;
            history::walk_back(self.conn, last, low, |link| {
                stretch.push(*link);
                Ok(ControlFlow::Continue(()))
            })?;
            for link in stretch.iter().rev() {
                if link.revision > found.bound() {
                    return Ok(());
                }
                let is_for_recipient = match recipient {
                    Some(account) => {
                        let hidden = Set { account, conversation: candidate.id, kind: Kind::Hidden };
                        link.sender != account && !hidden.contains(self.conn, link.seq)?
                    }
                    None => true,
                };
                if is_for_recipient {
                    found.push(self.message_event(link, members)?);
                }
            }
            low = Seq(high.0 + 1);
        }
        Ok(())
    }

    fn message_event(&self, link: &Link, members: &Arc<[Member]>) -> Result<Event, StorageError> {
        let sender = members.iter().find(|member| member.account == link.sender);
        let sender = sender.ok_or_else(|| not_a_member(link.conversation))?;
        let content = history::content(self.conn, link)?;
        // The message of a deleted account may not be overwritten yet.
        let deleted = link.deleted || self.is_deleted(link.sender)?;
        let kind = EventKind::Message {
            seq: link.seq,
            sender: link.sender,
            sender_name: sender.username.clone(),
            client_id: content.client_id,
            body: if deleted { "".into() } else { content.body.into() },
            deleted,
        };
        let (revision, time) = (link.revision, content.time);
        Ok(Event { revision, time, conversation: link.conversation, members: members.clone(), kind, trace: None })
    }

    pub(super) fn is_deleted(&self, account: AccountId) -> Result<bool, StorageError> {
        self.one("SELECT deleted FROM account WHERE id = ?1", [account], |row| row.get(0)).context("read an account")
    }

    fn collect_deletions(
        &self,
        found: &mut Earliest,
        me: AccountId,
        id: ConversationId,
        after: Revision,
        members: &Arc<[Member]>,
    ) -> Result<(), StorageError> {
        let sql = "SELECT revision, time_ms, kind, account_id, seqs FROM deletion \
                   WHERE conversation_id = ?1 AND revision > ?2 ORDER BY revision";
        let mut statement = self.conn.prepare_cached(sql).context("prepare to read deletions")?;
        let mut rows = statement.query(params![id, after]).context("read deletions")?;
        while let Some(row) = rows.next().context("read deletions")? {
            let revision: Revision = row.get(0).context("read a deletion")?;
            if revision > found.bound() {
                break;
            }
            let time = row.get(1).context("read a deletion")?;
            if let Some(kind) = deletion_kind(row, me, members)? {
                found.push(Event { revision, time, conversation: id, members: members.clone(), kind, trace: None });
            }
        }
        Ok(())
    }
}

/// Decodes a row of `deletion`. Returns `None` if it does not concern the subscriber.
fn deletion_kind(row: &Row<'_>, me: AccountId, members: &[Member]) -> Result<Option<EventKind>, StorageError> {
    let read = || -> rusqlite::Result<(i64, AccountId, Vec<u8>)> { Ok((row.get(2)?, row.get(3)?, row.get(4)?)) };
    let (kind, account, seqs) = read().context("read a deletion")?;
    let (chunks, rest) = seqs.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(StorageError::Corrupt("the list of deleted messages is cut off".into()));
    }
    let seqs = chunks.iter().map(|bytes| Seq(u64::from_le_bytes(*bytes))).collect();
    match kind {
        DELETION_FOR_EVERYONE => Ok(Some(EventKind::DeletedForEveryone { seqs })),
        DELETION_FOR_MEMBER if account != me => Ok(None),
        DELETION_FOR_MEMBER => Ok(Some(EventKind::DeletedForMember { member: account, seqs })),
        DELETION_OF_ACCOUNT => {
            let member = members
                .iter()
                .find(|member| member.account == account)
                .ok_or_else(|| StorageError::Corrupt(format!("account {account} is deleted and not a member")))?;
            Ok(Some(EventKind::AccountDeleted { member: account, member_name: member.username.clone() }))
        }
        _ => Err(StorageError::Corrupt(format!("unknown kind of deletion: {kind}"))),
    }
}

/// Keeps the `limit` earliest events up to a revision.
struct Earliest {
    limit: usize,
    up_to: Revision,
    heap: BinaryHeap<Item>,
}

struct Item(Event);

impl Earliest {
    fn new(limit: usize, up_to: Revision) -> Self {
        Self { limit, up_to, heap: BinaryHeap::new() }
    }

    /// Events with a higher revision are not needed any more.
    fn bound(&self) -> Revision {
        match self.heap.peek() {
            None if self.limit == 0 => Revision(0),
            Some(latest) if self.heap.len() >= self.limit => latest.0.revision,
            _ => self.up_to,
        }
    }

    fn push(&mut self, event: Event) {
        if event.revision <= self.bound() {
            self.heap.push(Item(event));
            if self.heap.len() > self.limit {
                self.heap.pop();
            }
        }
    }

    fn into_events(self) -> Vec<Event> {
        self.heap.into_sorted_vec().into_iter().map(|item| item.0).collect()
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.revision.cmp(&other.0.revision)
    }
}
