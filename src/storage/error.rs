//! Why storage failed. Every kind that a caller has to treat differently is told apart here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;
use thiserror::Error;

/// A failure of the database or of its files. None of them is an outcome of a command: the node has to stop, or to
/// give up the one request that asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// SQLite refused.
    #[error("{context}: {source}")]
    Sqlite {
        /// What was being done.
        context: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("{context} {}: {source}", path.display())]
    Io {
        /// What was being done.
        context: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content contradicts itself.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The files are those of an earlier moment: a node of the cluster remembers more.
    #[error("the files are an older copy of this node's: {0}")]
    Outdated(String),
    /// The state is another one than that of a majority of the nodes.
    #[error("the state in {} is not what the other nodes have, and is not served: {details}", path.display())]
    Diverged {
        /// The data directory.
        path: PathBuf,
        /// What is known of it.
        details: String,
    },
    /// The file belongs to another program.
    #[error("{} is not a database of this program: {problem}", path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file was written by a later version of this program.
    #[error("{} has format {found}; this version knows formats up to {known}: run a newer version", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The file's format.
        found: i64,
        /// The newest format that this version knows.
        known: i64,
    },
    /// A data directory that has to be empty is not.
    #[error("{} is not empty: there is {found:?}", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A data directory holds nothing that a cluster could be made of.
    #[error("{} cannot be the start of a new cluster: {problem}", path.display())]
    NotRecoverable {
        /// The directory.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file is open to other users, or belongs to one, and that cannot be changed.
    #[error("{} is not private to this node: {problem}", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Who may read it, and why.
        problem: String,
    },
    /// There is too little space on the volume for what was asked.
    #[error("{} has {free} bytes free, and {needed} are needed", path.display())]
    TooLittleSpace {
        /// A directory on the volume.
        path: PathBuf,
        /// What is there.
        free: u64,
        /// What it takes.
        needed: u64,
    },
    /// A command that this version cannot apply. It stops rather than guess: the replicas would differ.
    #[error("cannot apply {0}")]
    UnknownCommand(String),
    /// An entry that was applied already, or is out of order.
    #[error("entry {found} cannot be applied after entry {applied}")]
    OutOfOrder {
        /// Log index of the entry.
        found: u64,
        /// Log index of the last one applied.
        applied: u64,
    },
    /// No connection became free in time.
    #[error("no database connection became free within {0} ms")]
    Busy(u64),
    /// A read was ended because it took longer than a read may.
    #[error("the read was ended after {0} ms")]
    ReadTooLong(u64),
    /// A shutdown, or a failure that another thread saw, has stopped all writing.
    #[error("writing has stopped: {0}")]
    Stopped(String),
    /// An earlier failure has stopped all writing.
    #[error("writing has stopped: {0}")]
    Failed(Arc<StorageError>),
    /// The database was closed because an earlier installation of a snapshot failed.
    #[error("the database is closed: an earlier operation on its file failed")]
    Closed,
}

impl StorageError {
    /// Whether the files are not to be used any more, so that only another copy of the data helps.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Outdated(_) | Self::Diverged { .. } => true,
            Self::Failed(first) => first.is_corruption(),
            Self::Sqlite { source, .. } => {
                matches!(source.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            }
            _ => false,
        }
    }

    /// Whether SQLite was interrupted.
    pub(super) fn is_interruption(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. }
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted))
    }

    /// Whether the volume is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Failed(first) => first.is_full(),
            Self::TooLittleSpace { .. } => true,
            Self::Sqlite { source, .. } => source.sqlite_error_code() == Some(ErrorCode::DiskFull),
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// For `map_err` of a file operation on `path`.
    pub(super) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context, path: path.to_owned(), source }
    }
}

/// Says what was being done when SQLite failed.
pub(super) trait Context<T> {
    /// Wraps the error with `context`: words that complete "failed to".
    fn context(self, context: &'static str) -> Result<T, StorageError>;
}

impl<T> Context<T> for Result<T, rusqlite::Error> {
    fn context(self, context: &'static str) -> Result<T, StorageError> {
        self.map_err(|source| StorageError::Sqlite { context, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite(code: i32) -> StorageError {
        let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        StorageError::Sqlite { context: "test", source }
    }

    #[test]
    fn kinds_that_callers_tell_apart() {
        assert!(sqlite(rusqlite::ffi::SQLITE_CORRUPT).is_corruption());
        assert!(sqlite(rusqlite::ffi::SQLITE_NOTADB).is_corruption());
        assert!(sqlite(rusqlite::ffi::SQLITE_FULL).is_full());
        assert!(!sqlite(rusqlite::ffi::SQLITE_BUSY).is_corruption());
        assert!(StorageError::Corrupt("x".into()).is_corruption());
        let full = StorageError::io("write", Path::new("x"))(io::Error::from(io::ErrorKind::StorageFull));
        assert!(full.is_full() && !full.is_corruption());
    }
}
