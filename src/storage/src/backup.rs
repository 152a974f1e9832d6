//! Backups: self-contained, self-describing copies of the state.
//!
//! A backup is a snapshot with one additional table, `backup`: its cluster and node, its time of creation, and a
//! SHA-256 over all other tables. SQLite itself detects a malformed page, but not a byte that changed within a row. So
//! [`verify_backup`] checks both the pages and the content, and is called whenever a backup is created, received or
//! restored.
//!
//! Invariants: a [`BackupFile`] has been verified, and is of one revision. Its name in the data directory is already
//! removed, so that no file remains when the process ends. The volume keeps as much space free as the backup takes,
//! because a node would stop when its disk is full.
//!
//! Does not cover: the transfer to the operator, and where the file is stored.

use std::fs::{self, File};
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params, types::ValueRef};
use sha2::{Digest as _, Sha256};

use super::db;
use super::error::{Context, StorageError};
use super::installation;
use super::pages;
use super::query::Readers;
use super::snapshot::{self, copy_state, open_snapshot};
use chat::{Revision, StateDigest, TimeMs};

/// Turns a copy of the state into a backup.
const TABLE: &str = "
CREATE TABLE backup (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    cluster_id  TEXT    NOT NULL,
    node        TEXT    NOT NULL,
    made_ms     INTEGER NOT NULL,
    content     BLOB    NOT NULL                        -- SHA-256 of all other tables
) STRICT;
";
/// Removes the table. The rest is an ordinary state.
pub(super) const FORGET: &str = "DROP TABLE backup;";

/// Metadata of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupMeta {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Name of the node that created it.
    pub node: String,
    /// Time of its creation, by that node's clock.
    pub made: TimeMs,
    /// The state's revision.
    pub revision: Revision,
    /// Index of the last log entry that it contains; 0 if none.
    pub log_index: u64,
    /// The state's digest.
    pub digest: StateDigest,
}

/// A complete and verified backup, open at its start. Dropping it frees its space.
#[derive(Debug)]
pub struct BackupFile {
    /// The open file.
    pub file: File,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Metadata of the backup.
    pub meta: BackupMeta,
}

impl Readers {
    /// Creates a backup of everything that was applied before the call, for the node `node` of the cluster
    /// `cluster_id`. The state stays in use meanwhile. Takes as long as writing the whole file once and reading it
    /// twice.
    ///
    /// # Errors
    /// The volume has too little space, a file operation failed, or the copy turned out to be damaged.
    pub fn back_up(&self, cluster_id: &str, node: &str, now: TimeMs) -> Result<BackupFile, StorageError> {
        let state = self.writer().ok_or(StorageError::Closed)?;
        state.commit_staged()?;
        let dir = state.directory();
        require_space(dir)?;
        let name = format!("{:016x}.{}", snapshot::random(), installation::ENDING_UNFINISHED);
        let path = dir.join(installation::DIRECTORY).join(name);
        // The copy is written from the data that was read, so damage to the state itself is detected here.
        let made = copy_state(dir, &path)
            .inspect_err(|error| {
                if error.is_corruption() {
                    state.fail(error);
                }
            })
            .and_then(|_| mark(&path, cluster_id, node, now));
        // The file is open or not needed. If it cannot be removed now, it is removed when the database is opened next.
        let _ = fs::remove_file(&path);
        made
    }
}

/// Turns a copy of the state into a backup, and verifies it.
fn mark(path: &Path, cluster_id: &str, node: &str, now: TimeMs) -> Result<BackupFile, StorageError> {
    let conn = db::open_writer(path)?;
    let marked = || -> rusqlite::Result<()> {
        // A single file, without a write-ahead log.
        conn.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
        conn.execute_batch(TABLE)
    };
    marked().context("mark a copy of the state as a backup")?;
    let content = content(&conn)?;
    let sql = "INSERT INTO backup (id, cluster_id, node, made_ms, content) VALUES (1, ?1, ?2, ?3, ?4)";
    conn.execute(sql, params![cluster_id, node, now, content]).context("mark a copy of the state as a backup")?;
    drop(conn);
    let meta = verify_backup(path)?;
    let file = File::open(path).map_err(StorageError::io("open", path))?;
    let bytes = file.metadata().map_err(StorageError::io("look at", path))?.len();
    Ok(BackupFile { file, bytes, meta })
}

/// Checks that a file is a backup that this version can restore: every page, every index, every value. Returns its
/// metadata.
///
/// # Errors
/// The file cannot be read, is damaged, is not a backup of this program, or belongs to a later version.
pub fn verify_backup(path: &Path) -> Result<BackupMeta, StorageError> {
    // The error of SQLite is less specific if the file cannot be opened.
    File::open(path).map_err(StorageError::io("open", path))?;
    let conn = open_snapshot(path).map_err(|error| match error {
        StorageError::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            StorageError::ForeignFile { path: path.to_owned(), problem: "it is no SQLite database".to_owned() }
        }
        other => other,
    })?;
    let kept = conn
        .query_row("SELECT name FROM sqlite_schema WHERE name = 'backup'", [], |_| Ok(()))
        .optional()
        .context("look what a file holds")?;
    if kept.is_none() {
        let problem = "it has our tables, but it was not made by `chatctl backup`".to_owned();
        return Err(StorageError::ForeignFile { path: path.to_owned(), problem });
    }
    pages::check(&conn, "integrity_check", path)?;
    let sql = "SELECT cluster_id, node, made_ms, content FROM backup";
    let row = conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, [u8; 32]>(3)?)));
    let (cluster_id, node, made, expected) = row.context("read what a backup says of itself")?;
    if content(&conn)? != expected {
        return Err(StorageError::Corrupt(format!("{}: the content does not match its checksum", path.display())));
    }
    let state = super::apply::read_state(&conn)?;
    let log_index = state.log_id.map_or(0, |id| id.index);
    Ok(BackupMeta { cluster_id, node, made, revision: state.revision, log_index, digest: state.chain.digest })
}

/// SHA-256 of all tables except `backup`, and of their definitions. Parts are prefixed with their length.
fn content(conn: &Connection) -> Result<[u8; 32], StorageError> {
    let context = "compute the checksum of a backup";
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name <> 'backup' ORDER BY name";
    let mut statement = conn.prepare(sql).context(context)?;
    let items = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).context(context)?;
    let items: Vec<(String, String, String)> = items.collect::<rusqlite::Result<_>>().context(context)?;
    let mut hash = Sha256::new();
    let mut add = |tag: u8, bytes: &[u8]| {
        hash.update([tag]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (kind, name, definition) in items {
        add(b'd', definition.as_bytes());
        if kind != "table" {
            continue;
        }
        // In the order of the table itself, independent of its indexes.
        let sql = format!("SELECT * FROM \"{name}\" NOT INDEXED");
        let mut statement = conn.prepare(&sql).context(context)?;
        let columns = statement.column_count();
        let mut rows = statement.query([]).context(context)?;
        while let Some(row) = rows.next().context(context)? {
            for column in 0..columns {
                match row.get_ref(column).context(context)? {
                    ValueRef::Null => add(b'n', &[]),
                    ValueRef::Integer(number) => add(b'i', &number.to_le_bytes()),
                    ValueRef::Real(number) => add(b'r', &number.to_bits().to_le_bytes()),
                    ValueRef::Text(text) => add(b't', text),
                    ValueRef::Blob(bytes) => add(b'b', bytes),
                }
            }
            add(b'e', &[]);
        }
    }
    Ok(hash.finalize().into())
}

/// Fails unless the volume would have as much space left as a copy of the state takes.
fn require_space(dir: &Path) -> Result<(), StorageError> {
    let conn = db::open_reader(&db::database_path(dir))?;
    let (free, needed) = db::space_for_a_copy(&conn, dir)?;
    if free < needed {
        return Err(StorageError::TooLittleSpace { path: dir.to_owned(), free, needed });
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
