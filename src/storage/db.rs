//! Connections to `chat.db`, and how its values map to SQLite's.
//!
//! SQLite's integers are signed, ours are not. On the way in, what does not fit becomes `i64::MAX`: no row has that
//! key, so that an absurd id is simply unknown, and as a bound it still means "everything". On the way out, a negative
//! number is an error: nobody wrote it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::error::{Context, StorageError};
use super::private;
use crate::chat::{AccountId, ClientId, ConversationId, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash};

/// The state machine's file in a data directory.
pub(super) fn database_path(dir: &Path) -> PathBuf {
    dir.join("chat.db")
}

/// Longest wait for SQLite's own locks. There is one writer, so only a checkpoint or recovery ever holds them.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Prepared statements kept by each connection: more than there are.
const STATEMENTS_MAX: usize = 96;
/// Page cache of the writer, in KiB.
const WRITER_CACHE_KIB: i64 = 64 * 1024;
/// Page cache of each reader, in KiB.
const READER_CACHE_KIB: i64 = 8 * 1024;
/// Pages in the write-ahead log that start a checkpoint. More would save little (measured) and cost space.
const CHECKPOINT_PAGES: i32 = 4000;
/// The write-ahead log is cut to this after it had to grow beyond it, in bytes.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// Opens the writer's connection, and makes the file if there is none.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StorageError> {
    // SQLite gives a file the mode of the umask, and the files beside it the mode of the file.
    private::open_or_create(path).map_err(StorageError::io("make", path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).context("open chat.db")?;
    prepare(&conn, WRITER_CACHE_KIB).context("set up the writer of chat.db")?;
    Ok(conn)
}

/// Sets what only a writer may: called once the file is known to be ours.
pub(super) fn use_wal(conn: &mut Connection) -> Result<Checkpoints, StorageError> {
    let mut set = || -> rusqlite::Result<Checkpoints> {
        let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            // Readers would block the writer, and a snapshot everything: the file system has to be able to do it.
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(mode)));
        }
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        keep_wal(conn)?;
        let checkpoints = Checkpoints::by_commits(conn)?;
        conn.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        // What is deleted is overwritten with zeros, in pages that are freed as well: a long body has pages of its own.
        conn.pragma_update(None, "secure_delete", "ON")?;
        Ok(checkpoints)
    };
    set().context("set chat.db to write-ahead logging")
}

/// Leaves the write-ahead log where it is when the connection is closed. SQLite would remove it; and a process that ends without
/// being able to say so on disk would be taken for one that lost it.
pub(super) fn keep_wal(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
}

/// Moves what is in the write-ahead log into the file, before the connection is closed. Whatever comes of it, nothing is lost:
/// what is left is read at the next start.
pub(super) fn settle_wal(conn: &Connection) {
    // Whoever reads is not waited for.
    let settled = conn
        .busy_timeout(Duration::ZERO)
        .and_then(|()| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    drop(settled);
}

/// Moves what is in the write-ahead log into the file, and cuts the log to nothing: it would keep what was overwritten until it
/// comes around. False: somebody reads it at the moment. Waits for nobody.
pub(super) fn cut_wal(conn: &Connection) -> rusqlite::Result<bool> {
    conn.busy_timeout(Duration::ZERO)?;
    let cut = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    conn.busy_timeout(BUSY_TIMEOUT)?;
    match cut {
        Ok(busy) => Ok(busy == 0),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The checkpoints that a connection's commits make.
pub(super) struct Checkpoints {
    failed: Arc<Mutex<Option<rusqlite::Error>>>,
}

impl Checkpoints {
    /// Moves pages from the write-ahead log into the file whenever a commit leaves enough of them, as SQLite does by
    /// itself. But a failure is the commit's failure: SQLite would keep it to itself, and try again with every commit
    /// while the write-ahead log grows.
    pub(super) fn by_commits(conn: &mut Connection) -> rusqlite::Result<Self> {
        let failed: Arc<Mutex<Option<rusqlite::Error>>> = Arc::default();
        let noted = Arc::clone(&failed);
        conn.wal_hook(Some(move |wal: &mut Wal, pages| {
            if pages < CHECKPOINT_PAGES {
                return Ok(());
            }
            match wal.checkpoint() {
                // A reader needs the older pages: the next commit tries again.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
                Err(error) => {
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    // What it is does not get through: see `of`.
                    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ERROR), None))
                }
                Ok(()) => Ok(()),
            }
        }))?;
        Ok(Self { failed })
    }

    /// What a commit came to. When its checkpoint failed, SQLite calls it an "SQL logic error", whatever the disk said:
    /// that is put in its place.
    pub(super) fn of<T>(&self, commit: rusqlite::Result<T>) -> rusqlite::Result<T> {
        commit.map_err(|error| self.failed.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }
}

/// Opens a read-only connection.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).context("open chat.db for reading")?;
    // A reader that outlives its file (a snapshot was installed) must not tidy up the new file's log when it closes.
    keep_wal(&conn).context("set up a reader of chat.db")?;
    prepare(&conn, READER_CACHE_KIB).context("set up a reader of chat.db")?;
    Ok(conn)
}

fn prepare(conn: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    conn.pragma_update(None, "foreign_keys", false)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StorageError::io("sync directory", dir))
}

/// Makes a file's content durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(StorageError::io("sync file", path))
}

/// A plain unsigned number, for counts and for what has no type of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Int(pub u64);

impl ToSql for Int {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(Value::Integer(i64::try_from(self.0).unwrap_or(i64::MAX))))
    }
}

impl FromSql for Int {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        u64::try_from(number).map(Int).map_err(|_| FromSqlError::OutOfRange(number))
    }
}

macro_rules! as_integer {
    ($($name:ident),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Owned(Value::Integer(i64::try_from(self.0).unwrap_or(i64::MAX))))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                Int::column_result(value).map(|number| $name(number.0))
            }
        }
    )*};
}

as_integer!(AccountId, SessionId, ConversationId, Seq, Revision, TimeMs);

macro_rules! as_blob {
    ($($name:ident),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                FromSql::column_result(value).map($name)
            }
        }
    )*};
}

as_blob!(ClientId, StateDigest, TokenHash);
