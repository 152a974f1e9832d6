//! Gives a database file of an earlier version the checksums of its pages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    db,
    error::{Context as _, StorageError},
    pages::open_file,
    private,
};

/// Extension of a copy that is not complete.
const UNFINISHED: &str = "sealing.tmp";

/// Rewrites an unsealed file as a sealed one, and sets its format to `user_version`, if given. Returns `false`, with
/// the file unchanged, if the volume has no space for the copy. No other process or thread may use the file meanwhile.
/// The copy replaces the file atomically, even if the process dies.
///
/// # Errors
/// The file cannot be read, or the copy cannot be written.
pub(super) fn seal_file(path: &Path, user_version: Option<i32>) -> Result<bool, StorageError> {
    let failed = "give a database checksums";
    let copy = unfinished(path);
    private::remove(&copy)?;
    let conn = open_file(path)?;
    db::keep_wal(&conn).context(failed)?;
    // The write-ahead log stays next to the new file, so it has to be empty.
    if !db::truncate_wal(&conn).context(failed)? {
        return Err(StorageError::Stopped(format!("{} is in use", path.display())));
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    // Requires twice the size of the copy: a node would stop when its volume is full.
    let (free, needed) = db::space_for_a_copy(&conn, dir)?;
    if free < needed {
        return Ok(false);
    }
    db::copy_into(&conn, &copy)?;
    drop(conn);
    if let Some(version) = user_version {
        open_file(&copy)?.pragma_update(None, "user_version", version).context(failed)?;
    }
    db::sync_file(&copy)?;
    fs::rename(&copy, path).map_err(StorageError::io("rename", &copy))?;
    db::sync_directory(dir)?;
    Ok(true)
}

/// Removes the copy that an interrupted [`seal_file`] has left.
pub(super) fn remove_unfinished(path: &Path) -> Result<(), StorageError> {
    private::remove(&unfinished(path))
}

pub(super) fn unfinished(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED)
}
