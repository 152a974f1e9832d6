//! Tables and rows of `log.db`.
//!
//! The row of an entry includes a CRC-32 of its bytes, because SQLite would return a page that the disk has changed.
//! One additional record holds a checksum of all records of `meta`, so that a missing record is detected as well: a
//! vote that is lost or lowered would be granted twice.

use std::{
    fs,
    ops::Range,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use prost::Message as _;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use crate::{
    StorageError,
    db::{self, Checkpoints},
    error::Context as _,
    locks, pages, private, sealing,
};
use proto::log::v1 as pb;

/// "QCLG": distinguishes our file from those of other programs.
const APPLICATION_ID: i32 = 0x5143_4C47;
/// Format version of the file. Newer versions are rejected.
const VERSION: i32 = 2;
/// Format version with the same tables, but without page checksums.
const VERSION_WITHOUT_CHECKSUMS: i32 = 1;

/// Interval between attempts to checkpoint a log that another process is checkpointing.
const CHECKPOINT_POLL: Duration = Duration::from_millis(10);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS entry (
        idx   INTEGER PRIMARY KEY,
        crc   INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS meta (
        key   TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// The identity of a node. Created when the node joins a cluster, and never changed. A node that quarantines its files
/// gets a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// UUID of the cluster. Nodes of different clusters do not communicate.
    pub cluster_id: String,
    /// Raft id of the node. Never reused.
    pub node_id: u64,
    /// The operator's name for the node.
    pub name: String,
}

/// The content of a log when it is opened, without its entries.
pub(super) struct Loaded {
    pub identity: Option<Identity>,
    pub vote: Option<pb::Vote>,
    pub committed: Option<pb::LogId>,
    pub purged: Option<pb::LogId>,
    pub last: Option<pb::LogId>,
    pub first: u64,
}

/// An entry as it is stored.
pub(super) struct Row {
    pub id: pb::LogId,
    pub bytes: Vec<u8>,
}

impl Row {
    pub(super) fn encode(entry: &pb::Entry) -> Result<Self, StorageError> {
        let id = entry.log_id.ok_or_else(|| StorageError::Corrupt("an entry without a log id was appended".into()))?;
        Ok(Self { id, bytes: entry.encode_to_vec() })
    }

    pub(super) fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("INSERT INTO entry (idx, crc, bytes) VALUES (?1, ?2, ?3)")?.execute(params![
            self.id.index,
            crc32fast::hash(&self.bytes),
            self.bytes
        ])?;
        Ok(())
    }
}

/// Opens the writer's connection.
pub(super) fn open(path: &Path) -> Result<(Connection, Checkpoints), StorageError> {
    open_at(path).map_err(|error| locks::name_holder(path, error))
}

fn open_at(path: &Path) -> Result<(Connection, Checkpoints), StorageError> {
    private::open_or_create(path).map_err(StorageError::io("make", path))?;
    sealing::remove_unfinished(path)?;
    let mut connection = open_to_write(path)?;
    let (mut is_new, version) = check(&connection, path)?;
    if !pages::is_sealed(&connection)? {
        if version == VERSION {
            return Err(StorageError::Corrupt("log.db has lost its checksums".into()));
        }
        drop(connection);
        add_checksums(path)?;
        connection = open_to_write(path)?;
        (is_new, _) = check(&connection, path)?;
    }
    // Only a new file needs the tables. An existing one is not written to here: there may be no space left.
    let tables = match (is_new, pages::is_sealed(&connection)?) {
        (false, _) => String::new(),
        (true, sealed) => format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {}; COMMIT;",
            if sealed { VERSION } else { VERSION_WITHOUT_CHECKSUMS }
        ),
    };
    // `synchronous = FULL`: a commit is on disk when it returns. `secure_delete`: the bodies in deleted entries are
    // overwritten in the database file.
    connection.busy_timeout(locks::START_MAX).context("preparing log.db")?;
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;
             PRAGMA foreign_keys = OFF; {tables}"
        ))
        .context("preparing log.db")?;
    flush(&connection, path)?;
    db::keep_wal(&connection).context("preparing log.db")?;
    let checkpoints = Checkpoints::of(&mut connection).context("preparing log.db")?;
    connection.busy_timeout(locks::RUNNING_MAX).context("preparing log.db")?;
    Ok((connection, checkpoints))
}

fn open_to_write(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    pages::open(path, flags, "opening log.db")
}

/// Rejects files of other programs and of newer versions. Returns whether the file is still empty, and its format
/// version.
fn check(connection: &Connection, path: &Path) -> Result<(bool, i32), StorageError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let (application, version) =
        (pragma("application_id").context("reading log.db")?, pragma("user_version").context("reading log.db")?);
    let is_new = application == 0 && version == 0;
    if !is_new && application != APPLICATION_ID {
        return Err(StorageError::ForeignFile {
            path: path.to_owned(),
            problem: format!("its application id is {application}"),
        });
    }
    if version > VERSION {
        return Err(StorageError::NewerFormat { path: path.to_owned(), found: version.into(), known: VERSION.into() });
    }
    Ok((is_new, version))
}

/// Adds checksums to a log of an earlier version, if the volume has space for that. Afterwards, earlier versions reject
/// the directory. Before that, an earlier version may have written pages without checksums into a `chat.db` that had
/// some: the file came as a snapshot from a node of this version, or this program had used the directory before.
fn add_checksums(path: &Path) -> Result<(), StorageError> {
    let state = path.with_file_name("chat.db");
    if state.exists() && pages::is_sealed(&pages::open_file(&state)?)? {
        pages::seal_pages(&state)?;
    }
    sealing::seal_file(path, Some(VERSION)).map(drop)
}

/// Makes everything that was found durable before it counts as durable. Data that the last process wrote but did not
/// flush, or failed to flush, may be readable without being on disk. So the write-ahead log is checkpointed into the
/// database file, which may grow. If there is no space for that, the write-ahead log is rewritten in place.
fn flush(connection: &Connection, path: &Path) -> Result<(), StorageError> {
    let wal = path.with_file_name("log.db-wal");
    let bytes = fs::metadata(&wal).map_or(0, |file| file.len());
    let dir = path.parent().unwrap_or(path);
    let free = rustix::fs::statvfs(dir).map_or(u64::MAX, |volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    if free < bytes.saturating_mul(2) {
        return db::write_anew(&wal);
    }
    let checkpoint = || {
        let busy: i32 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        match busy {
            0 => Ok(()),
            _ => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)),
        }
    };
    // SQLite waits for readers and writers, but not for another checkpoint, such as that of a process that closes the
    // file.
    let deadline = Instant::now() + locks::START_MAX;
    loop {
        match checkpoint().context("flushing log.db") {
            Err(error) if error.is_locked() && Instant::now() < deadline => thread::sleep(CHECKPOINT_POLL),
            done => return done,
        }
    }
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = pages::open(path, flags, "opening log.db to read")?;
    connection.execute_batch("PRAGMA busy_timeout = 5000;").context("opening log.db to read")?;
    Ok(connection)
}

/// Reads everything except the entries, and checks that the log has no gaps.
pub(super) fn load(connection: &Connection) -> Result<Loaded, StorageError> {
    check_meta(connection)?;
    let purged: Option<pb::LogId> = meta(connection, "purged")?;
    let first_kept = match purged {
        None => 0,
        Some(id) => id.index.checked_add(1).ok_or_else(|| StorageError::Corrupt(format!("log.db, purged: {id:?}")))?,
    };
    let (count, first, last): (u64, Option<u64>, Option<u64>) = connection
        .query_row("SELECT count(*), min(idx), max(idx) FROM entry WHERE idx >= ?1", [first_kept], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .context("reading the log")?;
    let last = match (first, last) {
        (Some(first), Some(last)) => {
            if first != first_kept || last - first + 1 != count {
                return Err(StorageError::Corrupt(format!(
                    "log.db has a hole: {count} entries from {first} to {last}, expected from {first_kept}"
                )));
            }
            read(connection, last..last + 1, usize::MAX)?.first().and_then(|entry| entry.log_id)
        }
        _ => None,
    };
    let identity = meta::<IdentityRecord>(connection, "identity")?.map(Identity::from);
    Ok(Loaded {
        identity,
        vote: meta(connection, "vote")?,
        committed: meta(connection, "committed")?,
        purged,
        last,
        first: first_kept,
    })
}

/// Position of the entry at an index within the log; `None` if it was purged.
pub(super) fn position(
    connection: &Connection,
    loaded: &Loaded,
    index: u64,
) -> Result<Option<pb::LogId>, StorageError> {
    if index < loaded.first {
        return Ok(None);
    }
    Ok(read(connection, index..index + 1, usize::MAX)?.first().and_then(|entry| entry.log_id))
}

/// Reads entries that must exist.
pub(super) fn read(
    connection: &Connection,
    range: Range<u64>,
    max_bytes: usize,
) -> Result<Vec<pb::Entry>, StorageError> {
    let mut statement = connection
        .prepare_cached("SELECT idx, crc, bytes FROM entry WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")
        .context("reading the log")?;
    let mut rows = statement.query(params![range.start, range.end]).context("reading the log")?;
    let mut entries = Vec::new();
    let mut expected = range.start;
    let mut room = max_bytes;
    while let Some(row) = rows.next().context("reading the log")? {
        let index: u64 = row.get(0).context("reading the log")?;
        let crc: u32 = row.get(1).context("reading the log")?;
        let bytes = row
            .get_ref(2)
            .context("reading the log")?
            .as_blob()
            .map_err(|error| StorageError::Corrupt(error.to_string()))?;
        if index != expected {
            break;
        }
        if crc32fast::hash(bytes) != crc {
            return Err(StorageError::Corrupt(format!("log entry {index} does not match its checksum")));
        }
        if !entries.is_empty() && bytes.len() > room {
            return Ok(entries);
        }
        room = room.saturating_sub(bytes.len());
        // Copied once, so that the payload is a slice of one shared buffer from here on.
        let entry = pb::Entry::decode(bytes::Bytes::copy_from_slice(bytes))
            .map_err(|error| StorageError::Corrupt(format!("log entry {index}: {error}")))?;
        // The checksum also matches if the row of another entry is in this place.
        if entry.log_id.map(|id| id.index) != Some(index) {
            let found = entry.log_id;
            return Err(StorageError::Corrupt(format!("in the place of log entry {index} is {found:?}")));
        }
        entries.push(entry);
        expected += 1;
    }
    if expected < range.end {
        return Err(StorageError::Corrupt(format!("log entry {expected} is missing")));
    }
    Ok(entries)
}

/// Indexes and sizes in bytes of the entries in a range, the newest first. SQLite reads no content for that.
pub(super) fn sizes(connection: &Connection, range: Range<u64>) -> Result<Vec<(u64, u64)>, StorageError> {
    let read = || {
        connection
            .prepare_cached("SELECT idx, length(bytes) FROM entry WHERE idx >= ?1 AND idx < ?2 ORDER BY idx DESC")?
            .query_map(params![range.start, range.end], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()
    };
    read().context("reading the sizes of log entries")
}

/// Key of the record that holds the checksum of all others.
const CHECKSUM: &str = "checksum";

/// Writes a record of `meta` and updates the checksum.
pub(super) fn put_meta(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    put_record(connection, key, value)?;
    put_record(connection, CHECKSUM, &checksum(&records(connection)?))
}

fn put_record(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
    Ok(())
}

/// All records except the checksum.
fn records(connection: &Connection) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
    connection
        .prepare_cached("SELECT key, value FROM meta WHERE key <> ?1 ORDER BY key")?
        .query_map([CHECKSUM], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn checksum(records: &[(String, Vec<u8>)]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    for part in records.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_slice()]) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_le_bytes()
}

/// Verifies the checksum of the records. A new file has neither records nor a checksum.
fn check_meta(connection: &Connection) -> Result<(), StorageError> {
    let records = records(connection)
        .map_err(|error| StorageError::Corrupt(format!("the records of log.db cannot be read: {error}")))?;
    let stored: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [CHECKSUM], |row| row.get(0))
        .optional()
        .context("reading log.db")?;
    match stored {
        None if records.is_empty() => Ok(()),
        Some(stored) if stored == checksum(&records) => Ok(()),
        _ => Err(StorageError::Corrupt("the records of log.db do not match their checksum".into())),
    }
}

fn meta<T: prost::Message + Default>(connection: &Connection, key: &str) -> Result<Option<T>, StorageError> {
    let bytes: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
        .context("reading log.db")?;
    bytes
        .map(|bytes| {
            T::decode(bytes.as_slice()).map_err(|error| StorageError::Corrupt(format!("log.db, {key}: {error}")))
        })
        .transpose()
}

/// [`Identity`] as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IdentityRecord {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(uint64, tag = "2")]
    node_id: u64,
    #[prost(string, tag = "3")]
    name: String,
}

impl From<IdentityRecord> for Identity {
    fn from(record: IdentityRecord) -> Self {
        Self { cluster_id: record.cluster_id, node_id: record.node_id, name: record.name }
    }
}

impl From<Identity> for IdentityRecord {
    fn from(identity: Identity) -> Self {
        Self { cluster_id: identity.cluster_id, node_id: identity.node_id, name: identity.name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anew_is_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let (connection, _checkpoints) = open(&path).unwrap();
        let row = Row { id: pb::LogId { index: 7, ..pb::LogId::default() }, bytes: vec![7; 200_000] };
        row.insert(&connection).unwrap();
        let wal = dir.path().join("log.db-wal");
        let before = fs::read(&wal).unwrap();
        assert!(before.len() > row.bytes.len());
        db::write_anew(&wal).unwrap();
        assert_eq!(fs::read(&wal).unwrap(), before);
        drop(connection);
        let (connection, _checkpoints) = open(&path).unwrap();
        let found: Vec<u8> =
            connection.query_row("SELECT bytes FROM entry WHERE idx = 7", [], |row| row.get(0)).unwrap();
        assert_eq!(found, row.bytes);
    }
}
