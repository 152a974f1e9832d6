//! The database file of the state: creation, upgrade, checksums, and opening for writing.

use std::path::Path;

use rusqlite::Connection;

use super::state::{AppliedState, read_state};
use crate::{
    db::{self, Checkpoints},
    error::{Context as _, StorageError},
    locks, pages, schema, sealing,
};

/// Opens the file in a data directory for writing, and creates it if it is missing. Its content is durable then.
pub(super) fn open(dir: &Path) -> Result<(Connection, Checkpoints, AppliedState), StorageError> {
    let path = db::database_path(dir);
    open_at(&path).map_err(|error| locks::name_holder(&path, error))
}

fn open_at(path: &Path) -> Result<(Connection, Checkpoints, AppliedState), StorageError> {
    let mut conn = db::open_writer(path)?;
    schema::create_or_check(&mut conn, path)?;
    // Only now is the file known to be ours. A file of an earlier version, or a snapshot of one, has no checksums.
    if !pages::is_sealed(&conn)? {
        drop(conn);
        sealing::seal_file(path, None)?;
        conn = db::open_writer(path)?;
    }
    let checkpoints = db::use_wal(&mut conn)?;
    // The content counts as durable from here on: the log may be cut behind it. Pages that a checkpoint has failed to
    // flush are in the write-ahead log, too.
    let wal = path.with_file_name(db::WRITE_AHEAD_LOG);
    if wal.exists() {
        db::write_anew(&wal)?;
    }
    path.parent().map_or(Ok(()), db::sync_directory)?;
    let applied = read_state(&conn)?;
    conn.busy_timeout(locks::RUNNING_MAX).context("set up the writer of chat.db")?;
    Ok((conn, checkpoints, applied))
}
