//! Queries on the state.
//!
//! [`Readers`] lends read-only connections. Each [`Readers::read`] is one read transaction, so that all results of a
//! [`Query`] belong to the same revision. The caller decides whether that revision is recent enough.
//!
//! Split by subject: sessions and accounts here, `accounts` (devices, lists of sessions, registration), `conversations`
//! (pages, lists, counts), `events` (past events for a resumed subscription).

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

/// Maximum wait for a free connection. Reads take milliseconds, so a longer wait means overload.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Maximum duration of a read. A last resort: the largest lists of an account need a small part of it.
const READ_MAX: Duration = Duration::from_secs(2);
/// Steps of SQLite's virtual machine between checks of the time: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// A pool of read-only connections, for use from many threads.
pub struct Readers {
    /// The state machine that writes the file, if any.
    writer: Option<SharedState>,
    path: PathBuf,
    connections: usize,
    pool: Mutex<Pool>,
    freed: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    /// Incremented when the file is replaced. Connections to the older file are not returned to the pool.
    generation: u64,
}

impl Readers {
    /// Opens `connections` connections (at least one) to `<dir>/chat.db`, which [`super::StateMachine`] has created.
    /// They read committed data.
    pub fn open(dir: &Path, connections: usize) -> Result<Self, StorageError> {
        let path = db::database_path(dir);
        let connections = connections.max(1);
        let idle = open_all(&path, connections)?;
        let pool = Mutex::new(Pool { idle, generation: 0 });
        Ok(Self { writer: None, path, connections, pool, freed: Condvar::new() })
    }

    /// Opens `connections` connections (at least one) to the file that `writer` writes. They read everything it has
    /// applied.
    pub fn of(writer: SharedState, connections: usize) -> Result<Self, StorageError> {
        let readers = Self::open(writer.directory(), connections)?;
        Ok(Self { writer: Some(writer), ..readers })
    }

    /// Runs `f` in one read transaction. Blocks while all connections are in use.
    ///
    /// # Errors
    /// [`StorageError::ReadTooLong`] if SQLite is still working after two seconds, so that no read occupies a
    /// connection for longer. [`StorageError::Busy`] if no connection becomes free. The error of the commit that
    /// precedes the read, or of `f`.
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

    /// Switches to the new file after [`super::StateMachine::install_snapshot`]. Reads in progress finish on the old
    /// file.
    pub fn reopen(&self) -> Result<(), StorageError> {
        let idle = open_all(&self.path, self.connections)?;
        let mut pool = self.pool();
        pool.generation += 1;
        pool.idle = idle;
        drop(pool);
        self.freed.notify_all();
        Ok(())
    }

    /// The state machine behind the connections; `None` for a file without a writer.
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
            // The check reads, and thereby also opens the write-ahead log. Later its name may refer to another file.
            schema::check(&conn, path)?;
            Ok(conn)
        })
        .collect()
}

/// A connection that returns to the pool when it is dropped, even after a panic.
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

/// An open session. The caller has to check whether it has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The session.
    pub id: SessionId,
    /// The account of the session.
    pub account: AccountId,
    /// The account's name.
    pub username: String,
    /// Time at which it ends unless it is used again, on the replicated clock.
    pub expires_at: TimeMs,
    /// Time of its last recorded use.
    pub used_at: TimeMs,
    /// Idle timeout in milliseconds; 0 means none.
    pub idle_ms: u64,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// The account's id.
    pub id: AccountId,
    /// The account's name.
    pub username: String,
    /// PHC string; empty if the account is deleted.
    pub password_hash: String,
    /// Whether the account is deleted, so that only its name is left.
    pub deleted: bool,
    /// The revision that set the password; 0 means the revision that created the account.
    pub password_revision: Revision,
    /// Whether an operator has disabled logins.
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

    /// The session with an id.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionRow>, StorageError> {
        let sql = "SELECT s.id, s.account_id, a.username, s.ends_ms, s.used_ms, s.idle_ms \
                   FROM session s CROSS JOIN account a ON a.id = s.account_id WHERE s.id = ?1";
        self.maybe(sql, [id], session_row).context("read a session")
    }

    /// The account with a name, deleted or not.
    pub fn account_by_name(&self, name: &str) -> Result<Option<AccountRow>, StorageError> {
        let sql =
            "SELECT id, username, password_hash, deleted, password_revision, disabled FROM account WHERE username = ?1";
        self.maybe(sql, [name], account_row).context("read an account")
    }

    /// Accounts whose name contains a text (no wildcards), sorted by name, including deleted ones. Returns at most
    /// `limit` after the name `after`, and the total number of matches. Scans the names of all accounts.
    pub fn accounts(
        &self,
        contains: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<AccountRow>, u64), StorageError> {
        let sql = "SELECT id, username, password_hash, deleted, password_revision, disabled FROM account \
                   WHERE username > ?1 AND instr(username, ?2) > 0 ORDER BY username LIMIT ?3";
        // No name is empty, so "" sorts before all names.
        let rows =
            self.all(sql, params![after.unwrap_or(""), contains, limit], account_row).context("list accounts")?;
        let total = self
            .one("SELECT count(*) FROM account WHERE instr(username, ?1) > 0", [contains], |row| row.get::<_, Int>(0))
            .context("count accounts")?;
        Ok((rows, total.0))
    }

    /// The direct conversation of two accounts. With the same account twice, it is that account's notes.
    pub fn direct_conversation(
        &self,
        me: AccountId,
        partner: AccountId,
    ) -> Result<Option<ConversationId>, StorageError> {
        let sql = "SELECT id FROM conversation WHERE direct_low = ?1 AND direct_high = ?2";
        self.maybe(sql, [me.min(partner), me.max(partner)], |row| row.get(0)).context("read a direct conversation")
    }

    /// Whether an account is a member of a conversation.
    pub fn is_member(&self, conversation: ConversationId, account: AccountId) -> Result<bool, StorageError> {
        let sql = "SELECT 1 FROM member WHERE conversation_id = ?1 AND account_id = ?2";
        let found = self.maybe(sql, params![conversation, account], |_| Ok(())).context("look for a member")?;
        Ok(found.is_some())
    }

    /// An account whose deletion has remaining work. Deletions that still have to notify members come before those that
    /// only overwrite bodies, so that a long erasure delays no event.
    pub fn next_erasure(&self) -> Result<Option<AccountId>, StorageError> {
        self.maybe("SELECT account_id FROM erasure ORDER BY stage, account_id LIMIT 1", [], |row| row.get(0))
            .context("look for an erasure")
    }

    /// Whether a revision was skipped when a backup was restored or a surviving node became a new cluster. Nothing in
    /// this state has that revision, but lost data may have had it.
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
