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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Params, Row, params};

pub use self::accounts::{InvitationRow, OpenSession};
pub use self::conversations::{ConversationPage, ConversationSummary, MemberRow, MessageProgress, MessageRow};
use super::cache_size::CacheSize;
use super::db::{self, Int};
use super::error::{Context, StorageError};
use super::recent::RecentRows;
use super::schema;
use super::shared::SharedState;
use chat::{AccountId, ConversationId, Revision, SessionId, TimeMs, TokenHash};

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
    /// Bytes of pages that each of them keeps.
    page_cache: usize,
    pool: Mutex<Pool>,
    freed: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    /// The number of the file.
    file: u64,
    /// Incremented when connections are replaced. Earlier ones are not returned to the pool.
    generation: u64,
}

impl Readers {
    /// Opens `connections` connections (at least one) to `<dir>/chat.db`, which [`super::StateMachine`] has created.
    /// They read committed data.
    pub fn open(dir: &Path, connections: usize) -> Result<Self, StorageError> {
        let path = db::database_path(dir);
        Self::connect(path, connections.max(1), None)
    }

    fn connect(path: PathBuf, connections: usize, writer: Option<SharedState>) -> Result<Self, StorageError> {
        let file = writer.as_ref().map_or(0, SharedState::file);
        let cache_size = writer.as_ref().map_or_else(CacheSize::default, SharedState::cache_size);
        let page_cache = cache_size.readers / connections;
        let pool = Mutex::new(Pool { idle: open_all(&path, connections, page_cache)?, file, generation: 0 });
        Ok(Self { writer, path, connections, page_cache, pool, freed: Condvar::new() })
    }

    /// Opens `connections` connections (at least one) to the file that `writer` writes. They read everything it has
    /// applied.
    pub fn of(writer: SharedState, connections: usize) -> Result<Self, StorageError> {
        Self::connect(db::database_path(writer.directory()), connections.max(1), Some(writer))
    }

    /// Runs `f` in one read transaction. Blocks while all connections are in use.
    ///
    /// # Errors
    /// [`StorageError::ReadTooLong`] if SQLite is still working after two seconds, so that no read occupies a
    /// connection for longer. [`StorageError::Busy`] if no connection becomes free. The error of the commit that
    /// precedes the read, or of `f`.
    pub fn read<T>(&self, f: impl FnOnce(&Query<'_>) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let mut lease = self.lease(deadline)?;
            if let Some(writer) = &self.writer {
                writer.commit_staged()?;
            }
            let (file, generation) = (lease.file, lease.generation);
            let conn = lease.conn.as_mut().expect("a lease has its connection until it is dropped");
            // The wait for a commit in progress does not count.
            let started = Arc::new(OnceLock::<Instant>::new());
            let begun = Arc::clone(&started);
            let is_late = move || begun.get().is_some_and(|begun| begun.elapsed() > READ_MAX);
            conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_late)).context("bound the time of a read")?;
            let transaction = conn.transaction().context("begin to read")?;
            if let Some(recent) = self.observed(self.begin(&transaction, file))? {
                started.get_or_init(Instant::now);
                return self.observed(f(&Query { conn: &transaction, recent }));
            }
            drop(transaction);
            drop(lease);
            self.wait_for_another(generation, deadline)?;
        }
    }

    /// Begins a read transaction. Returns what is recent in it, or `None` if the file was replaced.
    fn begin(&self, conn: &Connection, file: u64) -> Result<Option<RecentRows>, StorageError> {
        match &self.writer {
            Some(writer) => writer.begin_read(conn, file),
            None => RecentRows::read(conn).map(Some),
        }
    }

    /// The result of a read. Damage ends the use of the state.
    fn observed<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        let result = result.map_err(|error| match error.is_interruption() {
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
        // Read before the file is opened: if it is replaced in between, the connections count as those to an older one.
        let file = self.writer.as_ref().map_or(0, SharedState::file);
        let idle = open_all(&self.path, self.connections, self.page_cache)?;
        let mut pool = self.pool();
        *pool = Pool { idle, file, generation: pool.generation + 1 };
        drop(pool);
        self.freed.notify_all();
        Ok(())
    }

    /// The state machine behind the connections; `None` for a file without a writer.
    pub(super) fn writer(&self) -> Option<&SharedState> {
        self.writer.as_ref()
    }

    fn lease(&self, deadline: Instant) -> Result<Lease<'_>, StorageError> {
        let mut pool = self.wait(deadline, |pool| pool.idle.is_empty());
        let conn = pool.idle.pop().ok_or(StorageError::Busy(WAIT_MAX.as_millis() as u64))?;
        Ok(Lease { readers: self, file: pool.file, generation: pool.generation, conn: Some(conn) })
    }

    /// Waits for connections to another file, which [`Self::reopen`] is about to open.
    fn wait_for_another(&self, generation: u64, deadline: Instant) -> Result<(), StorageError> {
        match self.wait(deadline, |pool| pool.generation == generation).generation == generation {
            true => Err(StorageError::Busy(WAIT_MAX.as_millis() as u64)),
            false => Ok(()),
        }
    }

    fn wait(&self, deadline: Instant, condition: impl FnMut(&mut Pool) -> bool) -> MutexGuard<'_, Pool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.freed.wait_timeout_while(self.pool(), left, condition);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Nothing that can panic runs while the lock is held.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_all(path: &Path, connections: usize, page_cache: usize) -> Result<Vec<Connection>, StorageError> {
    (0..connections)
        .map(|_| {
            let conn = db::open_reader(path)?;
            // The check reads, and thereby also opens the write-ahead log. Later its name may refer to another file.
            schema::check(&conn, path)?;
            db::keep_pages(&conn, page_cache).context("set the size of the page cache")?;
            Ok(conn)
        })
        .collect()
}

/// A connection that returns to the pool when it is dropped, even after a panic.
struct Lease<'a> {
    readers: &'a Readers,
    file: u64,
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
    /// What differs from the tables in this transaction.
    recent: RecentRows,
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
        is_lost(self.conn, revision)
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

/// Whether a revision was skipped and is not assigned in this state.
fn is_lost(conn: &Connection, revision: Revision) -> Result<bool, StorageError> {
    let ask = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let found = conn.prepare_cached(sql)?.query_row(values, |_| Ok(())).optional()?;
        Ok::<_, rusqlite::Error>(found.is_some())
    };
    let found = ask("SELECT 1 FROM sqlite_schema WHERE name = 'lost_revision'", &[])
        .and_then(|any| Ok(any && ask("SELECT 1 FROM lost_revision WHERE ?1 BETWEEN first AND last", &[&revision])?));
    found.context("look for a lost revision")
}

#[cfg(test)]
mod tests;
