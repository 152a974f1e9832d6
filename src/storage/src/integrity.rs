//! Integrity of a data directory, and its quarantine.
//!
//! A node whose disk lost data must not continue under its old identity: it might vote twice in a term, or count
//! towards the quorum of an entry that it does not have any more. Therefore every start checks the files. If their
//! integrity is in doubt, all of them are moved to a quarantine directory, `aside/<time>`. The node is then empty, and
//! joins its cluster under a new identity.
//!
//! Reasons for a quarantine:
//!
//! - a damaged page, entry or record
//! - a missing write-ahead log, if the process did not shut down cleanly
//! - a log that ends before its durable end
//! - a state that is ahead of the log (the log lost its end), unless it was just installed as a snapshot
//! - a call of [`mark_for_quarantine`], after damage was found while the node was running
//!
//! Does not cover: a volume that was reset to an earlier moment as a whole. Its files are consistent, and only the
//! other nodes can detect it (`raft::commitments`).
//!
//! Invariant: a directory is moved as a whole or not at all. The quarantine mark is on disk before the first file is
//! moved, and is removed after the last.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::OpenFlags;

use super::error::StorageError;
use super::{LogDb, StateMachine};
use super::{
    db::{sync_directory, write_durably},
    installation, pages, private,
    snapshot::earlier_copies,
};
use proto::log::v1 as pb;

/// File name of the quarantine mark. It contains the reason.
const MARK: &str = "doubt";
/// File name of the marker that exists from the start of a process until its clean shutdown.
const RUNNING: &str = "running";
/// Directory for quarantined files.
const ASIDE: &str = "aside";
/// File name of the reason, next to the quarantined files.
const REASON: &str = "reason";
/// Number of quarantine directories that are kept. They serve investigation and take space.
const ASIDE_MAX: usize = 2;
/// All files of a node. The log is moved first: without it, a partly moved directory does not pass for a healthy node.
const FILES: [&str; 12] = [
    "log.db",
    "log.db-wal",
    "log.db-shm",
    "log.db-end",
    "chat.db-install",
    "chat.db",
    "chat.db-wal",
    "chat.db-shm",
    "chat.db-diverged",
    installation::INSTALLED,
    "snapshots",
    RUNNING,
];

/// Marks the files for quarantine, durably. The next start moves them aside.
pub fn mark_for_quarantine(dir: &Path, reason: &str) -> Result<(), StorageError> {
    write_durably(dir, MARK, reason.as_bytes())
}

/// The reason to quarantine the files, as far as it can be detected before they are opened. SQLite would create a
/// missing file, and would accept a file whose write-ahead log is missing.
pub fn quarantine_reason(dir: &Path) -> Result<Option<String>, StorageError> {
    let mark = dir.join(MARK);
    // Read as bytes, not text: the mark counts even if its content is unreadable.
    match fs::read(&mark) {
        Ok(reason) => return Ok(Some(String::from_utf8_lossy(&reason).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StorageError::io("read", &mark)(error)),
    }
    if !dir.join(RUNNING).exists() {
        return Ok(None);
    }
    for name in ["log.db", "chat.db"] {
        if !dir.join(name).exists() {
            return Ok(Some(format!("{name} is gone")));
        }
        // An interrupted installation of a snapshot has removed it with the old state, and the start completes the
        // installation.
        if name == "chat.db" && dir.join(installation::INSTALL).exists() {
            continue;
        }
        if uses_write_ahead_log(&dir.join(name))? && !dir.join(format!("{name}-wal")).exists() {
            return Ok(Some(format!("the write-ahead log of {name} is gone, and the node had not stopped in order")));
        }
    }
    Ok(None)
}

/// Checks every page in use and every entry of the log, and that log and state are consistent. What the node owes to
/// others depends on these. The pages of the state are verified when they are read, and by
/// [`SharedState::verify_pages`]: a crash damages none of them, since a page of the file is overwritten only while the
/// write-ahead log has it, too.
/// # Errors
/// [`StorageError::Corrupt`], or SQLite's error for a damaged file.
///
/// [`SharedState::verify_pages`]: super::SharedState::verify_pages
pub fn verify(dir: &Path, log: &LogDb, state: &StateMachine) -> Result<(), StorageError> {
    check_log(dir)?;
    log.verify()?;
    let (_, last) = log.bounds();
    let (state_at, last) = (state.applied().log_id, last.map(|id| id.index));
    let applied = state_at.map(|id| id.index);
    if applied > last && !was_installed(dir, state_at)? {
        let shown = |index: Option<u64>| index.map_or("nothing".to_owned(), |index| index.to_string());
        let (applied, last) = (shown(applied), shown(last));
        return Err(StorageError::Corrupt(format!("the state has applied {applied}, but the log ends at {last}")));
    }
    Ok(())
}

/// The databases without page checksums. An earlier version wrote them, and the volume has lacked the space to rewrite
/// them.
///
/// # Errors
/// A file cannot be read.
pub fn without_checksums(dir: &Path) -> Result<Vec<&'static str>, StorageError> {
    let mut found = Vec::new();
    for name in ["log.db", "chat.db"] {
        if !pages::is_sealed(&pages::open_file(&dir.join(name))?)? {
            found.push(name);
        }
    }
    Ok(found)
}

/// Whether the state at `position` was installed as a snapshot. The process may have ended before the log recorded that
/// it begins after that position.
fn was_installed(dir: &Path, position: Option<pb::LogId>) -> Result<bool, StorageError> {
    let noted = installation::noted_position(dir);
    if noted.is_some() && noted == position {
        return Ok(true);
    }
    // Earlier versions kept the snapshot instead of the note. It is about to be removed.
    let was_kept = |path: &PathBuf| StateMachine::verify_copy(path).is_ok_and(|meta| meta.log_id == position);
    let is_known = earlier_copies(dir)?.iter().any(was_kept);
    if is_known {
        installation::note_position(dir, position)?;
    }
    Ok(is_known)
}

/// Checks every page of the state that is in use, all at once. For a file without checksums, which
/// [`SharedState::verify_pages`] cannot check.
///
/// # Errors
/// [`StorageError::Corrupt`], or SQLite's error for a damaged file.
///
/// [`SharedState::verify_pages`]: super::SharedState::verify_pages
pub fn check_state(dir: &Path) -> Result<(), StorageError> {
    check_pages(&dir.join("chat.db"))
}

/// Marks the node as running, until [`closed`].
pub fn running(dir: &Path) -> Result<(), StorageError> {
    write_durably(dir, RUNNING, b"")
}

/// Marks a clean shutdown. The files are closed or about to be closed.
pub fn closed(dir: &Path) -> Result<(), StorageError> {
    private::remove(&dir.join(RUNNING))?;
    sync_directory(dir)
}

/// Moves all files of a node into a new quarantine directory, and returns its path. The node is then empty.
pub fn move_aside(dir: &Path, reason: &str) -> Result<PathBuf, StorageError> {
    mark_for_quarantine(dir, reason)?;
    let all = dir.join(ASIDE);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let name = (0..).map(|n| format!("{seconds:012}-{n}")).find(|name| !all.join(name).exists()).unwrap_or_default();
    let aside = all.join(name);
    private::create_dir_all(&aside).map_err(StorageError::io("make directory", &aside))?;
    for name in FILES {
        let from = dir.join(name);
        match fs::rename(&from, aside.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::io("move", &from)(error));
            }
            _ => {}
        }
    }
    let mark = dir.join(MARK);
    fs::copy(&mark, aside.join(REASON)).map_err(StorageError::io("copy", &mark))?;
    sync_directory(&aside)?;
    sync_directory(&all)?;
    sync_directory(dir)?;
    private::remove(&mark)?;
    sync_directory(dir)?;
    forget_old(&all)?;
    Ok(aside)
}

/// Removes the files that were quarantined at least `age` ago. The reason is kept: it shows that there was a cluster.
///
/// # Errors
/// A file cannot be removed.
pub fn forget_aside(dir: &Path, age: Duration) -> Result<(), StorageError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let Ok(items) = fs::read_dir(dir.join(ASIDE)) else { return Ok(()) };
    for item in items.flatten() {
        let name = item.file_name();
        let moved = name.to_str().and_then(|name| name.split('-').next()?.parse::<u64>().ok());
        if moved.is_none_or(|moved| seconds.saturating_sub(moved) < age.as_secs()) {
            continue;
        }
        let Ok(files) = fs::read_dir(item.path()) else { continue };
        for path in files.flatten().map(|file| file.path()).filter(|path| !path.ends_with(REASON)) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(StorageError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether any file exists that [`move_aside`] moves, or a move has begun.
pub(super) fn has_files(dir: &Path) -> bool {
    FILES.iter().chain([&MARK]).any(|name| dir.join(name).exists())
}

/// Whether files were quarantined here. In this case there was a cluster, and this node may join one but not create
/// one.
pub fn had_history(dir: &Path) -> bool {
    fs::read_dir(dir.join(ASIDE)).is_ok_and(|mut items| items.next().is_some())
}

fn forget_old(all: &Path) -> Result<(), StorageError> {
    let items = fs::read_dir(all).and_then(|items| items.map(|item| Ok(item?.path())).collect::<io::Result<Vec<_>>>());
    let mut items = items.map_err(StorageError::io("list", all))?;
    // The names start with the time, in a fixed width.
    items.sort_unstable();
    for old in items.iter().rev().skip(ASIDE_MAX) {
        fs::remove_dir_all(old).map_err(StorageError::io("remove", old))?;
    }
    Ok(())
}

/// Whether the file's header selects write-ahead logging. A file that is too short for a header is left to SQLite.
fn uses_write_ahead_log(path: &Path) -> Result<bool, StorageError> {
    const VERSIONS_AT: usize = 18;
    let mut header = [0; VERSIONS_AT + 2];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => Ok(header[VERSIONS_AT] == 2),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(StorageError::io("read", path)(error)),
    }
}

/// Checks every page of the log that is in use.
///
/// # Errors
/// [`StorageError::Corrupt`], or SQLite's error for a damaged file.
pub fn check_log(dir: &Path) -> Result<(), StorageError> {
    check_pages(&dir.join("log.db"))
}

fn check_pages(path: &Path) -> Result<(), StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = pages::open(path, flags, "open a database to check it")?;
    pages::check(&conn, "quick_check", path)
}

#[cfg(test)]
mod tests;
