//! Storage errors. Every kind that a caller has to handle differently is distinguished here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{ErrorCode, ffi};
use thiserror::Error;

use super::pages::page;

/// A failure of the database or of its files. It is never the outcome of a command: the node has to stop, or to fail
/// the one request that caused it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// SQLite returned an error.
    #[error("{context}: {source}")]
    Sqlite {
        /// The operation that failed.
        context: &'static str,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("{context} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        context: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The content is inconsistent.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The files are from an earlier moment: another node of the cluster has later commitments of this node.
    #[error("the files are an older copy of this node's: {0}")]
    Outdated(String),
    /// The state differs from that of a majority of the nodes.
    #[error("the state in {} is not what the other nodes have, and is not served: {details}", path.display())]
    Diverged {
        /// The data directory.
        path: PathBuf,
        /// Details of the divergence.
        details: String,
    },
    /// The file belongs to another program.
    #[error("{} is not a database of this program: {problem}", path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// The reason.
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
        /// Name of one of its items.
        found: String,
    },
    /// A data directory contains nothing from which a cluster could be created.
    #[error("{} cannot be the start of a new cluster: {problem}", path.display())]
    NotRecoverable {
        /// The directory.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A file is accessible to other users, or owned by one, and that cannot be changed.
    #[error("{} is not private to this node: {problem}", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// The users with access, and the reason.
        problem: String,
    },
    /// The volume has too little space for the operation.
    #[error("{} has {free} bytes free, and {needed} are needed", path.display())]
    TooLittleSpace {
        /// A directory on the volume.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Required bytes.
        needed: u64,
    },
    /// A command that this version cannot apply. The node stops, because a guess would make the replicas diverge.
    #[error("cannot apply {0}")]
    UnknownCommand(String),
    /// An entry that was already applied, or is out of order.
    #[error("entry {found} cannot be applied after entry {applied}")]
    OutOfOrder {
        /// Log index of the entry.
        found: u64,
        /// Log index of the last one applied.
        applied: u64,
    },
    /// Another process has locked a database for longer than this node waits.
    #[error("{} is locked by {holder}: end it, or its transaction", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
        /// The process that holds the lock.
        holder: String,
    },
    /// No connection became free within this time in milliseconds.
    #[error("no database connection became free within {0} ms")]
    Busy(u64),
    /// A read was interrupted because it exceeded this time in milliseconds.
    #[error("the read was ended after {0} ms")]
    ReadTooLong(u64),
    /// Writing has stopped, because of a shutdown or a failure in another thread.
    #[error("writing has stopped: {0}")]
    Stopped(String),
    /// Writing has stopped, because of this earlier failure.
    #[error("writing has stopped: {0}")]
    Failed(Arc<StorageError>),
    /// The database is closed, because a rollback or the installation of a snapshot failed.
    #[error("the database is closed: an earlier operation on its file failed")]
    Closed,
}

impl StorageError {
    /// Describes why the backup at `path`, whose verification failed with this error, cannot be restored.
    pub fn of_backup(&self, path: &Path) -> String {
        let how = if self.is_corruption() { "it is damaged or incomplete: " } else { "" };
        format!("{} cannot be restored: {how}{self}", path.display())
    }

    /// Whether the files must not be used any more, so that only another copy of the data helps.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Outdated(_) | Self::Diverged { .. } => true,
            Self::Failed(first) => first.is_corruption(),
            Self::Sqlite { source, .. } => is_damage(source),
            _ => false,
        }
    }

    /// Whether SQLite was interrupted.
    pub(super) fn is_interruption(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. }
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted))
    }

    /// Whether another connection has locked the database.
    pub(super) fn is_locked(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
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

    /// Creates the closure for `map_err` of a file operation on `path`.
    pub(super) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context, path: path.to_owned(), source }
    }
}

/// Whether SQLite has found damage: in a page, or a value that is never written. Each kind is listed, because an error
/// without damage must not cost a node its files.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, SqliteFailure, Utf8Error,
    };
    match error {
        _ if is_unsealed(error) => true,
        SqliteFailure(failure, _) => matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase),
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..) => true,
        _ => false,
    }
}

/// Whether a page did not match its checksum: see `pages`.
fn is_unsealed(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if failure.extended_code == ffi::SQLITE_IOERR_DATA)
}

/// The message for a damaged page, because SQLite reports only a "disk I/O error".
fn unsealed(context: &str) -> String {
    let page = page::last_damaged().map_or("a page".to_owned(), |number| format!("page {number}"));
    format!("{context}: {page} does not match its checksum")
}

/// Adds the failed operation to errors of SQLite.
pub(super) trait Context<T> {
    /// Wraps the error with `context`: words that complete "failed to".
    fn context(self, context: &'static str) -> Result<T, StorageError>;
}

impl<T> Context<T> for Result<T, rusqlite::Error> {
    fn context(self, context: &'static str) -> Result<T, StorageError> {
        self.map_err(|source| match is_unsealed(&source) {
            true => StorageError::Corrupt(unsealed(context)),
            false => StorageError::Sqlite { context, source },
        })
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
        assert!(sqlite(rusqlite::ffi::SQLITE_IOERR_DATA).is_corruption());
        assert!(!sqlite(rusqlite::ffi::SQLITE_IOERR).is_corruption());
        assert!(sqlite(rusqlite::ffi::SQLITE_FULL).is_full());
        assert!(!sqlite(rusqlite::ffi::SQLITE_BUSY).is_corruption());
        assert!(StorageError::Corrupt("x".into()).is_corruption());
        let full = StorageError::io("write", Path::new("x"))(io::Error::from(io::ErrorKind::StorageFull));
        assert!(full.is_full() && !full.is_corruption());
    }
}
