//! The snapshot files of this node. The newest one is kept, and is handed out for sending.
//!
//! A file in use may be removed from the directory at any time. A handle holds it open, so that its bytes stay until
//! the last reader is done.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use super::{
    convert,
    types::{Snapshot, SnapshotMeta},
};
use crate::storage::{self, StateMachine, private};

/// File extension of complete snapshots: those that [`StateMachine`] builds, and those that were received.
const ENDING: &str = "snapshot";

/// A snapshot file, held open.
#[derive(Clone, Debug)]
pub struct SnapshotHandle {
    /// Path of the file when it was made.
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
    /// Looks for snapshots in `data_dir`. A file that does not verify is removed, since another one can be built from
    /// the state at any time.
    ///
    /// # Errors
    /// The directory cannot be read or made.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = directory(data_dir);
        private::create_dir_all(&dir)?;
        let mut newest: Option<(SnapshotMeta, SnapshotHandle)> = None;
        for item in fs::read_dir(&dir)? {
            let path = item?.path();
            if path.extension().is_none_or(|extension| extension != ENDING) {
                continue;
            }
            match StateMachine::verify_snapshot(&path).map_err(io::Error::other).and_then(|meta| load(&path, meta)) {
                Ok(found) if newest.as_ref().is_none_or(|(meta, _)| found.0.last_log_id > meta.last_log_id) => {
                    if let Some((_, older)) = newest.replace(found) {
                        remove(&older.path);
                    }
                }
                Ok(_) => remove(&path),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "Removed an unusable snapshot");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(Self { data_dir: data_dir.to_owned(), current: Mutex::new(newest) })
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<Snapshot> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|(meta, handle)| Snapshot { meta: meta.clone(), snapshot: handle.clone() })
    }

    /// When the newest snapshot was made, by the clock of the file system.
    pub fn made(&self) -> Option<SystemTime> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().and_then(|(_, handle)| handle.file.metadata().and_then(|metadata| metadata.modified()).ok())
    }

    /// Builds a snapshot of the state as it is now. Blocks: the whole database is copied.
    pub fn build(&self) -> io::Result<Snapshot> {
        let built = StateMachine::build_snapshot(&self.data_dir).map_err(io::Error::other)?;
        let (meta, handle) = load(&built.path, built.meta)?;
        self.adopt(meta.clone(), handle.clone());
        Ok(Snapshot { meta, snapshot: handle })
    }

    /// Makes a verified file of the snapshot directory the newest snapshot, unless there is a newer one. Removes the
    /// other of the two and nothing else, because a file that was received and waits to be installed must stay.
    pub fn adopt(&self, meta: SnapshotMeta, handle: SnapshotHandle) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match current.as_ref() {
            Some((newest, kept)) if newest.last_log_id >= meta.last_log_id => {
                // At the start the newest snapshot may be installed again, and then both are the same file.
                if kept.path != handle.path {
                    remove(&handle.path);
                }
                return;
            }
            _ => current.replace((meta, handle)),
        };
        drop(current);
        if let Some((_, old)) = old {
            remove(&old.path);
        }
    }

    /// A path for a snapshot that is being received.
    pub fn incoming_path(&self) -> PathBuf {
        directory(&self.data_dir).join(format!("incoming-{}.tmp", uuid::Uuid::new_v4().simple()))
    }

    /// Verifies a received file and gives it its final name.
    pub fn accept(&self, incoming: &Path) -> io::Result<Snapshot> {
        let meta = StateMachine::verify_snapshot(incoming).map_err(io::Error::other)?;
        let path = incoming.with_extension(ENDING);
        fs::rename(incoming, &path)?;
        File::open(directory(&self.data_dir))?.sync_all()?;
        let (meta, handle) = load(&path, meta)?;
        Ok(Snapshot { meta, snapshot: handle })
    }
}

/// Removes an old snapshot. If that fails, the next start removes it.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "An old snapshot could not be removed");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::log::v1 as pb,
        storage::{AppliedEntry, AppliedPayload},
    };

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory(dir)).unwrap().map(|item| item.unwrap().path()).collect()
    }

    #[test]
    fn the_newest_snapshot_is_found_again_and_older_ones_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = StateMachine::open(dir.path()).unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        for index in 0..3 {
            let log_id = pb::LogId { term: 1, node_id: 1, index };
            machine.apply(vec![AppliedEntry { log_id, payload: AppliedPayload::Blank }]).unwrap();
            let built = store.build().unwrap();
            assert_eq!(files(dir.path()), [built.snapshot.path]);
        }
        let newest = store.current().unwrap();
        let found = SnapshotStore::open(dir.path()).unwrap().current().unwrap();
        assert_eq!((found.meta, found.snapshot.path), (newest.meta, newest.snapshot.path));

        // A received snapshot waits to be installed. A newer one of this node does not remove it.
        let waiting = received(&store, dir.path());
        store.build().unwrap();
        assert!(waiting.exists());
        fs::remove_file(&waiting).unwrap();

        // A damaged snapshot is not offered, and its file is removed.
        fs::write(&files(dir.path())[0], [7; 8192]).unwrap();
        assert!(SnapshotStore::open(dir.path()).unwrap().current().is_none());
        assert!(files(dir.path()).is_empty());
    }

    /// A copy of the newest snapshot, received and not installed yet.
    fn received(store: &SnapshotStore, dir: &Path) -> PathBuf {
        let incoming = store.incoming_path();
        fs::copy(&files(dir)[0], &incoming).unwrap();
        store.accept(&incoming).unwrap().snapshot.path
    }

    #[test]
    fn a_received_snapshot_is_found_again() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut machine = StateMachine::open(from.path()).unwrap();
        let log_id = pb::LogId { term: 1, node_id: 1, index: 5 };
        machine.apply(vec![AppliedEntry { log_id, payload: AppliedPayload::Blank }]).unwrap();
        let sent = SnapshotStore::open(from.path()).unwrap().build().unwrap();

        let receiver = SnapshotStore::open(to.path()).unwrap();
        let incoming = receiver.incoming_path();
        fs::copy(&sent.snapshot.path, &incoming).unwrap();
        let accepted = receiver.accept(&incoming).unwrap();
        receiver.adopt(accepted.meta.clone(), accepted.snapshot);
        let found = SnapshotStore::open(to.path()).unwrap().current().unwrap();
        assert_eq!((&found.meta, &found.meta), (&accepted.meta, &sent.meta));
    }
}
