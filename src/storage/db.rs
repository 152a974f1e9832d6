//! Connections to `chat.db`, and the mapping of its values to SQLite's types.
//!
//! SQLite's integers are signed, ours are not. A value that does not fit is written as `i64::MAX`. No row has that key,
//! so an out-of-range id is simply unknown, and as a bound it still means "everything". A negative number that is read
//! is an error, because none is ever written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::error::{Context, StorageError};
use super::{locks, pages, private};
use crate::chat::{AccountId, ClientId, ConversationId, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash};

/// Path of the state machine's file in a data directory.
pub(super) fn database_path(dir: &Path) -> PathBuf {
    dir.join("chat.db")
}

/// Maximum wait of a reader for SQLite's own locks. There is one writer, so only a checkpoint or a recovery holds them.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Prepared statements kept by each connection. More than exist.
const STATEMENTS_MAX: usize = 96;
/// Page cache of the writer, in KiB.
const WRITER_CACHE_KIB: i64 = 64 * 1024;
/// Page cache of each reader, in KiB.
const READER_CACHE_KIB: i64 = 8 * 1024;
/// Size of the write-ahead log, in pages, that triggers a checkpoint. A larger value would save little (measured) and
/// cost space.
const CHECKPOINT_PAGES: i32 = 4000;
/// Size in bytes to which the write-ahead log is truncated after it has grown beyond it.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// Opens the writer's connection, and creates the file if it is missing.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StorageError> {
    // SQLite creates a file with the mode of the umask, and its auxiliary files with the mode of the file.
    private::open_or_create(path).map_err(StorageError::io("make", path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = pages::open(path, flags, "open chat.db")?;
    prepare(&conn, WRITER_CACHE_KIB, locks::START_MAX).context("set up the writer of chat.db")?;
    Ok(conn)
}

/// Applies the settings that only a writer may change. Must be called only after the file is known to be ours.
pub(super) fn use_wal(conn: &mut Connection) -> Result<Checkpoints, StorageError> {
    let mut set = || -> rusqlite::Result<Checkpoints> {
        let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            // Without it readers would block the writer, and a snapshot would block everything. The file system has to
            // support it.
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(mode)));
        }
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        keep_wal(conn)?;
        let checkpoints = Checkpoints::by_commits(conn)?;
        conn.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        // Deleted content is overwritten with zeros, also in freed pages. A long body has pages of its own.
        conn.pragma_update(None, "secure_delete", "ON")?;
        Ok(checkpoints)
    };
    set().context("set chat.db to write-ahead logging")
}

/// Keeps the write-ahead log when the connection is closed. SQLite would remove it, and a process that ends without
/// recording a clean shutdown would then appear to have lost it.
pub(super) fn keep_wal(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
}

/// Checkpoints the write-ahead log before the connection is closed. A failure loses nothing: the next start reads the
/// rest of the log.
pub(super) fn settle_wal(conn: &Connection) {
    // Does not wait for readers.
    let settled = conn
        .busy_timeout(Duration::ZERO)
        .and_then(|()| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    drop(settled);
}

/// Checkpoints and truncates the write-ahead log, which would otherwise retain overwritten data until it wraps around.
/// Returns `false` if a reader prevents that. Does not wait for readers.
pub(super) fn cut_wal(conn: &Connection) -> rusqlite::Result<bool> {
    conn.busy_timeout(Duration::ZERO)?;
    let cut = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    conn.busy_timeout(locks::RUNNING_MAX)?;
    match cut {
        Ok(busy) => Ok(busy == 0),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checkpoints triggered by the commits of a connection.
pub(super) struct Checkpoints {
    failed: Arc<Mutex<Option<rusqlite::Error>>>,
}

impl Checkpoints {
    /// Checkpoints the write-ahead log whenever a commit makes it large enough, like SQLite's own automatic checkpoint.
    /// But a failed checkpoint fails the commit. SQLite would not report it, and would try again with every commit
    /// while the write-ahead log grows.
    pub(super) fn by_commits(conn: &mut Connection) -> rusqlite::Result<Self> {
        let failed: Arc<Mutex<Option<rusqlite::Error>>> = Arc::default();
        let noted = Arc::clone(&failed);
        conn.wal_hook(Some(move |wal: &mut Wal, pages| {
            if pages < CHECKPOINT_PAGES {
                return Ok(());
            }
            match wal.checkpoint() {
                // A reader needs the older pages, so the next commit tries again.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
                Err(error) => {
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    // SQLite does not pass the error on: see `of`.
                    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ERROR), None))
                }
                Ok(()) => Ok(()),
            }
        }))?;
        Ok(Self { failed })
    }

    /// The result of a commit. If its checkpoint failed, SQLite reports an "SQL logic error" regardless of the cause.
    /// The actual error replaces it.
    pub(super) fn of<T>(&self, commit: rusqlite::Result<T>) -> rusqlite::Result<T> {
        commit.map_err(|error| self.failed.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }
}

/// Opens a read-only connection.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = pages::open(path, flags, "open the database for reading")?;
    // A reader can outlive its file when a snapshot is installed. Closing it must not remove the new file's write-ahead
    // log.
    keep_wal(&conn).context("set up a reader of the database")?;
    prepare(&conn, READER_CACHE_KIB, BUSY_TIMEOUT).context("set up a reader of the database")?;
    Ok(conn)
}

fn prepare(conn: &Connection, cache_kib: i64, busy_timeout: Duration) -> rusqlite::Result<()> {
    conn.busy_timeout(busy_timeout)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    conn.pragma_update(None, "foreign_keys", false)
}

/// Copies the committed content of a database into a new file of this node.
pub(super) fn copy_into(conn: &Connection, to: &Path) -> Result<(), StorageError> {
    let name = to.to_str().ok_or_else(|| {
        StorageError::io("use the path", to)(io::Error::new(io::ErrorKind::InvalidInput, "it is not UTF-8"))
    })?;
    // SQLite writes into the empty file and keeps its mode.
    private::create_file(to).map_err(StorageError::io("make", to))?;
    // The setting also applies to the copy. Without it, free space in its pages contains arbitrary memory.
    conn.pragma_update(None, "secure_delete", "ON").context("set up the copy of a database")?;
    conn.execute("VACUUM INTO ?1", [name]).context("copy a database")?;
    Ok(())
}

/// Free bytes on the volume of `dir`, and the bytes required for a copy of a database there. That is twice its size, so
/// that as much space remains free as the copy takes.
pub(super) fn space_for_a_copy(conn: &Connection, dir: &Path) -> Result<(u64, u64), StorageError> {
    let sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
    let Int(size) = conn.query_row(sql, [], |row| row.get(0)).context("read the size of a database")?;
    let volume = rustix::fs::statvfs(dir).map_err(|errno| StorageError::io("look at", dir)(errno.into()))?;
    Ok((volume.f_bavail.saturating_mul(volume.f_frsize), size.saturating_mul(2)))
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StorageError::io("sync directory", dir))
}

/// Makes a file's content durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(StorageError::io("sync file", path))
}

/// A plain unsigned number, for counts and for values without a type of their own.
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
