//! In-memory caches of the applier for the rows that nearly every command needs.
//!
//! The caches are write-through, except for the counters of conversations and of members. These are stored once per
//! transaction, before its commit, as rows that are `recent`. Therefore the caches must not be discarded within a
//! transaction (`trim` runs after the commit), and statements of the applier may read these columns only to fill the
//! cache. After an error all caches are cleared.

mod conversations;
mod generations;

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

pub(super) use self::conversations::{Conversation, MemberMark};
use self::{
    conversations::Conversations,
    generations::{GenerationBytes, Generations, Heap},
};
use crate::db::{Int, execute};
use crate::error::{Context, StorageError};
use crate::recent::{Changes, Recent};
use chat::{AccountId, ConversationId, Privacy, SessionId, TimeMs};

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

/// A row of `usage`: the storage used by an account.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub messages: u64,
    /// Bytes of bodies and tombstones.
    pub bytes: u64,
    /// Whether the row has to be written.
    pub dirty: bool,
}

impl Heap for Session {}
impl Heap for Account {}
impl Heap for Usage {}

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
pub(super) struct Caches {
    /// Not a cache: what differs from the tables, and is overlaid on what they contain.
    recent: Recent,
    sessions: Generations<SessionId, Session>,
    accounts: Generations<Arc<str>, Account>,
    direct: Generations<(AccountId, AccountId), ConversationId>,
    conversations: Conversations,
    usage: Generations<AccountId, Usage>,
    privacy: Generations<AccountId, Privacy>,
    /// Whether any send was ever rejected. In most databases this avoids a lookup for every send.
    rejections: Option<bool>,
    /// Whether any account has privacy settings other than the defaults. It stays true once set; it only saves lookups.
    private: Option<bool>,
    /// Bytes that all of them take at most, apart from what the open transaction uses.
    bytes_max: usize,
}

impl Caches {
    /// Empty caches for the state in a file, which grow to `bytes_max`.
    pub fn of(conn: &Connection, bytes_max: usize) -> Result<Self, StorageError> {
        Ok(Self {
            recent: Recent::read(conn)?,
            sessions: Generations::default(),
            accounts: Generations::default(),
            direct: Generations::default(),
            conversations: Conversations::default(),
            usage: Generations::default(),
            privacy: Generations::default(),
            rejections: None,
            private: None,
            bytes_max,
        })
    }

    /// Changes how large they grow.
    pub fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// What differs from the tables.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Stores the changes of these conversations, sorted by id, before a commit.
    pub fn store(&mut self, conn: &Connection, changed: &[ConversationId]) -> Result<Changes, StorageError> {
        let mut rows = Vec::with_capacity(changed.len());
        for id in changed {
            let conversation = self.known_conversation(conn, *id)?;
            conversation.dirty = false;
            rows.push((*id, conversation.recent()));
        }
        let changes = self.recent.store(conn, rows)?;
        self.note_written(&changes);
        Ok(changes)
    }

    /// Writes everything that is recent to its table.
    pub fn write_all_back(&mut self, conn: &Connection) -> Result<Changes, StorageError> {
        let changes = self.recent.write_all_back(conn)?;
        self.note_written(&changes);
        Ok(changes)
    }

    fn note_written(&mut self, changes: &Changes) {
        for id in &changes.written {
            if let Some(conversation) = self.conversations.opened(*id) {
                conversation.marks.iter_mut().for_each(|at| at.is_recent = false);
            }
        }
    }

    /// Evicts entries not used for a while, if the caches take too much memory. Call it only when no cached row waits
    /// to be written.
    pub fn trim(&mut self) {
        self.conversations.pack();
        let bytes: GenerationBytes = [
            self.sessions.bytes(),
            self.accounts.bytes(),
            self.direct.bytes(),
            self.conversations.bytes(),
            self.usage.bytes(),
            self.privacy.bytes(),
        ]
        .into_iter()
        .sum();
        if bytes.are_too_many(self.bytes_max) {
            self.sessions.age();
            self.accounts.age();
            self.direct.age();
            self.conversations.age();
            self.usage.age();
            self.privacy.age();
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
        let found = super::settings::privacy(conn, account)?;
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

    /// The name of an account.
    pub fn name(&mut self, conn: &Connection, account: AccountId) -> Result<Arc<str>, StorageError> {
        self.conversations.name(conn, account)
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

    /// Notes that an account was deleted.
    pub fn note_deletion(&mut self, account: AccountId) {
        self.conversations.note_deletion(account);
    }

    /// The conversation with an id.
    pub fn conversation(
        &mut self,
        conn: &Connection,
        id: ConversationId,
    ) -> Result<Option<&mut Conversation>, StorageError> {
        self.conversations.get(conn, &self.recent, id)
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
