//! The files of snapshots, and the end of an installation that a crash has interrupted. Below the state machine, which
//! opens the directory; `snapshot` receives and installs the files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

use super::{db, divergence, error::StorageError, private};
use proto::log::v1 as pb;

pub(super) const DIRECTORY: &str = "snapshots";
pub(super) const ENDING: &str = "snapshot";
pub(super) const ENDING_UNFINISHED: &str = "tmp";
pub(super) const INSTALL: &str = "chat.db-install";
/// The copy that earlier versions made in order to install it.
const INSTALL_UNFINISHED: &str = "chat.db-install.tmp";
/// Note of the position of the snapshot that was installed last.
pub(super) const INSTALLED: &str = "chat.db-installed";

/// Creates the directories, completes an interrupted installation, and removes unfinished files.
pub(super) fn prepare_directory(dir: &Path) -> Result<(), StorageError> {
    let snapshots = dir.join(DIRECTORY);
    private::create_dir_all(&snapshots).map_err(StorageError::io("make directory", &snapshots))?;
    if dir.join(INSTALL).exists() {
        finish_install(dir)?;
    }
    for file in files_with_ending(&snapshots, ENDING_UNFINISHED)? {
        private::remove(&file)?;
    }
    private::remove(&dir.join(INSTALL_UNFINISHED))
}

pub(super) fn finish_install(dir: &Path) -> Result<(), StorageError> {
    // The write-ahead log and the record of a divergence belong to the old file.
    for name in ["chat.db-wal", "chat.db-shm", divergence::FILE] {
        private::remove(&dir.join(name))?;
    }
    db::sync_directory(dir)?;
    let install = dir.join(INSTALL);
    fs::rename(&install, db::database_path(dir)).map_err(StorageError::io("rename", &install))?;
    db::sync_directory(dir)
}

/// Notes the position of a snapshot that is about to be installed, durably.
pub(super) fn note_position(dir: &Path, position: Option<pb::LogId>) -> Result<(), StorageError> {
    db::write_durably(dir, INSTALLED, &position.unwrap_or_default().encode_to_vec())
}

/// The position of the snapshot that was installed last. `None` if there was none, or the note is not readable.
pub(super) fn noted_position(dir: &Path) -> Option<pb::LogId> {
    let note = fs::read(dir.join(INSTALLED)).ok()?;
    // A crash may leave an empty file, which would be the first position.
    if note.is_empty() { None } else { pb::LogId::decode(note.as_slice()).ok() }
}

pub(super) fn files_with_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, StorageError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        if path.extension().is_some_and(|found| found == ending) {
            files.push(path);
        }
    }
    Ok(files)
}
