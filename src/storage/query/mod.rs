//! Questions to the state.
//!
//! [`Readers`] lends read-only connections; each [`Readers::read`] is one read transaction, so that all answers a
//! [`Query`] gives belong to the same revision. Whether that revision is new enough is the caller's concern.
//!
//! Split by subject: sessions and accounts here, `accounts` (devices, lists of sessions, registration), `conversations` (pages, lists, counts), `events` (what a subscription
//! catches up with).

mod accounts;
mod conversations;
mod events;

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Params, Row, params};

pub use self::accounts::{InvitationRow, OpenSession};
pub use self::conversations::{ConversationPage, ConversationSummary, MemberRow, MessageProgress, MessageRow};
use super::db::{self, Int};
use super::error::{Context, StorageError};
use super::shared::SharedState;
use super::{new_cluster, schema};
use crate::chat::{AccountId, ConversationId, Revision, SessionId, TimeMs, TokenHash};

/// Longest wait for a free connection. Reads take milliseconds: who waits that long is one of too many.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest read. A bound of last resort: the largest lists of an account take a small part of it.
const READ_MAX: Duration = Duration::from_secs(2);
/// Steps of SQLite's virtual machine between two looks at the time: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// A pool of read-only connections, for use from many threads.
pub struct Readers {
    /// Who writes the file meanwhile.
    writer: Option<SharedState>,
    path: PathBuf,
    connections: usize,
    pool: Mutex<Pool>,
    freed: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    /// Grows when the file was replaced: connections to the older file are not taken back.
    generation: u64,
}

impl Readers {
    /// Opens `connections` connections (at least one) to `<dir>/chat.db`, which [`super::StateMachine`] has made. They
    /// see what is committed.
    pub fn open(dir: &Path, connections: usize) -> Result<Self, StorageError> {
        let path = db::database_path(dir);
        let connections = connections.max(1);
        let idle = open_all(&path, connections)?;
        let pool = Mutex::new(Pool { idle, generation: 0 });
        Ok(Self { writer: None, path, connections, pool, freed: Condvar::new() })
    }

    /// Opens `connections` connections (at least one) to the file that `writer` writes. They see all it has applied.
    pub fn of(writer: SharedState, connections: usize) -> Result<Self, StorageError> {
        let readers = Self::open(writer.directory(), connections)?;
        Ok(Self { writer: Some(writer), ..readers })
    }

    /// Asks questions in one read transaction. Blocks while all connections are in use.
    ///
    /// # Errors
    /// [`StorageError::ReadTooLong`] after two seconds of SQLite's work, so that no read keeps a connection from the others.
    pub fn read<T>(&self, f: impl FnOnce(&Query<'_>) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let mut lease = self.lease()?;
        if let Some(writer) = &self.writer {
            writer.settle()?;
        }
        let conn = lease.conn.as_mut().expect("a lease has its connection until it is dropped");
        let started = Instant::now();
        conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || started.elapsed() > READ_MAX))
            .context("bound the time of a read")?;
        let transaction = conn.transaction().context("begin to read")?;
        let result = f(&Query { conn: &transaction }).map_err(|error| match error.is_interruption() {
            true => StorageError::ReadTooLong(READ_MAX.as_millis() as u64),
            false => error,
        });
        if let (Some(writer), Err(error)) = (&self.writer, &result)
            && error.is_corruption()
        {
            writer.fail(error);
        }
        result
    }

    /// Turns to the new file after [`super::StateMachine::install_snapshot`]. Reads under way finish on the old one.
    pub fn reopen(&self) -> Result<(), StorageError> {
        let idle = open_all(&self.path, self.connections)?;
        let mut pool = self.pool();
        pool.generation += 1;
        pool.idle = idle;
        drop(pool);
        self.freed.notify_all();
        Ok(())
    }

    /// The state behind the connections; `None` for files that nobody writes.
    pub(super) fn writer(&self) -> Option<&SharedState> {
        self.writer.as_ref()
    }

    fn lease(&self) -> Result<Lease<'_>, StorageError> {
        let (mut pool, _) = self
            .freed
            .wait_timeout_while(self.pool(), WAIT_MAX, |pool| pool.idle.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let conn = pool.idle.pop().ok_or(StorageError::Busy(WAIT_MAX.as_millis() as u64))?;
        Ok(Lease { readers: self, generation: pool.generation, conn: Some(conn) })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Nothing that can panic runs while the lock is held.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_all(path: &Path, connections: usize) -> Result<Vec<Connection>, StorageError> {
    (0..connections)
        .map(|_| {
            let conn = db::open_reader(path)?;
            // The first read also opens the write-ahead log: later its name may mean another file.
            schema::check(&conn, path)?;
            Ok(conn)
        })
        .collect()
}

/// A connection that goes back to the pool, whatever happens to its user.
struct Lease<'a> {
    readers: &'a Readers,
    generation: u64,
    conn: Option<Connection>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.pool();
        if pool.generation == self.generation {
            pool.idle.extend(self.conn.take());
            drop(pool);
            self.readers.freed.notify_one();
        }
    }
}

/// One read transaction.
pub struct Query<'a> {
    conn: &'a Connection,
}

/// An open session. Whether it has expired is for the caller to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The session.
    pub id: SessionId,
    /// Whose.
    pub account: AccountId,
    /// The account's name.
    pub username: String,
    /// When it ends if it is not used again, on the replicated clock.
    pub expires_at: TimeMs,
    /// When it was last noted as used.
    pub used_at: TimeMs,
    /// Milliseconds without use after which it ends; 0: never for that.
    pub idle_ms: u64,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// Its name.
    pub username: String,
    /// PHC string; empty when deleted.
    pub password_hash: String,
    /// Only the name is left.
    pub deleted: bool,
    /// The revision that set the password; 0: the one that made the account.
    pub password_revision: Revision,
    /// An operator has forbidden its logins.
    pub disabled: bool,
}

impl Query<'_> {
    /// The state's revision.
    pub fn revision(&self) -> Result<Revision, StorageError> {
        self.one("SELECT revision FROM state", [], |row| row.get(0)).context("read the revision")
    }

    /// The state's clock.
    pub fn clock(&self) -> Result<TimeMs, StorageError> {
        self.one("SELECT clock_ms FROM state", [], |row| row.get(0)).context("read the clock")
    }

    /// The session that a token opened.
    pub fn session_by_token(&self, token: &TokenHash) -> Result<Option<SessionRow>, StorageError> {
        let sql = "SELECT s.id, s.account_id, a.username, s.ends_ms, s.used_ms, s.idle_ms \
                   FROM session s CROSS JOIN account a ON a.id = s.account_id WHERE s.token_hash = ?1";
        self.maybe(sql, [token], session_row).context("look for a token")
    }

    /// The session of an id.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionRow>, StorageError> {
        let sql = "SELECT s.id, s.account_id, a.username, s.ends_ms, s.used_ms, s.idle_ms \
                   FROM session s CROSS JOIN account a ON a.id = s.account_id WHERE s.id = ?1";
        self.maybe(sql, [id], session_row).context("read a session")
    }

    /// The account of a name, deleted or not.
    pub fn account_by_name(&self, name: &str) -> Result<Option<AccountRow>, StorageError> {
        let sql =
            "SELECT id, username, password_hash, deleted, password_revision, disabled FROM account WHERE username = ?1";
        self.maybe(sql, [name], account_row).context("read an account")
    }

    /// Accounts whose name contains a text (no wildcards), by name, deleted ones too: at most `limit` after the name
    /// `after`, and the number of all that match. Looks at every account's name.
    pub fn accounts(
        &self,
        contains: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<AccountRow>, u64), StorageError> {
        let sql = "SELECT id, username, password_hash, deleted, password_revision, disabled FROM account \
                   WHERE username > ?1 AND instr(username, ?2) > 0 ORDER BY username LIMIT ?3";
        // No name is empty, so that "" comes before all.
        let rows =
            self.all(sql, params![after.unwrap_or(""), contains, limit], account_row).context("list accounts")?;
        let total = self
            .one("SELECT count(*) FROM account WHERE instr(username, ?1) > 0", [contains], |row| row.get::<_, Int>(0))
            .context("count accounts")?;
        Ok((rows, total.0))
    }

    /// The direct conversation of two accounts; with oneself: the notes.
    pub fn direct_conversation(
        &self,
        me: AccountId,
        partner: AccountId,
    ) -> Result<Option<ConversationId>, StorageError> {
        let sql = "SELECT id FROM conversation WHERE direct_low = ?1 AND direct_high = ?2";
        self.maybe(sql, [me.min(partner), me.max(partner)], |row| row.get(0)).context("read a direct conversation")
    }

    /// Whether an account belongs to a conversation.
    pub fn is_member(&self, conversation: ConversationId, account: AccountId) -> Result<bool, StorageError> {
        let sql = "SELECT 1 FROM member WHERE conversation_id = ?1 AND account_id = ?2";
        let found = self.maybe(sql, params![conversation, account], |_| Ok(())).context("look for a member")?;
        Ok(found.is_some())
    }

    /// An account whose deletion has work left. Deletions that still have members to notify come before those that only
    /// overwrite bodies, so that a long erasure delays no event.
    pub fn next_erasure(&self) -> Result<Option<AccountId>, StorageError> {
        self.maybe("SELECT account_id FROM erasure ORDER BY stage, account_id LIMIT 1", [], |row| row.get(0))
            .context("look for an erasure")
    }

    /// Whether a revision was skipped when a backup was restored or a survivor became a new cluster: nothing in this
    /// state has it, but something that is lost may have had it.
    pub fn is_lost(&self, revision: Revision) -> Result<bool, StorageError> {
        new_cluster::is_lost(self.conn, revision)
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.conn.prepare_cached(sql)?.query_row(params, read)
    }

    fn maybe<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.one(sql, params, read).optional()
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.conn.prepare_cached(sql)?.query_map(params, read)?.collect()
    }
}

fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        id: row.get(0)?,
        account: row.get(1)?,
        username: row.get(2)?,
        expires_at: row.get(3)?,
        used_at: row.get(4)?,
        idle_ms: row.get::<_, Int>(5)?.0,
    })
}

fn account_row(row: &Row<'_>) -> rusqlite::Result<AccountRow> {
    Ok(AccountRow {
        id: row.get(0)?,
        username: row.get(1)?,
        password_hash: row.get(2)?,
        deleted: row.get(3)?,
        password_revision: row.get(4)?,
        disabled: row.get(5)?,
    })
}

#[cfg(test)]
mod tests;
