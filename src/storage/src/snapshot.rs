//! Snapshots: the state of another node, received as a file and put in the place of `chat.db`.
//!
//! A snapshot is sent from an `image` and never stored by its sender.
//!
//! Invariants: [`Received`] is a complete and durable file that was checked, and its metadata was read from it. An
//! installation is atomic, even if the process dies:
//!
//! 1. The position of the snapshot is noted in `chat.db-installed`, as the reason why the state may be ahead of the
//!    log.
//! 2. The received file is renamed to `chat.db-install`. From then on the old database is obsolete.
//! 3. Its write-ahead log is removed, because SQLite would apply it to any file named `chat.db`. Then the new file is
//!    renamed to `chat.db`.
//! 4. `open` completes this when it finds `chat.db-install`.
//!
//! Earlier versions kept copies of their state in `snapshots/` and cut the log behind them, without a flush of the
//! state itself. Such a copy is used if the state does not reach the beginning of the log.
//!
//! Does not cover: the transfer, and the decision to send a snapshot. The Raft layer owns both.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::mem;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::apply::{StateMachine, read_state};
use super::error::{Context, StorageError};
use super::installation::{self, DIRECTORY, ENDING, ENDING_UNFINISHED, INSTALL, files_with_ending, finish_install};
use super::pages::ArrivingPages;
use super::{db, pages, private, schema};
use chat::Revision;
use proto::log::v1 as pb;

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

/// A snapshot that is being received. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    pages: ArrivingPages,
    checksum: crc32fast::Hasher,
}

impl Incoming {
    /// Creates the file in the data directory `dir`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join(DIRECTORY).join(format!("{:016x}.{ENDING_UNFINISHED}", random()));
        let file = private::create_file(&path).map_err(StorageError::io("make", &path))?;
        Ok(Self { path, file, pages: ArrivingPages::default(), checksum: crc32fast::Hasher::new() })
    }

    /// Writes the next pages, after a check.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: these are not whole pages, or one is damaged. The file cannot be written.
    pub fn write(&mut self, pages: &[u8]) -> Result<(), StorageError> {
        self.pages.check(pages)?;
        self.checksum.update(pages);
        self.file.write_all(pages).map_err(StorageError::io("write", &self.path))
    }

    /// Flushes the complete file, and checks it against the CRC-32 of what was sent. A file without checksums of its
    /// pages is read once more.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: something was lost or changed on the way. The file is no state of this program, or of
    /// a later version. The file cannot be flushed.
    pub fn finish(mut self, checksum: u32) -> Result<Received, StorageError> {
        if self.checksum.clone().finalize() != checksum {
            return Err(StorageError::Corrupt("a snapshot does not match its checksum".into()));
        }
        let conn = open_snapshot(&self.path)?;
        if !self.pages.are_sealed() {
            pages::check(&conn, "quick_check", &self.path)?;
        }
        let meta = read_meta(&conn)?;
        drop(conn);
        if failpoints::is_active(failpoints::NO_DEDUP_IN_SNAPSHOTS) {
            forget_client_ids(&self.path)?;
        }
        self.file.sync_all().map_err(StorageError::io("sync file", &self.path))?;
        Ok(Received { path: mem::take(&mut self.path), meta })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// A complete snapshot of another node. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Received {
    path: PathBuf,
    meta: SnapshotMeta,
}

impl Received {
    /// Its metadata.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes a file, unless it has moved. One that cannot be removed now is removed at the next start.
fn remove(path: &Path) {
    if !path.as_os_str().is_empty() {
        let _ = fs::remove_file(path);
    }
}

impl StateMachine {
    /// Checks the pages of a copy of the state, and reads its metadata.
    pub(super) fn verify_copy(path: &Path) -> Result<SnapshotMeta, StorageError> {
        let conn = open_snapshot(path)?;
        pages::check(&conn, "quick_check", path)?;
        read_meta(&conn)
    }

    /// Replaces the whole state by a snapshot. The connections of [`super::Readers`] still see the old state until they
    /// are reopened. No new connections may be opened while this runs.
    pub fn install_snapshot(&mut self, mut snapshot: Received) -> Result<(), StorageError> {
        self.install(&mem::take(&mut snapshot.path), snapshot.meta.log_id)
    }

    /// Puts the file at `path` in the place of the state. `position` is that of the state in it.
    fn install(&mut self, path: &Path, position: Option<pb::LogId>) -> Result<(), StorageError> {
        installation::note_position(&self.dir, position)?;
        self.conn = None;
        let install = self.dir.join(INSTALL);
        fs::rename(path, &install).map_err(StorageError::io("rename", path))?;
        db::sync_directory(&self.dir)?;
        finish_install(&self.dir)?;
        self.reopen()
    }

    /// Makes the state reach the beginning of the log, with a copy of an earlier version, if there is a gap. `purged`
    /// is the last entry that was cut off.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: there is a gap, and no copy closes it.
    pub fn close_gap(&mut self, purged: Option<pb::LogId>) -> Result<(), StorageError> {
        let index = |id: Option<pb::LogId>| id.map(|id| id.index);
        if index(self.applied().log_id) >= index(purged) {
            return Ok(());
        }
        for path in earlier_copies(&self.dir)? {
            match Self::verify_copy(&path) {
                Ok(meta) if index(meta.log_id) >= index(purged) => return self.install(&path, meta.log_id),
                Err(error) if !error.is_corruption() => return Err(error),
                _ => {}
            }
        }
        let shown = |id| index(id).map_or_else(|| "nothing".to_owned(), |index| index.to_string());
        let (applied, purged) = (shown(self.applied().log_id), shown(purged));
        Err(StorageError::Corrupt(format!("the state has applied {applied}, and the log was cut up to {purged}")))
    }
}

/// The copies of the state that earlier versions kept in a data directory, newest first. They are not verified.
pub(super) fn earlier_copies(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut files = files_with_ending(&dir.join(DIRECTORY), ENDING)?;
    // The names start with the log index, in a fixed width.
    files.sort_unstable_by(|a, b| b.cmp(a));
    Ok(files)
}

/// Removes the copies of the state that earlier versions kept. Nothing needs them once [`StateMachine::close_gap`] and
/// the integrity checks have succeeded.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_earlier_copies(dir: &Path) -> Result<(), StorageError> {
    earlier_copies(dir)?.iter().try_for_each(|path| private::remove(path))
}

/// Copies the committed state of the data directory `dir` into the file `to`, without its free space.
pub(super) fn copy_state(dir: &Path, to: &Path) -> Result<SnapshotMeta, StorageError> {
    db::copy_into(&db::open_reader(&db::database_path(dir))?, to)?;
    read_meta(&open_snapshot(to)?)
}

/// Opens a copy of the state for reading.
pub(super) fn open_snapshot(path: &Path) -> Result<Connection, StorageError> {
    let conn = db::open_reader(path)?;
    schema::check(&conn, path)?;
    Ok(conn)
}

pub(super) fn read_meta(conn: &Connection) -> Result<SnapshotMeta, StorageError> {
    let state = read_state(conn)?;
    Ok(SnapshotMeta { log_id: state.log_id, membership: state.membership, revision: state.revision })
}

fn forget_client_ids(path: &Path) -> Result<(), StorageError> {
    let conn = db::open_writer(path)?;
    conn.execute("UPDATE message SET client_id = randomblob(16)", []).context("forget ids in a snapshot")?;
    Ok(())
}

/// Copies a file into a new file of this node. The process may be allowed to read the source but not to write it.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), StorageError> {
    let mut source = File::open(from).map_err(StorageError::io("open", from))?;
    let copied = private::create_file(to).and_then(|mut file| io::copy(&mut source, &mut file));
    copied.map(drop).map_err(StorageError::io("copy a file to", to))
}

/// A random part for a unique file name. The standard library's source of random numbers is sufficient for that.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests;
