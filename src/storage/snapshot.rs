//! Snapshots: whole copies of `chat.db`, made while it is in use, and put in its place.
//!
//! Invariants: a file in `snapshots/` without the ending `.tmp` is complete and durable, and what is said about it was
//! read from it. An installation either happened or did not, whenever the process dies:
//!
//! 1. the snapshot is copied to `chat.db-install` (under a temporary name until the copy is durable);
//! 2. from then on the old database is dead: its write-ahead log goes first, because SQLite would apply it to whatever
//!    file is called `chat.db`; then the copy takes the name;
//! 3. `open` finishes this when it finds `chat.db-install`.
//!
//! Left out: the transfer and its checksum, when to make one, and which old ones to remove: the Raft layer decides.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::apply::{StateMachine, read_state};
use super::error::{Context, StorageError};
use super::{db, divergence, private, schema};
use crate::chat::Revision;
use crate::planted;
use crate::proto::log::v1 as pb;

pub(super) const DIRECTORY: &str = "snapshots";
const ENDING: &str = "snapshot";
pub(super) const ENDING_UNFINISHED: &str = "tmp";
pub(super) const INSTALL: &str = "chat.db-install";
const INSTALL_UNFINISHED: &str = "chat.db-install.tmp";

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotMeta {
    /// The last entry that is in it.
    pub log_id: Option<pb::LogId>,
    /// The membership of the last entry in it that had one.
    pub membership: pb::StoredMembership,
    /// The state's revision.
    pub revision: Revision,
}

/// A complete, durable snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub meta: SnapshotMeta,
}

impl StateMachine {
    /// Copies the state of the data directory `dir` into a file of its own, on a connection of its own: the writer
    /// goes on meanwhile. Takes as long as writing the whole file does.
    pub fn build_snapshot(dir: &Path) -> Result<SnapshotFile, StorageError> {
        let snapshots = dir.join(DIRECTORY);
        let random = random();
        let unfinished = snapshots.join(format!("{random:016x}.{ENDING_UNFINISHED}"));
        let result = copy_state(dir, &unfinished).and_then(|meta| {
            let (index, term) = meta.log_id.map_or((0, 0), |id| (id.index, id.term));
            let path = snapshots.join(format!("{index:020}-{term:020}-{random:016x}.{ENDING}"));
            db::sync_file(&unfinished)?;
            fs::rename(&unfinished, &path).map_err(StorageError::io("rename", &unfinished))?;
            db::sync_directory(&snapshots)?;
            Ok(SnapshotFile { path, meta })
        });
        if result.is_err() {
            // The error says what went wrong; what cannot be removed now goes when the database is opened next.
            let _ = fs::remove_file(&unfinished);
        }
        result
    }

    /// Checks a snapshot's pages, and reads what it holds.
    pub fn verify_snapshot(path: &Path) -> Result<SnapshotMeta, StorageError> {
        let conn = open_snapshot(path)?;
        let verdict: String =
            conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).context("check a snapshot")?;
        if verdict != "ok" {
            return Err(StorageError::Corrupt(format!("snapshot {}: {verdict}", path.display())));
        }
        read_meta(&conn)
    }

    /// The complete snapshots of a data directory, newest first. Nothing is verified.
    pub fn snapshot_files(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
        let mut files = files_with_ending(&dir.join(DIRECTORY), ENDING)?;
        // The names start with the log index, in a fixed width.
        files.sort_unstable_by(|a, b| b.cmp(a));
        Ok(files)
    }

    /// Replaces the whole state by that of a snapshot, which stays where it is. Verify it first. Afterwards the
    /// connections of [`super::Readers`] still see the old state until they are reopened; nobody may open new ones
    /// while this runs.
    pub fn install_snapshot(&mut self, file: &Path) -> Result<(), StorageError> {
        read_meta(&open_snapshot(file)?)?;
        let unfinished = self.dir.join(INSTALL_UNFINISHED);
        let install = self.dir.join(INSTALL);
        copy_file(file, &unfinished)?;
        db::sync_file(&unfinished)?;
        self.conn = None;
        fs::rename(&unfinished, &install).map_err(StorageError::io("rename", &unfinished))?;
        db::sync_directory(&self.dir)?;
        finish_install(&self.dir)?;
        self.reopen()
    }
}

/// Makes the directories, finishes an installation that was interrupted, and removes unfinished files.
pub(super) fn prepare_directory(dir: &Path) -> Result<(), StorageError> {
    let snapshots = dir.join(DIRECTORY);
    private::create_dir_all(&snapshots).map_err(StorageError::io("make directory", &snapshots))?;
    if dir.join(INSTALL).exists() {
        finish_install(dir)?;
    }
    for file in files_with_ending(&snapshots, ENDING_UNFINISHED)? {
        remove(&file)?;
    }
    remove(&dir.join(INSTALL_UNFINISHED))
}

fn finish_install(dir: &Path) -> Result<(), StorageError> {
    // What is known of the old file does not hold for the new one.
    for name in ["chat.db-wal", "chat.db-shm", divergence::FILE] {
        remove(&dir.join(name))?;
    }
    db::sync_directory(dir)?;
    let install = dir.join(INSTALL);
    fs::rename(&install, db::database_path(dir)).map_err(StorageError::io("rename", &install))?;
    db::sync_directory(dir)
}

/// Copies the state of the data directory `dir`, as it is committed, into the file `to`.
pub(super) fn copy_state(dir: &Path, to: &Path) -> Result<SnapshotMeta, StorageError> {
    let name = to.to_str().ok_or_else(|| {
        StorageError::io("use the path", to)(io::Error::new(io::ErrorKind::InvalidInput, "it is not UTF-8"))
    })?;
    // SQLite writes into an empty file, and keeps its mode.
    private::create_file(to).map_err(StorageError::io("make", to))?;
    let source = db::open_reader(&db::database_path(dir))?;
    // Also holds for the copy: without it, what is free in its pages is whatever was in memory.
    source.pragma_update(None, "secure_delete", "ON").context("set up the copy of the state")?;
    source.execute("VACUUM INTO ?1", [name]).context("copy the state into a snapshot")?;
    if planted::is(planted::NO_DEDUP_IN_SNAPSHOTS) {
        let copy = Connection::open(to).context("open a snapshot")?;
        copy.execute("UPDATE message SET client_id = randomblob(16)", []).context("forget ids in a snapshot")?;
    }
    read_meta(&open_snapshot(to)?)
}

/// Opens a copy of the state to read it.
pub(super) fn open_snapshot(path: &Path) -> Result<Connection, StorageError> {
    let conn = db::open_reader(path)?;
    schema::check(&conn, path)?;
    Ok(conn)
}

fn read_meta(conn: &Connection) -> Result<SnapshotMeta, StorageError> {
    let state = read_state(conn)?;
    Ok(SnapshotMeta { log_id: state.log_id, membership: state.membership, revision: state.revision })
}

fn files_with_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, StorageError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        if path.extension().is_some_and(|found| found == ending) {
            files.push(path);
        }
    }
    Ok(files)
}

/// A file of this node's own with the same content: whoever may read the source need not be able to write it.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), StorageError> {
    let mut source = File::open(from).map_err(StorageError::io("open", from))?;
    let copied = private::create_file(to).and_then(|mut file| io::copy(&mut source, &mut file));
    copied.map(drop).map_err(StorageError::io("copy a file to", to))
}

pub(super) fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// For a file name that nobody else uses: the standard library's source of random numbers is enough.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
