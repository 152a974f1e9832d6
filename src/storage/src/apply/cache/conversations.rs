//! Conversations, as the applier uses them.
//!
//! A conversation is open from its first use in a transaction to the commit, and packed into a few dozen bytes
//! afterwards: there may be many thousands of them, and the less memory they take, the less the processor waits for it.
//!
//! Invariant: a packed conversation has the values that a load from the database would give, apart from `deleted`
//! accounts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _};

use super::generations::{GenerationBytes, Generations, Heap};
use crate::{
    error::{Context as _, StorageError},
    history::{Jumps, Link},
    numbers::{self, Numbers},
    recent::{self, ConversationRow, Head, Mark, Recent, RecentConversation},
};
use chat::{AccountId, ConversationId, Member, Revision, Seq};

/// Maximum number of remembered deleted accounts. Beyond it the packed conversations are dropped and read again.
const DELETED_MAX: usize = 4096;

/// A row of `conversation`, with its members.
#[derive(Debug)]
pub(in crate::apply) struct Conversation {
    pub members: Arc<[Member]>,
    /// One for each member, in the same order.
    pub marks: Vec<MemberMark>,
    pub direct: bool,
    pub head: Head,
    /// Messages that the next message may link to.
    pub jumps: Jumps,
    /// Whether the open transaction has changed any of the rows.
    pub dirty: bool,
}

/// A row of `member`.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::apply) struct MemberMark {
    pub mark: Mark,
    /// Whether the member's account was deleted.
    pub has_left: bool,
    /// Whether the row differs from its table.
    pub is_recent: bool,
}

impl Conversation {
    /// The position of `account` among the members.
    pub fn position(&self, account: AccountId) -> Option<usize> {
        self.members.iter().position(|member| member.account == account)
    }

    /// The recipients of a message: their positions and accounts, and whether the message is still unread for them.
    pub fn recipients(&self, message: &Link) -> Vec<(usize, AccountId, bool)> {
        let members = self.members.iter().zip(&self.marks).enumerate();
        members
            .filter(|(_, (member, _))| member.account != message.sender)
            .map(|(position, (member, at))| (position, member.account, at.mark.read < message.seq))
            .collect()
    }

    /// Whether the account of a member was deleted. All of its messages are then tombstones, overwritten or not.
    pub fn has_left(&self, account: AccountId) -> bool {
        self.position(account).is_some_and(|position| self.marks[position].has_left)
    }

    /// Whether all other members have deleted their accounts, so that none of their messages counts as unread.
    pub fn others_have_left(&self, position: usize) -> bool {
        let mut others = self.marks.iter().enumerate().filter(|(at, _)| *at != position).peekable();
        others.peek().is_some() && others.all(|(_, at)| at.has_left)
    }

    /// Counts an unread message that was deleted, or that the member hid. Returns the new count.
    pub fn one_more_gone(&mut self, position: usize) -> u64 {
        let mark = self.mark(position);
        mark.gone += 1;
        mark.gone
    }

    /// Counts a message that a member hid from itself.
    pub fn one_more_hidden(&mut self, position: usize) {
        self.mark(position).hidden += 1;
    }

    /// The mark of a member, to be changed.
    pub fn mark(&mut self, position: usize) -> &mut Mark {
        let at = &mut self.marks[position];
        at.is_recent = true;
        &mut at.mark
    }

    /// The values that differ from the tables.
    pub(super) fn recent(&self) -> RecentConversation {
        let members = self.members.iter().zip(&self.marks).filter(|(_, at)| at.is_recent);
        RecentConversation { head: self.head, marks: members.map(|(member, at)| (member.account, at.mark)).collect() }
    }
}

/// A conversation as numbers of variable length, without what is known elsewhere: the names of its members, and which
/// rows differ from their tables.
#[derive(Debug)]
struct Packed(Box<[u8]>);

impl Heap for Packed {
    fn heap_bytes(&self) -> usize {
        self.0.len()
    }
}

/// An unpacked conversation that still lacks the members' names.
struct Unpacked {
    accounts: Vec<AccountId>,
    marks: Vec<MemberMark>,
    direct: bool,
    head: Head,
    jumps: Jumps,
}

impl Packed {
    fn of(conversation: &Conversation, buffer: &mut Vec<u8>) -> Self {
        buffer.clear();
        let Conversation { direct, head, jumps, .. } = conversation;
        numbers::put([(*direct).into(), conversation.marks.len() as u64], buffer);
        numbers::put(head.numbers(), buffer);
        for (member, at) in conversation.members.iter().zip(&conversation.marks) {
            numbers::put([member.account.0, at.has_left.into()], buffer);
            numbers::put(at.mark.numbers(), buffer);
        }
        jumps.iter().for_each(|(seq, revision)| numbers::put([seq.0, revision.0], buffer));
        Self(buffer.as_slice().into())
    }

    fn unpack(&self) -> Unpacked {
        let mut numbers = Numbers::of(&self.0);
        let [direct, count] = numbers.take();
        let head = Head::from_numbers(numbers.take());
        let member = |_| {
            let [account, has_left] = numbers.take();
            let mark = Mark::from_numbers(numbers.take());
            (AccountId(account), MemberMark { mark, has_left: has_left != 0, is_recent: false })
        };
        let (accounts, marks) = (0..count).map(member).unzip();
        let mut jumps = Vec::new();
        while !numbers.is_empty() {
            let [seq, revision] = numbers.take();
            jumps.push((Seq(seq), Revision(revision)));
        }
        Unpacked { accounts, marks, direct: direct != 0, head, jumps: jumps.into() }
    }
}

/// The conversations in memory.
#[derive(Default)]
pub(super) struct Conversations {
    open: HashMap<ConversationId, Conversation>,
    packed: Generations<ConversationId, Packed>,
    names: Generations<AccountId, Arc<str>>,
    /// Accounts deleted since any of the packed conversations was read.
    deleted: HashSet<AccountId>,
    /// Kept for its memory.
    buffer: Vec<u8>,
}

impl Conversations {
    /// The conversation with an id.
    pub fn get(
        &mut self,
        conn: &Connection,
        recent: &Recent,
        id: ConversationId,
    ) -> Result<Option<&mut Conversation>, StorageError> {
        // Looked up twice, because a borrow that is returned early would last for the whole function.
        if !self.open.contains_key(&id) {
            let Some(conversation) = self.find(conn, recent, id)? else { return Ok(None) };
            self.open.insert(id, conversation);
        }
        let found = self.open.get_mut(&id);
        if self.deleted.is_empty() {
            return Ok(found);
        }
        let Some(conversation) = found else { return Ok(None) };
        for (member, at) in conversation.members.iter().zip(&mut conversation.marks) {
            at.has_left |= self.deleted.contains(&member.account);
        }
        Ok(Some(conversation))
    }

    /// An open conversation.
    pub fn opened(&mut self, id: ConversationId) -> Option<&mut Conversation> {
        self.open.get_mut(&id)
    }

    /// Notes that an account was deleted. Conversations are updated on their next use.
    pub fn note_deletion(&mut self, account: AccountId) {
        self.deleted.insert(account);
    }

    /// Packs what is open. None of it may wait to be stored.
    pub fn pack(&mut self) {
        for (id, conversation) in self.open.drain() {
            self.packed.insert(id, Packed::of(&conversation, &mut self.buffer));
        }
        // A transaction with many must not keep the memory of a large table.
        self.open.shrink_to(1024);
        if self.deleted.len() > DELETED_MAX {
            self.deleted.clear();
            self.packed = Generations::default();
        }
    }

    pub fn bytes(&self) -> GenerationBytes {
        [self.packed.bytes(), self.names.bytes()].into_iter().sum()
    }

    /// Drops what was not used since the last call.
    pub fn age(&mut self) {
        self.packed.age();
        self.names.age();
    }

    fn find(
        &mut self,
        conn: &Connection,
        recent: &Recent,
        id: ConversationId,
    ) -> Result<Option<Conversation>, StorageError> {
        let recent = recent.get(id);
        let Some(packed) = self.packed.get(&id) else { return self.load(conn, id, recent.as_ref()) };
        let Unpacked { accounts, mut marks, direct, head, jumps } = packed.unpack();
        let mut members = Vec::with_capacity(accounts.len());
        for (account, at) in accounts.into_iter().zip(&mut marks) {
            members.push(Member { account, username: self.name(conn, account)? });
            at.is_recent = recent.as_ref().is_some_and(|recent| recent.mark(account).is_some());
        }
        Ok(Some(Conversation { members: members.into(), marks, direct, head, jumps, dirty: false }))
    }

    fn load(
        &mut self,
        conn: &Connection,
        id: ConversationId,
        recent: Option<&RecentConversation>,
    ) -> Result<Option<Conversation>, StorageError> {
        let Some(ConversationRow { is_direct, head }) = recent::conversation(conn, id, recent)? else {
            return Ok(None);
        };
        let rows = recent::members(conn, id, recent)?;
        let marks =
            rows.iter().map(|row| MemberMark { mark: row.mark, has_left: row.has_left, is_recent: row.is_recent });
        let marks = marks.collect();
        let members = rows.into_iter().map(|row| {
            let username = self.names.get(&row.account).cloned();
            let username = username.unwrap_or_else(|| self.names.insert(row.account, row.username).clone());
            Member { account: row.account, username }
        });
        let members = members.collect();
        let jumps = Jumps::load(conn, head.last_message_revision)?;
        Ok(Some(Conversation { members, marks, direct: is_direct, head, jumps, dirty: false }))
    }

    /// The name of an account. It never changes.
    pub fn name(&mut self, conn: &Connection, account: AccountId) -> Result<Arc<str>, StorageError> {
        if let Some(name) = self.names.get(&account) {
            return Ok(Arc::clone(name));
        }
        let name: Option<Arc<str>> = conn
            .prepare_cached("SELECT username FROM account WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([account], |row| row.get(0)).optional())
            .context("read the name of an account")?;
        let name = name.ok_or_else(|| StorageError::Corrupt(format!("member {account} has no account")))?;
        Ok(self.names.insert(account, name).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A conversation whose numbers all differ.
    fn conversation() -> Conversation {
        let member = |id, name: &str| Member { account: AccountId(id), username: name.into() };
        let mark = |from| Mark::from_numbers(std::array::from_fn(|at| from + at as u64 * 1000));
        Conversation {
            members: [member(7, "one"), member(8, "two")].into(),
            marks: vec![
                MemberMark { mark: mark(1), has_left: false, is_recent: false },
                MemberMark { mark: mark(u64::MAX / 2), has_left: true, is_recent: false },
            ],
            direct: true,
            head: Head::from_numbers([11, 12, 13]),
            jumps: vec![(Seq(8), Revision(80)), (Seq(12), Revision(120))].into(),
            dirty: false,
        }
    }

    #[test]
    fn nothing_is_lost_in_packing() {
        let whole = conversation();
        let unpacked = Packed::of(&whole, &mut vec![1, 2, 3]).unpack();
        assert_eq!(unpacked.accounts, [AccountId(7), AccountId(8)]);
        assert_eq!(format!("{:?}", unpacked.marks), format!("{:?}", whole.marks));
        assert_eq!((unpacked.direct, unpacked.head), (true, whole.head));
        assert!(unpacked.jumps.iter().eq(whole.jumps.iter()));
    }
}
