//! In-memory caches of the applier for the rows that nearly every command needs.
//!
//! The caches are write-through, except for the counters of conversations and of members. These are written once per
//! transaction, before its commit. Therefore the caches must not be discarded within a transaction (`trim` runs after
//! the commit), and statements of the applier may read these columns only to fill the cache. After an error all caches
//! are cleared.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::mem;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::execute;
use crate::chat::{AccountId, ConversationId, Member, Privacy, Revision, Seq, SessionId, TimeMs};
use crate::storage::db::Int;
use crate::storage::error::{Context, StorageError};
use crate::storage::history::{Jumps, Link};

/// Maximum size of the younger generation before it becomes the older one. About twice as many entries are held at
/// most.
const ENTRIES_MAX: usize = 32 * 1024;
/// Maximum number of remembered deleted accounts. Beyond it the cached conversations are dropped and read again.
const DELETED_MAX: usize = 4096;

/// A map that evicts entries not used for a while. It has two generations, and drops the older one as a whole.
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Hash + Eq, V> Generations<K, V> {
    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.young.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// Inserts a key that is not in the map.
    fn insert(&mut self, key: K, value: V) -> &mut V {
        self.young.entry(key).insert_entry(value).into_mut()
    }

    fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    fn trim(&mut self) {
        if self.young.len() >= ENTRIES_MAX {
            self.old = mem::take(&mut self.young);
        }
    }
}

/// A row of `session`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    pub account: AccountId,
    /// Time at which the session ends, by its lifetime or its idle timeout.
    pub expires: TimeMs,
}

/// A row of `account`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub id: AccountId,
    pub deleted: bool,
}

/// A row of `conversation`, with its members.
#[derive(Debug)]
pub(super) struct Conversation {
    pub members: Arc<[Member]>,
    /// One for each member, in the same order.
    pub marks: Vec<Mark>,
    pub direct: bool,
    pub last_seq: Seq,
    pub last_message_revision: Revision,
    pub last_revision: Revision,
    /// Messages that the next message may link to.
    pub jumps: Jumps,
    /// Whether any of the rows has to be written.
    pub dirty: bool,
}

/// A row of `member`.
#[derive(Debug, Clone, Copy, Default)]
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
    /// Whether the member's account was deleted.
    pub has_left: bool,
    /// Whether the row has to be written.
    pub dirty: bool,
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
            .map(|(position, (member, mark))| (position, member.account, mark.read < message.seq))
            .collect()
    }

    /// Whether the account of a member was deleted. All of its messages are then tombstones, overwritten or not.
    pub fn has_left(&self, account: AccountId) -> bool {
        self.position(account).is_some_and(|position| self.marks[position].has_left)
    }

    /// Whether all other members have deleted their accounts, so that none of their messages counts as unread.
    pub fn others_have_left(&self, position: usize) -> bool {
        let mut others = self.marks.iter().enumerate().filter(|(at, _)| *at != position).peekable();
        others.peek().is_some() && others.all(|(_, mark)| mark.has_left)
    }

    /// Counts an unread message that was deleted, or that the member hid. Returns the new count.
    pub fn one_more_gone(&mut self, position: usize) -> u64 {
        let mark = &mut self.marks[position];
        mark.gone += 1;
        mark.dirty = true;
        mark.gone
    }

    /// Counts a message that a member hid from itself.
    pub fn one_more_hidden(&mut self, position: usize) {
        let mark = &mut self.marks[position];
        mark.hidden += 1;
        mark.dirty = true;
    }

    /// Writes the row of the conversation, and the changed rows of its members.
    pub fn write(&mut self, conn: &Connection, id: ConversationId) -> Result<(), StorageError> {
        let sql = "UPDATE conversation SET last_seq = ?2, last_message_revision = ?3, last_revision = ?4 WHERE id = ?1";
        execute(conn, sql, params![id, self.last_seq, self.last_message_revision, self.last_revision])
            .context("write a conversation")?;
        for (member, mark) in self.members.iter().zip(&mut self.marks) {
            if mark.dirty {
                let sql = "UPDATE member SET delivered_seq = ?3, read_seq = ?4, sent = ?5, sent_read = ?6, gone = ?7, \
                           receipt_revision = ?8, receipt_ms = ?9, hidden = ?10, shown_seq = ?11, \
                           shown_revision = ?12, shown_ms = ?13 WHERE conversation_id = ?1 AND account_id = ?2";
                let values = params![
                    id,
                    member.account,
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
                mark.dirty = false;
            }
        }
        self.dirty = false;
        Ok(())
    }
}

/// A row of `usage`: the storage used by an account.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub messages: u64,
    /// Bytes of bodies and tombstones.
    pub bytes: u64,
    /// Whether the row has to be written.
    pub dirty: bool,
}

impl Usage {
    /// Writes the row.
    pub fn write(&mut self, conn: &Connection, account: AccountId) -> Result<(), StorageError> {
        let sql = "INSERT INTO usage (account_id, messages, bytes) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (account_id) DO UPDATE SET messages = excluded.messages, bytes = excluded.bytes";
        execute(conn, sql, params![account, Int(self.messages), Int(self.bytes)]).context("write the usage")?;
        self.dirty = false;
        Ok(())
    }
}

/// All caches of the applier.
#[derive(Default)]
pub(super) struct Caches {
    sessions: Generations<SessionId, Session>,
    accounts: Generations<Arc<str>, Account>,
    direct: Generations<(AccountId, AccountId), ConversationId>,
    conversations: Generations<ConversationId, Conversation>,
    usage: Generations<AccountId, Usage>,
    privacy: Generations<AccountId, Privacy>,
    /// Accounts deleted while their conversations may have been cached.
    deleted: HashSet<AccountId>,
    /// Whether any send was ever rejected. In most databases this avoids a lookup for every send.
    rejections: Option<bool>,
    /// Whether any account has privacy settings other than the defaults. It stays true once set; it only saves lookups.
    private: Option<bool>,
}

impl Caches {
    /// Clears all caches.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Evicts entries not used for a while. Call it only when no cached row waits to be written.
    pub fn trim(&mut self) {
        self.sessions.trim();
        self.accounts.trim();
        self.direct.trim();
        self.conversations.trim();
        self.usage.trim();
        self.privacy.trim();
        if self.deleted.len() > DELETED_MAX {
            self.deleted.clear();
            self.conversations = Generations::default();
        }
    }

    /// Whether any rejected send is stored.
    pub fn has_rejections(&mut self, conn: &Connection) -> Result<bool, StorageError> {
        if let Some(known) = self.rejections {
            return Ok(known);
        }
        let found = conn
            .query_row("SELECT EXISTS (SELECT 1 FROM rejected_send)", [], |row| row.get(0))
            .context("look for rejections")?;
        self.rejections = Some(found);
        Ok(found)
    }

    /// Notes that a rejected send is stored.
    pub fn note_rejection(&mut self) {
        self.rejections = Some(true);
    }

    /// The privacy settings of an account.
    pub fn privacy(&mut self, conn: &Connection, account: AccountId) -> Result<Privacy, StorageError> {
        if !self.is_any_private(conn)? {
            return Ok(Privacy::default());
        }
        if let Some(privacy) = self.privacy.get(&account) {
            return Ok(*privacy);
        }
        let found = super::privacy::privacy(conn, account)?;
        Ok(*self.privacy.insert(account, found))
    }

    fn is_any_private(&mut self, conn: &Connection) -> Result<bool, StorageError> {
        if let Some(known) = self.private {
            return Ok(known);
        }
        let found = conn
            .query_row("SELECT EXISTS (SELECT 1 FROM privacy)", [], |row| row.get(0))
            .context("look for privacy settings")?;
        self.private = Some(found);
        Ok(found)
    }

    /// Evicts the privacy settings of an account after a change.
    pub fn forget_privacy(&mut self, account: AccountId) {
        self.privacy.remove(&account);
        self.private = Some(true);
    }

    /// The session with an id.
    pub fn session(&mut self, conn: &Connection, id: SessionId) -> Result<Option<Session>, StorageError> {
        if let Some(session) = self.sessions.get(&id) {
            return Ok(Some(*session));
        }
        let found = conn
            .prepare_cached("SELECT account_id, ends_ms FROM session WHERE id = ?1")
            .and_then(|mut statement| {
                statement.query_row([id], |row| Ok(Session { account: row.get(0)?, expires: row.get(1)? })).optional()
            })
            .context("read a session")?;
        Ok(found.map(|session| *self.sessions.insert(id, session)))
    }

    /// Evicts a session after it was closed or changed.
    pub fn forget_session(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    /// The account with a name.
    pub fn account(&mut self, conn: &Connection, name: &str) -> Result<Option<Account>, StorageError> {
        if let Some(account) = self.accounts.get(name) {
            return Ok(Some(*account));
        }
        let found = conn
            .prepare_cached("SELECT id, deleted FROM account WHERE username = ?1")
            .and_then(|mut statement| {
                statement.query_row([name], |row| Ok(Account { id: row.get(0)?, deleted: row.get(1)? })).optional()
            })
            .context("read an account")?;
        Ok(found.map(|account| *self.accounts.insert(name.into(), account)))
    }

    /// Evicts an account after its row was changed.
    pub fn forget_account(&mut self, name: &str) {
        self.accounts.remove(name);
    }

    /// The direct conversation of two accounts, in either order.
    pub fn direct(
        &mut self,
        conn: &Connection,
        one: AccountId,
        other: AccountId,
    ) -> Result<Option<ConversationId>, StorageError> {
        let pair = (one.min(other), one.max(other));
        if let Some(id) = self.direct.get(&pair) {
            return Ok(Some(*id));
        }
        let found = conn
            .prepare_cached("SELECT id FROM conversation WHERE direct_low = ?1 AND direct_high = ?2")
            .and_then(|mut statement| statement.query_row([pair.0, pair.1], |row| row.get(0)).optional())
            .context("read a direct conversation")?;
        Ok(found.map(|id| *self.direct.insert(pair, id)))
    }

    /// The storage used by an account.
    pub fn usage(&mut self, conn: &Connection, account: AccountId) -> Result<&mut Usage, StorageError> {
        // Looked up twice, because a borrow that is returned early would last for the whole function.
        if self.usage.get(&account).is_none() {
            let found = conn
                .prepare_cached("SELECT messages, bytes FROM usage WHERE account_id = ?1")
                .and_then(|mut statement| {
                    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Int>(0)?.0, row.get::<_, Int>(1)?.0));
                    statement.query_row([account], read).optional()
                })
                .context("read the usage")?;
            let (messages, bytes) = found.unwrap_or_default();
            return Ok(self.usage.insert(account, Usage { messages, bytes, dirty: false }));
        }
        self.usage.get(&account).ok_or(StorageError::Closed)
    }

    /// Notes that an account was deleted. Cached conversations are updated on their next use.
    pub fn note_deletion(&mut self, account: AccountId) {
        self.deleted.insert(account);
    }

    /// The conversation with an id.
    pub fn conversation(
        &mut self,
        conn: &Connection,
        id: ConversationId,
    ) -> Result<Option<&mut Conversation>, StorageError> {
        // Looked up twice, because a borrow that is returned early would last for the whole function.
        if self.conversations.get(&id).is_none() {
            match load(conn, id)? {
                None => return Ok(None),
                Some(conversation) => return Ok(Some(self.conversations.insert(id, conversation))),
            }
        }
        let found = self.conversations.get(&id);
        if self.deleted.is_empty() {
            return Ok(found);
        }
        let Some(conversation) = found else { return Ok(None) };
        for (member, mark) in conversation.members.iter().zip(&mut conversation.marks) {
            mark.has_left |= self.deleted.contains(&member.account);
        }
        Ok(Some(conversation))
    }

    /// A conversation that a row refers to.
    pub fn known_conversation(
        &mut self,
        conn: &Connection,
        id: ConversationId,
    ) -> Result<&mut Conversation, StorageError> {
        self.conversation(conn, id)?
            .ok_or_else(|| StorageError::Corrupt(format!("conversation {id} is referred to and missing")))
    }
}

fn load(conn: &Connection, id: ConversationId) -> Result<Option<Conversation>, StorageError> {
    let sql = "SELECT direct_low IS NOT NULL, last_seq, last_message_revision, last_revision FROM conversation \
               WHERE id = ?1";
    let row = conn
        .prepare_cached(sql)
        .and_then(|mut statement| {
            statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).optional()
        })
        .context("read a conversation")?;
    let Some((direct, last_seq, last_message_revision, last_revision)) = row else { return Ok(None) };
    let (members, marks) = load_members(conn, id).context("read the members of a conversation")?;
    let conversation = Conversation {
        members: members.into(),
        marks,
        direct,
        last_seq,
        last_message_revision,
        last_revision,
        jumps: Jumps::load(conn, last_message_revision)?,
        dirty: false,
    };
    Ok(Some(conversation))
}

fn load_members(conn: &Connection, id: ConversationId) -> rusqlite::Result<(Vec<Member>, Vec<Mark>)> {
    let sql = "SELECT m.account_id, a.username, m.delivered_seq, m.read_seq, m.sent, m.sent_read, m.gone, \
               m.receipt_revision, m.receipt_ms, a.deleted, m.hidden, m.shown_seq, m.shown_revision, m.shown_ms \
               FROM member m CROSS JOIN account a ON a.id = m.account_id \
               WHERE m.conversation_id = ?1 ORDER BY m.account_id";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map([id], |row| {
        let member = Member { account: row.get(0)?, username: row.get(1)? };
        let mark = Mark {
            delivered: row.get(2)?,
            read: row.get(3)?,
            sent: row.get::<_, Int>(4)?.0,
            sent_read: row.get::<_, Int>(5)?.0,
            gone: row.get::<_, Int>(6)?.0,
            receipt_revision: row.get(7)?,
            receipt_time: row.get(8)?,
            has_left: row.get(9)?,
            hidden: row.get::<_, Int>(10)?.0,
            shown: row.get(11)?,
            shown_revision: row.get(12)?,
            shown_time: row.get(13)?,
            dirty: false,
        };
        Ok((member, mark))
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_survives_what_is_not() {
        let mut map = Generations::default();
        map.insert(0, "kept");
        map.insert(1, "forgotten");
        for round in 1..=3 {
            map.young.extend((0..ENTRIES_MAX).map(|i| (round * ENTRIES_MAX * 2 + i, "filler")));
            map.trim();
            assert_eq!(map.get(&0), Some(&mut "kept"));
            assert!(map.young.len() + map.old.len() <= 2 * ENTRIES_MAX + 2);
        }
        assert_eq!(map.get(&1), None);
    }
}
