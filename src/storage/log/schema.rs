//! Tables and rows of `log.db`.
//!
//! An entry's row carries a CRC-32 of its bytes: SQLite would hand out a page that the disk has changed. The records of
//! `meta` have one in common, in a record of its own, so that one that is gone shows as well: a vote that is forgotten
//! or lowered would be given twice.

use std::{fs, io, ops::Range, os::unix::fs::FileExt as _, path::Path};

use prost::Message as _;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use crate::{
    proto::log::v1 as pb,
    storage::{
        StorageError,
        db::{self, Checkpoints},
        error::Context as _,
        private,
    },
};

/// "QCLG": tells our file from another program's.
const APPLICATION_ID: i32 = 0x5143_4C47;
/// Version of the tables. A newer file is refused.
const VERSION: i32 = 1;

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

/// Who a node is. Made when it joins a cluster, and never changed: a node that doubts its disk gets a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// UUID of the cluster. Nodes of different clusters do not talk.
    pub cluster_id: String,
    /// Raft's name for the node. Never used again.
    pub node_id: u64,
    /// The operator's name for the node.
    pub name: String,
}

/// What a log holds when it is opened.
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
    private::open_or_create(path).map_err(StorageError::io("make", path))?;
    let mut connection = Connection::open(path).context("opening log.db")?;
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
    // Not where they are: there may be no space to write at all.
    let tables = match version == VERSION {
        true => String::new(),
        false => format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
        ),
    };
    // FULL: a commit is on disk when it returns. Secure: the bodies in entries that are cut are overwritten, wherever they are.
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;
             PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = OFF; {tables}"
        ))
        .context("preparing log.db")?;
    flush(&connection, path)?;
    db::keep_wal(&connection).context("preparing log.db")?;
    let checkpoints = Checkpoints::by_commits(&mut connection).context("preparing log.db")?;
    Ok((connection, checkpoints))
}

/// What the last process wrote and did not flush, or failed to, may be read and yet not be on disk. All that is found is written
/// anew, and flushed, before it counts as durable: from the write-ahead log into the file, which may grow; or, where there is no
/// space for that, in its place.
fn flush(connection: &Connection, path: &Path) -> Result<(), StorageError> {
    let wal = path.with_file_name("log.db-wal");
    let bytes = fs::metadata(&wal).map_or(0, |file| file.len());
    let dir = path.parent().unwrap_or(path);
    let free = rustix::fs::statvfs(dir).map_or(u64::MAX, |volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    if free < bytes.saturating_mul(2) {
        return write_anew(&wal).map_err(StorageError::io("flush", &wal));
    }
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .and_then(|busy: i32| match busy {
            0 => Ok(()),
            _ => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)),
        })
        .context("flushing log.db")
}

/// Writes what is in a file to where it is, and flushes it.
fn write_anew(path: &Path) -> io::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
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
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).context("opening log.db to read")?;
    connection.execute_batch("PRAGMA busy_timeout = 5000;").context("opening log.db to read")?;
    Ok(connection)
}

/// Reads everything but the entries, and checks that the log has no hole.
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

/// The position of the entry at an index that the log reaches; `None` when it was purged.
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

/// Reads entries that must be there.
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
        // The checksum is right in another entry's place as well.
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

/// The record with the checksum of all others.
const CHECKSUM: &str = "checksum";

/// Writes a record of `meta`, and the checksum.
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

/// All records but the checksum.
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

/// Compares the records with their checksum. A new file has neither.
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
        write_anew(&wal).unwrap();
        assert_eq!(fs::read(&wal).unwrap(), before);
        drop(connection);
        let (connection, _checkpoints) = open(&path).unwrap();
        let found: Vec<u8> =
            connection.query_row("SELECT bytes FROM entry WHERE idx = 7", [], |row| row.get(0)).unwrap();
        assert_eq!(found, row.bytes);
    }
}
