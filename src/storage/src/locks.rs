//! Locks of other processes on the databases.
//!
//! SQLite allows one writing connection at a time, across all processes. An operator's `sqlite3` or a backup tool with
//! an open transaction therefore blocks the node's writes. SQLite reports that a database is locked, but not by which
//! process. The operating system provides that.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use procfs::{LockKind, process::Process};

use super::error::StorageError;

/// Maximum wait for another process's lock on a database of a running node. The node does not lead meanwhile, and its
/// log names the process.
pub(super) const RUNNING_MAX: Duration = Duration::from_secs(60);
/// Maximum wait for such a lock at the start.
pub(super) const START_MAX: Duration = Duration::from_secs(5);

/// The other process that has locked a database for writing, if the system shows it to this process.
pub fn lock_holder(database: &Path) -> Option<String> {
    let own = i32::try_from(std::process::id()).ok()?;
    let mut shared = database.as_os_str().to_owned();
    shared.push("-shm");
    // In write-ahead mode a writer locks a byte of the shared memory file; otherwise it locks the database itself.
    let files = [Path::new(&shared), database].map(|path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino())));
    let locks = procfs::locks().ok()?;
    let mut writers = locks.into_iter().filter(|lock| matches!(lock.kind, LockKind::Write));
    let pid = writers.find_map(|lock| {
        let file = (rustix::fs::makedev(lock.devmaj, lock.devmin), lock.inode);
        lock.pid.filter(|pid| *pid != own && files.contains(&Some(file)))
    })?;
    let name = Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.comm);
    Some(match name {
        Ok(name) => format!("{name} (process {pid})"),
        Err(_) => format!("process {pid}"),
    })
}

/// Names the process that holds the lock, if `error` means that a database is locked.
pub(super) fn name_holder(database: &Path, error: StorageError) -> StorageError {
    if !error.is_locked() {
        return error;
    }
    let holder = lock_holder(database).unwrap_or_else(|| "a process that cannot be seen from here".to_owned());
    StorageError::Locked { path: database.to_owned(), holder }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::{StateMachine, log::LogDb};

    /// A process with an open transaction, until its input is closed.
    const HOLDER: &str = "import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
sys.stdin.read()
";

    #[test]
    fn who_has_locked_a_database_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        LogDb::open(dir.path(), Box::new(|_| {})).expect("log").close();
        drop(StateMachine::open(dir.path()).expect("state"));
        for name in ["log.db", "chat.db"] {
            let path = dir.path().join(name);
            assert_eq!(lock_holder(&path), None);
            let mut holder = Command::new("python3")
                .args(["-c", HOLDER])
                .arg(&path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3 runs");
            let mut line = String::new();
            BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("it locks");
            let expected = format!("python3 (process {})", holder.id());
            assert_eq!(lock_holder(&path).as_deref(), Some(expected.as_str()));
            if name == "log.db" {
                // The start flushes the existing files, which is a write.
                let error = LogDb::open(dir.path(), Box::new(|_| {})).err().expect("locked");
                assert!(matches!(&error, StorageError::Locked { holder, .. } if *holder == expected), "{error}");
            } else {
                let state = StateMachine::open(dir.path()).expect("it is only read");
                assert!(!state.try_begin().expect("asked"), "nobody waits on a thread that others need");
            }
            drop(holder.stdin.take());
            holder.wait().expect("it ends");
        }
    }
}
