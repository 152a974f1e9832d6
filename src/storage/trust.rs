//! Whether a data directory can be trusted, and what is done when it cannot.
//!
//! A node whose disk lost something must not go on under its old identity: it might vote twice in a term, or be counted
//! for an entry that it does not have any more. So at every start the files are checked, and when there is a doubt all of
//! them are moved aside, into `aside/<time>`; the node is empty then, and joins its cluster under a new identity.
//!
//! What raises a doubt: a page, an entry or a record that is damaged; a write-ahead log that is gone although the process did
//! not end in order; a log that ends before what was called durable; a state that is ahead of the log (the log lost its end), unless it was just
//! installed as a snapshot; and [`doubt`], called when damage was met while
//! the node ran. Left out: a volume that was put back to an earlier moment as a whole, which looks like an honest one here; the
//! other nodes tell (`raft::promises`).
//!
//! Invariant: a directory is moved as a whole or not at all. The mark of the doubt is on disk before the first file moves, and
//! goes with the last.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use super::error::{Context, StorageError};
use super::{LogDb, StateMachine};
use super::{db::sync_directory, private, snapshot};
use crate::proto::log::v1 as pb;

/// Why the files are not to be used.
const DOUBT: &str = "doubt";
/// There from the start of a process until it ends by itself.
const RUNNING: &str = "running";
/// Where files go that are not trusted.
const ASIDE: &str = "aside";
/// Why they went there.
const REASON: &str = "reason";
/// Of these directories so many are kept: they are for a look at what happened, and take space.
const ASIDE_MAX: usize = 2;
/// Everything that a node stores. The log goes first: without it nobody takes the rest for an honest node.
const FILES: [&str; 11] = [
    "log.db",
    "log.db-wal",
    "log.db-shm",
    "log.db-end",
    "chat.db-install",
    "chat.db",
    "chat.db-wal",
    "chat.db-shm",
    "chat.db-diverged",
    "snapshots",
    RUNNING,
];

/// Marks the files as not to be trusted, durably. They are moved aside at the next start.
pub fn doubt(dir: &Path, reason: &str) -> Result<(), StorageError> {
    write_durably(dir, DOUBT, reason)
}

/// Why the files are not to be trusted, as far as can be said before they are opened. A file that was cut off, or whose
/// write-ahead log is gone, would look fine to SQLite.
pub fn doubts(dir: &Path) -> Result<Option<String>, StorageError> {
    let mark = dir.join(DOUBT);
    // Bytes, not text: that it is there counts, whatever has become of what it says.
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
        // It goes with the old state, in the midst of putting a snapshot in its place: the start goes on with that.
        if name == "chat.db" && dir.join(snapshot::INSTALL).exists() {
            continue;
        }
        if uses_write_ahead_log(&dir.join(name))? && !dir.join(format!("{name}-wal")).exists() {
            return Ok(Some(format!("the write-ahead log of {name} is gone, and the node had not stopped in order")));
        }
    }
    Ok(None)
}

/// Checks every page of both databases, every entry of the log, and that the two fit together.
///
/// # Errors
/// [`StorageError::Corrupt`], or what SQLite says of a damaged file.
pub fn verify(dir: &Path, log: &LogDb, state: &StateMachine) -> Result<(), StorageError> {
    for name in ["log.db", "chat.db"] {
        check_pages(&dir.join(name))?;
    }
    log.verify()?;
    let (_, last) = log.bounds();
    let (state_at, last) = (state.applied().log_id, last.map(|id| id.index));
    let applied = state_at.map(|id| id.index);
    if applied > last && !was_installed(dir, state_at) {
        let shown = |index: Option<u64>| index.map_or("nothing".to_owned(), |index| index.to_string());
        let (applied, last) = (shown(applied), shown(last));
        return Err(StorageError::Corrupt(format!("the state has applied {applied}, but the log ends at {last}")));
    }
    Ok(())
}

/// Whether the state at `position` came as a snapshot: the process may have ended before the log had noted that it begins
/// after it.
fn was_installed(dir: &Path, position: Option<pb::LogId>) -> bool {
    let Ok(items) = fs::read_dir(dir.join("snapshots")) else { return false };
    let paths =
        items.flatten().map(|item| item.path()).filter(|path| path.extension().is_some_and(|end| end == "snapshot"));
    paths.into_iter().any(|path| StateMachine::verify_snapshot(&path).is_ok_and(|meta| meta.log_id == position))
}

/// The node runs from now on, until [`closed`].
pub fn running(dir: &Path) -> Result<(), StorageError> {
    write_durably(dir, RUNNING, "")
}

/// The process ends by itself, with its files closed or about to be.
pub fn closed(dir: &Path) -> Result<(), StorageError> {
    remove(&dir.join(RUNNING))?;
    sync_directory(dir)
}

/// Moves everything that a node stores into a directory of its own, and returns that. The node is empty then.
pub fn move_aside(dir: &Path, reason: &str) -> Result<PathBuf, StorageError> {
    doubt(dir, reason)?;
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
    let mark = dir.join(DOUBT);
    fs::copy(&mark, aside.join(REASON)).map_err(StorageError::io("copy", &mark))?;
    sync_directory(&aside)?;
    sync_directory(&all)?;
    sync_directory(dir)?;
    remove(&mark)?;
    sync_directory(dir)?;
    forget_old(&all)?;
    Ok(aside)
}

/// Removes the files that were moved aside at least `age` ago. The reason stays: it says that there was a cluster.
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

/// Whether anything is there that [`move_aside`] moves, or a move has begun.
pub(super) fn has_files(dir: &Path) -> bool {
    FILES.iter().chain([&DOUBT]).any(|name| dir.join(name).exists())
}

/// Whether files were moved aside here: then there was a cluster, and this node may join one but not found one.
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

/// What the file's header says. A file that is too short for one is left to SQLite.
fn uses_write_ahead_log(path: &Path) -> Result<bool, StorageError> {
    const VERSIONS_AT: usize = 18;
    let mut header = [0; VERSIONS_AT + 2];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => Ok(header[VERSIONS_AT] == 2),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(StorageError::io("read", path)(error)),
    }
}

fn check_pages(path: &Path) -> Result<(), StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).context("open a database to check it")?;
    let verdict: String =
        conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).context("check the pages of a database")?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(StorageError::Corrupt(format!("{}: {verdict}", path.display()))),
    }
}

fn write_durably(dir: &Path, name: &str, content: &str) -> Result<(), StorageError> {
    let path = dir.join(name);
    let write = || {
        let mut file = private::create_file(&path)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().map_err(StorageError::io("write", &path))?;
    sync_directory(dir)
}

fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
