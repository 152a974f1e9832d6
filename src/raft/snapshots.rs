//! The snapshot files of this node: the newest one is kept, and handed out to be sent.
//!
//! A file in use may be removed from the directory at any time: a handle holds it open, so that its bytes stay until
//! the last reader is done.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    convert,
    types::{Snapshot, SnapshotMeta},
};
use crate::storage::{self, StateMachine};

/// A snapshot file, held open.
#[derive(Clone, Debug)]
pub struct SnapshotHandle {
    /// Its path when it was made.
    pub path: PathBuf,
    /// The open file.
    pub file: Arc<File>,
}

/// The newest snapshot of this node.
pub struct SnapshotStore {
    data_dir: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotHandle)>>,
}

impl SnapshotStore {
    /// Looks for snapshots in `data_dir`. A file that does not verify is left out, and removed: another one can be
    /// built from the state at any time.
    ///
    /// # Errors
    /// The directory cannot be read or made.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = directory(data_dir);
        fs::create_dir_all(&dir)?;
        let mut newest: Option<(SnapshotMeta, SnapshotHandle)> = None;
        for item in fs::read_dir(&dir)? {
            let path = item?.path();
            if path.extension().is_none_or(|extension| extension != "db") {
                continue;
            }
            match StateMachine::verify_snapshot(&path).map_err(io::Error::other).and_then(|meta| load(&path, meta)) {
                Ok(found) if newest.as_ref().is_none_or(|(meta, _)| found.0.last_log_id > meta.last_log_id) => {
                    newest = Some(found);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "A snapshot is not usable and is removed");
                    fs::remove_file(&path)?;
                }
            }
        }
        let store = Self { data_dir: data_dir.to_owned(), current: Mutex::new(newest) };
        store.prune();
        Ok(store)
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<Snapshot> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|(meta, handle)| Snapshot { meta: meta.clone(), snapshot: handle.clone() })
    }

    /// Builds a snapshot of the state as it is now. Blocks: the whole database is copied.
    pub fn build(&self) -> io::Result<Snapshot> {
        let built = StateMachine::build_snapshot(&self.data_dir).map_err(io::Error::other)?;
        let (meta, handle) = load(&built.path, built.meta)?;
        self.adopt(meta.clone(), handle.clone());
        Ok(Snapshot { meta, snapshot: handle })
    }

    /// Makes a verified file of the snapshot directory the newest snapshot, unless there is a newer one.
    pub fn adopt(&self, meta: SnapshotMeta, handle: SnapshotHandle) {
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.as_ref().is_some_and(|(newest, _)| newest.last_log_id >= meta.last_log_id) {
                return;
            }
            *current = Some((meta, handle));
        }
        self.prune();
    }

    /// A path for a snapshot that is being received.
    pub fn incoming_path(&self) -> PathBuf {
        directory(&self.data_dir).join(format!("incoming-{}.tmp", uuid::Uuid::new_v4().simple()))
    }

    /// Verifies a received file and gives it its final name.
    pub fn accept(&self, incoming: &Path) -> io::Result<Snapshot> {
        let meta = StateMachine::verify_snapshot(incoming).map_err(io::Error::other)?;
        let path = incoming.with_extension("db");
        fs::rename(incoming, &path)?;
        File::open(directory(&self.data_dir))?.sync_all()?;
        let (meta, handle) = load(&path, meta)?;
        Ok(Snapshot { meta, snapshot: handle })
    }

    /// Removes what is not the newest snapshot and not being received. A failure is tried again at the next one.
    fn prune(&self) {
        let keep = self.current().map(|snapshot| snapshot.snapshot.path);
        let Ok(items) = fs::read_dir(directory(&self.data_dir)) else { return };
        for path in items.flatten().map(|item| item.path()) {
            if path.extension().is_some_and(|extension| extension == "db")
                && Some(&path) != keep.as_ref()
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "An old snapshot could not be removed");
            }
        }
    }
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshots")
}

fn load(path: &Path, meta: storage::SnapshotMeta) -> io::Result<(SnapshotMeta, SnapshotHandle)> {
    let meta = SnapshotMeta {
        last_log_id: meta.log_id.map(convert::log_id),
        last_membership: convert::stored_membership(meta.membership).map_err(io::Error::other)?,
    };
    Ok((meta, SnapshotHandle { path: path.to_owned(), file: Arc::new(File::open(path)?) }))
}
