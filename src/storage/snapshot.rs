//! Snapshots: whole copies of `chat.db`, created while it is in use, and installed in its place.
//!
//! Invariants: a file in `snapshots/` without the extension `.tmp` is complete and durable, and its metadata was read
//! from it. An installation is atomic, even if the process dies:
//!
//! 1. The snapshot is copied to `chat.db-install` (under a temporary name until the copy is durable).
//! 2. From then on the old database is obsolete. Its write-ahead log is removed first, because SQLite would apply it to
//!    any file named `chat.db`. Then the copy is renamed to `chat.db`.
//! 3. `open` completes this when it finds `chat.db-install`.
//!
//! Does not cover: the transfer and its checksum, when to create a snapshot, and which old ones to remove. The Raft
//! layer decides.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::apply::{StateMachine, read_state};
use super::error::{Context, StorageError};
use super::{db, divergence, pages, private, schema};
use crate::chat::Revision;
use crate::failpoints;
use crate::proto::log::v1 as pb;

pub(super) const DIRECTORY: &str = "snapshots";
const ENDING: &str = "snapshot";
pub(super) const ENDING_UNFINISHED: &str = "tmp";
pub(super) const INSTALL: &str = "chat.db-install";
const INSTALL_UNFINISHED: &str = "chat.db-install.tmp";

/// Metadata of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotMeta {
    /// The last entry that it contains.
    pub log_id: Option<pb::LogId>,
    /// The membership of the last entry in it that contained one.
    pub membership: pb::StoredMembership,
    /// The state's revision.
    pub revision: Revision,
}

/// A complete, durable snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotFile {
    /// Its path.
    pub path: PathBuf,
    /// Its metadata.
    pub meta: SnapshotMeta,
}

impl StateMachine {
    /// Copies the state of the data directory `dir` into a new file, on a separate connection, so that the writer is
    /// not blocked. Takes as long as writing the whole file.
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
            // The error states the cause. A file that cannot be removed now is removed when the database is opened
            // next.
            let _ = fs::remove_file(&unfinished);
        }
        result
    }

    /// Checks the pages of a snapshot, and reads its metadata.
    pub fn verify_snapshot(path: &Path) -> Result<SnapshotMeta, StorageError> {
        let conn = open_snapshot(path)?;
        pages::check(&conn, "quick_check", path)?;
        read_meta(&conn)
    }

    /// The complete snapshots of a data directory, newest first. They are not verified.
    pub fn snapshot_files(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
        let mut files = files_with_ending(&dir.join(DIRECTORY), ENDING)?;
        // The names start with the log index, in a fixed width.
        files.sort_unstable_by(|a, b| b.cmp(a));
        Ok(files)
    }

    /// Replaces the whole state by that of a snapshot file, which is not changed. Verify it first. The connections of
    /// [`super::Readers`] still see the old state until they are reopened. No new connections may be opened while this
    /// runs.
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

/// Creates the directories, completes an interrupted installation, and removes unfinished files.
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
    // The write-ahead log and the record of a divergence belong to the old file.
    for name in ["chat.db-wal", "chat.db-shm", divergence::FILE] {
        remove(&dir.join(name))?;
    }
    db::sync_directory(dir)?;
    let install = dir.join(INSTALL);
    fs::rename(&install, db::database_path(dir)).map_err(StorageError::io("rename", &install))?;
    db::sync_directory(dir)
}

/// Copies the committed state of the data directory `dir` into the file `to`.
pub(super) fn copy_state(dir: &Path, to: &Path) -> Result<SnapshotMeta, StorageError> {
    db::copy_into(&db::open_reader(&db::database_path(dir))?, to)?;
    if failpoints::is_active(failpoints::NO_DEDUP_IN_SNAPSHOTS) {
        let copy = db::open_writer(to)?;
        copy.execute("UPDATE message SET client_id = randomblob(16)", []).context("forget ids in a snapshot")?;
    }
    read_meta(&open_snapshot(to)?)
}

/// Opens a copy of the state for reading.
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

/// Copies a file into a new file of this node. The process may be allowed to read the source but not to write it.
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

/// A random part for a unique file name. The standard library's source of random numbers is sufficient for that.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
