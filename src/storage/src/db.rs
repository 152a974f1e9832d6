//! Connections to `chat.db`, and the mapping of numbers to SQLite's type. That of ids is in `chat::sqlite`.
//!
//! SQLite's integers are signed, ours are not. A value that does not fit is written as `i64::MAX`. No row has that key,
//! so an out-of-range id is simply unknown, and as a bound it still means "everything". A negative number that is read
//! is an error, because none is ever written.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering},
};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::error::{Context, StorageError};
use super::{locks, pages, private};

/// Path of the state machine's file in a data directory.
pub(super) fn database_path(dir: &Path) -> PathBuf {
    dir.join("chat.db")
}

/// Path of its write-ahead log.
pub(super) fn write_ahead_log_path(dir: &Path) -> PathBuf {
    dir.join(WRITE_AHEAD_LOG)
}

/// File name of the write-ahead log of the state.
pub(super) const WRITE_AHEAD_LOG: &str = "chat.db-wal";

/// Maximum wait of a reader for SQLite's own locks. There is one writer, so only a checkpoint or a recovery holds them.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Prepared statements kept by each connection. More than exist.
const STATEMENTS_MAX: usize = 96;
/// Bytes of pages that a connection keeps in memory. [`super::CacheSize`] sets it for those of a running node.
const PAGE_CACHE: usize = 8 << 20;
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
    prepare(&conn, locks::START_MAX).context("set up the writer of chat.db")?;
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
        let checkpoints = Checkpoints::of(conn)?;
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
pub(super) fn checkpoint_wal(conn: &Connection) {
    // Does not wait for readers.
    let checkpointed = conn
        .busy_timeout(Duration::ZERO)
        .and_then(|()| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    drop(checkpointed);
}

/// Checkpoints and truncates the write-ahead log, which would otherwise retain overwritten data until it wraps around.
/// Returns `false` if a reader prevents that. Does not wait for readers.
pub(super) fn truncate_wal(conn: &Connection) -> rusqlite::Result<bool> {
    conn.busy_timeout(Duration::ZERO)?;
    let cut = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    conn.busy_timeout(locks::RUNNING_MAX)?;
    match cut {
        Ok(busy) => Ok(busy == 0),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checkpoints after the commits of a connection.
pub(super) struct Checkpoints {
    /// Size of the write-ahead log after the last commit, in pages.
    pages: Arc<AtomicI32>,
}

impl Checkpoints {
    /// Replaces SQLite's own checkpoints, which are part of a commit, and whose failures it does not report.
    pub(super) fn of(conn: &mut Connection) -> rusqlite::Result<Self> {
        let pages: Arc<AtomicI32> = Arc::default();
        let noted = Arc::clone(&pages);
        conn.wal_hook(Some(move |_: &mut Wal, pages| {
            noted.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self { pages })
    }

    /// Checkpoints the write-ahead log if the last commit has made it large enough. To be called after each commit.
    pub(super) fn after_commit(&self, conn: &Connection) -> rusqlite::Result<()> {
        // Not again before the next commit, which tries again if a reader needs the older pages.
        if self.pages.swap(0, Ordering::Relaxed) < CHECKPOINT_PAGES {
            return Ok(());
        }
        match conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            // Another connection does it.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
            result => result,
        }
    }
}

/// Opens a read-only connection.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = pages::open(path, flags, "open the database for reading")?;
    // A reader can outlive its file when a snapshot is installed. Closing it must not remove the new file's write-ahead
    // log.
    keep_wal(&conn).context("set up a reader of the database")?;
    prepare(&conn, BUSY_TIMEOUT).context("set up a reader of the database")?;
    Ok(conn)
}

fn prepare(conn: &Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    conn.busy_timeout(busy_timeout)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    keep_pages(conn, PAGE_CACHE)?;
    conn.pragma_update(None, "foreign_keys", false)
}

/// Sets how many bytes of pages a connection keeps in memory.
pub(super) fn keep_pages(conn: &Connection, bytes: usize) -> rusqlite::Result<()> {
    // A negative number is one of KiB.
    conn.pragma_update(None, "cache_size", -i64::try_from(bytes >> 10).unwrap_or(i64::MAX))
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

/// Writes a small file, durably.
pub(super) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> Result<(), StorageError> {
    let path = dir.join(name);
    let write = || {
        let mut file = private::create_file(&path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(StorageError::io("write", &path))?;
    sync_directory(dir)
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StorageError::io("sync directory", dir))
}

/// Makes a file's content durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(StorageError::io("sync file", path))
}

/// Writes the content of a file once more, in place, and flushes it. A flush that failed leaves content that can be
/// read and is not on disk, and another flush does not write it.
pub(super) fn write_anew(path: &Path) -> Result<(), StorageError> {
    let write = || {
        let file = File::options().read(true).write(true).open(path)?;
        let mut part = vec![0; 64 << 10];
        let mut at = 0;
        loop {
            let count = file.read_at(&mut part, at)?;
            if count == 0 {
                return file.sync_all();
            }
            file.write_all_at(&part[..count], at)?;
            at += count as u64;
        }
    };
    write().map_err(StorageError::io("flush", path))
}

/// Runs a cached prepared statement and returns the number of changed rows.
pub(super) fn execute(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params)
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
