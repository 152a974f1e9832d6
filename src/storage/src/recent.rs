//! Rows that change with every message, and reach their tables later.
//!
//! A message changes the row of its conversation and the row of its sender there. With many conversations, hardly any
//! two messages between two commits change the same page, and writing these pages would be most of the cost of a
//! message. Instead, a commit stores the new values of all rows that it changed in one row of the table `recent`, and
//! keeps them in memory. They are written back to their tables in the order of their ids, some with each commit, so
//! that rows of the same page are written together. (This is the idea of the log-structured merge tree, O'Neil et al.
//! 1996, with the tables as its only level.)
//!
//! Invariants:
//!
//! - The values of a row are those in the newest row of `recent` that has it, or else those in its table.
//! - [`Versions`] has every row that differs from its table, as of each commit that a reader still sees. A reader's
//!   [`RecentRows`] and its transaction are of the same commit.
//! - A row of `recent` is removed only after everything in it was written back.
//! - What is in `recent` and in memory is bounded: see [`Limits`].
//! - Nothing else reads these columns of the tables than `rows`, which overlays them.
//!
//! Does not cover: the columns that never change. Rows are inserted into their tables at once.

mod rows;
mod table;
#[cfg(test)]
mod tests;
mod versions;

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::{
    db::{Int, execute},
    error::{Context as _, StorageError},
    numbers::{self, Numbers},
};
use chat::{AccountId, ConversationId, Revision, Seq, TimeMs};

pub(super) use self::{
    rows::{ConversationRow, MemberRow, conversation, members},
    versions::{RecentRows, Versions},
};

/// How much may be recent.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Encoded changes in which about all conversations that are recent are written back. Some times as much is in
    /// `recent`, and is read at a start.
    round_bytes: usize,
    /// Conversations from which on a commit writes back more than it adds.
    conversations: usize,
}

/// The larger they are, the more changes of a page are written together, and the more memory it takes: 64 Ki
/// conversations take less than 20 MiB, by the sizes of the types.
const LIMITS: Limits = Limits { round_bytes: 4 << 20, conversations: 64 << 10 };
/// How many conversations a commit writes back at most for each that it changes, if there are too many.
const EXCESS_FACTOR: usize = 2;
/// Rows of `recent` that a commit removes at most. More than the one that it adds, so that their number falls.
const REMOVED_AT_ONCE: u64 = 4;

/// The columns of a conversation that change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub last_seq: Seq,
    pub last_message_revision: Revision,
    /// Revision of anything that happened in it.
    pub last_revision: Revision,
}

impl Head {
    pub fn numbers(&self) -> [u64; 3] {
        [self.last_seq.0, self.last_message_revision.0, self.last_revision.0]
    }

    /// The opposite of [`Self::numbers`].
    pub fn from_numbers([last_seq, last_message_revision, last_revision]: [u64; 3]) -> Self {
        Self {
            last_seq: Seq(last_seq),
            last_message_revision: Revision(last_message_revision),
            last_revision: Revision(last_revision),
        }
    }
}

/// The columns of a member that change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub delivered: Seq,
    pub read: Seq,
    /// Number of messages that the member sent.
    pub sent: u64,
    /// Number of those up to `read`.
    pub sent_read: u64,
    /// Number of messages of others after `read` that are deleted, or hidden by the member.
    pub gone: u64,
    /// Number of messages that the member hid from itself.
    pub hidden: u64,
    pub receipt_revision: Revision,
    pub receipt_time: TimeMs,
    /// `read` as the other members see it.
    pub shown: Seq,
    /// Revision of the last change that the other members see.
    pub shown_revision: Revision,
    pub shown_time: TimeMs,
}

impl Mark {
    pub fn numbers(&self) -> [u64; 11] {
        [
            self.delivered.0,
            self.read.0,
            self.sent,
            self.sent_read,
            self.gone,
            self.hidden,
            self.receipt_revision.0,
            self.receipt_time.0,
            self.shown.0,
            self.shown_revision.0,
            self.shown_time.0,
        ]
    }

    /// The opposite of [`Self::numbers`].
    pub fn from_numbers(numbers: [u64; 11]) -> Self {
        let [
            delivered,
            read,
            sent,
            sent_read,
            gone,
            hidden,
            receipt_revision,
            receipt_ms,
            shown,
            shown_revision,
            shown_ms,
        ] = numbers;
        Self {
            delivered: Seq(delivered),
            read: Seq(read),
            sent,
            sent_read,
            gone,
            hidden,
            receipt_revision: Revision(receipt_revision),
            receipt_time: TimeMs(receipt_ms),
            shown: Seq(shown),
            shown_revision: Revision(shown_revision),
            shown_time: TimeMs(shown_ms),
        }
    }
}

/// A conversation that differs from the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecentConversation {
    pub head: Head,
    /// The members whose rows differ, sorted by account.
    pub marks: Box<[(AccountId, Mark)]>,
}

impl RecentConversation {
    /// The mark of a member, if its row differs.
    pub fn mark(&self, account: AccountId) -> Option<Mark> {
        let found = self.marks.binary_search_by_key(&account, |(account, _)| *account);
        found.ok().map(|at| self.marks[at].1)
    }

    fn pack(&self, buffer: &mut Vec<u8>) -> Packed {
        buffer.clear();
        numbers::put(self.head.numbers(), buffer);
        for (account, mark) in &self.marks {
            numbers::put([account.0], buffer);
            numbers::put(mark.numbers(), buffer);
        }
        Packed(buffer.as_slice().into())
    }
}

/// A [`RecentConversation`] in little memory.
#[derive(Debug, Clone)]
struct Packed(Arc<[u8]>);

impl Packed {
    fn unpack(&self) -> RecentConversation {
        let mut numbers = Numbers::of(&self.0);
        let head = Head::from_numbers(numbers.take());
        let mut marks = Vec::with_capacity(2);
        while !numbers.is_empty() {
            marks.push((AccountId(numbers.next()), Mark::from_numbers(numbers.take())));
        }
        RecentConversation { head, marks: marks.into() }
    }
}

/// The writer's side: what is recent, and how far it is written back.
#[derive(Debug)]
pub(super) struct Recent {
    limits: Limits,
    versions: Arc<Versions>,
    /// What this round is yet to write back, the next one last.
    rest: Vec<ConversationId>,
    /// Rows of the table `recent`: from the oldest, to before the next one.
    oldest: u64,
    next: u64,
    round: Round,
}

/// A round in which all conversations that were recent at its beginning are written back. Every row of `recent` has the
/// one that it was stored in, so that a restart continues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    /// The first conversation that is not yet written back.
    cursor: ConversationId,
    /// The last conversation of this round. New ones have larger ids, and must not keep it from ending.
    end: ConversationId,
    /// The next row of `recent` when the round began.
    began: u64,
    /// Everything in the rows before this one was written back.
    written_before: u64,
}

/// What a commit does to what is recent.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Conversations that it changes.
    recent: Vec<(ConversationId, Packed)>,
    /// Conversations that it writes to their tables.
    pub written: Vec<ConversationId>,
}

impl Recent {
    /// Reads what is recent.
    ///
    /// # Errors
    /// The file cannot be read, or a row of `recent` is damaged.
    pub fn read(conn: &Connection) -> Result<Self, StorageError> {
        Self::read_with(conn, LIMITS)
    }

    fn read_with(conn: &Connection, limits: Limits) -> Result<Self, StorageError> {
        let (versions, round) = Versions::read(conn)?;
        let (oldest, next) = table::bounds(conn)?;
        let round = round.unwrap_or(Round {
            cursor: ConversationId(0),
            end: ConversationId(0),
            began: next,
            written_before: oldest,
        });
        let mut rest = versions.ids();
        rest.retain(|id| (round.cursor..=round.end).contains(id));
        Ok(Self { limits, versions: Arc::new(versions), rest: in_order(rest), oldest, next, round })
    }

    /// What is recent as of each commit that a reader sees.
    pub fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// A conversation, if it differs from the tables.
    pub fn get(&self, id: ConversationId) -> Option<RecentConversation> {
        self.versions.newest(id)
    }

    /// Stores the conversations that a commit changes, sorted by id, and writes some back.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(
        &mut self,
        conn: &Connection,
        recent: Vec<(ConversationId, RecentConversation)>,
    ) -> Result<Changes, StorageError> {
        if recent.is_empty() {
            return Ok(Changes::default());
        }
        // Before the new row, which then uses the pages of the old ones.
        self.remove_written(conn)?;
        let bytes = table::append(conn, self.next, self.round, &recent)?;
        self.next += 1;
        // Those that are recent already count twice: too many are written back rather than too few.
        let count = self.versions.len() + recent.len();
        let share = (count * bytes).div_ceil(self.limits.round_bytes);
        // After a start, those count that were written back and are still in a row.
        let excess = count.saturating_sub(self.limits.conversations).min(EXCESS_FACTOR * recent.len());
        let written = self.write_back(conn, share.max(excess), &recent)?;
        let mut buffer = Vec::new();
        let recent = recent.iter().map(|(id, conversation)| (*id, conversation.pack(&mut buffer))).collect();
        Ok(Changes { recent, written })
    }

    /// Writes everything back. Nothing may be staged.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_all_back(&mut self, conn: &Connection) -> Result<Changes, StorageError> {
        self.rest.clear();
        let written = self.write_back(conn, usize::MAX, &[])?;
        execute(conn, "DELETE FROM recent", []).context("remove what was written back")?;
        self.oldest = self.next;
        Ok(Changes { recent: Vec::new(), written })
    }

    /// Takes over what a commit is about to change. No reader may begin until the commit is done.
    pub fn publish(&self, changes: Changes) {
        self.versions.publish(changes);
    }

    fn remove_written(&mut self, conn: &Connection) -> Result<(), StorageError> {
        let end = self.round.written_before.min(self.oldest + REMOVED_AT_ONCE);
        if end > self.oldest {
            execute(conn, "DELETE FROM recent WHERE id < ?1", [Int(end)]).context("remove what was written back")?;
            self.oldest = end;
        }
        Ok(())
    }

    /// Writes the next conversations back. Those in `changed`, sorted by id, are newer than what is known.
    fn write_back(
        &mut self,
        conn: &Connection,
        count: usize,
        changed: &[(ConversationId, RecentConversation)],
    ) -> Result<Vec<ConversationId>, StorageError> {
        if self.rest.is_empty() {
            self.begin_round(changed);
        }
        let from = self.rest.len().saturating_sub(count);
        let mut written = self.rest.split_off(from);
        written.reverse();
        for id in &written {
            match changed.binary_search_by_key(id, |(id, _)| *id) {
                Ok(at) => write(conn, *id, &changed[at].1)?,
                Err(_) => self.get(*id).map_or(Ok(()), |conversation| write(conn, *id, &conversation))?,
            }
        }
        if let Some(last) = written.last() {
            self.round.cursor = ConversationId(last.0.saturating_add(1));
        }
        Ok(written)
    }

    /// Begins the next round, with everything that is recent and what a commit is about to change.
    fn begin_round(&mut self, changed: &[(ConversationId, RecentConversation)]) {
        let mut rest = self.versions.ids();
        rest.extend(changed.iter().map(|(id, _)| *id));
        self.rest = in_order(rest);
        let end = self.rest.first().copied().unwrap_or(ConversationId(0));
        let written_before = self.round.began;
        self.round = Round { cursor: ConversationId(0), end, began: self.next, written_before };
    }
}

/// Sorts ids so that the last one is the first to be written back.
fn in_order(mut ids: Vec<ConversationId>) -> Vec<ConversationId> {
    ids.sort_unstable_by(|one, other| other.cmp(one));
    ids.dedup();
    ids
}

/// Writes a conversation and its members to their tables.
fn write(conn: &Connection, id: ConversationId, recent: &RecentConversation) -> Result<(), StorageError> {
    let Head { last_seq, last_message_revision, last_revision } = recent.head;
    let sql = "UPDATE conversation SET last_seq = ?2, last_message_revision = ?3, last_revision = ?4 WHERE id = ?1";
    execute(conn, sql, params![id, last_seq, last_message_revision, last_revision]).context("write a conversation")?;
    for (account, mark) in &recent.marks {
        let sql = "UPDATE member SET delivered_seq = ?3, read_seq = ?4, sent = ?5, sent_read = ?6, gone = ?7, \
                   receipt_revision = ?8, receipt_ms = ?9, hidden = ?10, shown_seq = ?11, shown_revision = ?12, \
                   shown_ms = ?13 WHERE conversation_id = ?1 AND account_id = ?2";
        let values = params![
            id,
            account,
            mark.delivered,
            mark.read,
            Int(mark.sent),
            Int(mark.sent_read),
            Int(mark.gone),
            mark.receipt_revision,
            mark.receipt_time,
            Int(mark.hidden),
            mark.shown,
            mark.shown_revision,
            mark.shown_time,
        ];
        execute(conn, sql, values).context("write a member")?;
    }
    Ok(())
}
