//! The files of a node: opened, locked, and quarantined if their integrity is in doubt.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{ServerError, observe::Commits};
use crate::{config::Config, telemetry::metrics::Metrics};
use raft::give_up_reserve_file;
use storage::{
    Background, CacheSize, FirstFailure, GroupCommit, LogDb, Readers, SharedState, StateMachine, StorageError,
    integrity, new_cluster,
    private::{self, Narrowed},
    remove_earlier_copies,
};
use trace::{Kind, Tracer, blocking};

/// Connections that read the state concurrently.
const READERS: usize = 4;

/// The files of a node, open and locked.
pub(super) struct Files {
    pub log: LogDb,
    pub state: SharedState,
    pub readers: Arc<Readers>,
    /// True once the state can no longer be written.
    pub state_failed: watch::Receiver<bool>,
    /// The first failure.
    pub failure: FirstFailure,
    /// Whether files of this node were quarantined, now or earlier. Such a node may join its cluster, but not bootstrap
    /// one.
    pub lost: bool,
    /// Dropped before the lock.
    _running: Running,
    /// Held while the node runs, because two nodes on one directory would destroy it.
    _lock: File,
}

/// Opens the data directory. Files that fail the integrity checks are moved aside, and the node starts empty.
pub(super) async fn open(
    config: &Config,
    metrics: &Metrics,
    tracer: &Tracer,
    background: &Arc<dyn Background>,
) -> Result<Files, ServerError> {
    let (dir, metrics, tracer) = (config.data_dir.clone(), metrics.clone(), tracer.clone());
    let background = Arc::clone(background);
    let cache_bytes = config.cache_bytes;
    let opening = blocking::run(move || {
        let lock = lock(&dir)?;
        match give_up_reserve_file(&dir) {
            Ok(false) => {}
            Ok(true) => tracing::warn!("No space is left on the volume: released the reserve file in order to start"),
            Err(error) => tracing::warn!(%error, "The free space of the volume could not be determined"),
        }
        new_cluster::finish(&dir)?;
        let (log, mut machine) = open_trusted(&dir, &metrics, &tracer, &*background)?;
        for name in integrity::without_checksums(&dir)? {
            tracing::warn!(
                "{name} has no checksums of its pages: an earlier version made it, and CHAT_DATA_DIR has no space for \
                 a copy of it. Make space and start the node again"
            );
        }
        integrity::running(&dir)?;
        let running = Running(dir.clone());
        let (failed, state_failed) = watch::channel(false);
        let failure = FirstFailure::default();
        let commits = Box::new(Commits { metrics, first: failure.clone(), failed });
        let cache_size = CacheSize::of(cache_bytes);
        log.set_cache_size(cache_size);
        machine.set_cache_size(cache_size)?;
        let state = SharedState::in_background(machine, commits, &*background)?;
        let readers = Arc::new(Readers::of(state.clone(), READERS)?);
        let lost = integrity::had_history(&dir);
        Ok(Files { log, state, readers, state_failed, failure, lost, _running: running, _lock: lock })
    });
    opening.await.map_err(|error| ServerError::Task(error.to_string()))?
}

/// Records on disk, when dropped, that the process has ended in an orderly way. After that, missing write-ahead logs
/// are accepted: an operator may have opened the files with SQLite's own tools, which remove them.
struct Running(PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        note_end(&self.0);
    }
}

/// Records that the files are about to be closed. If that fails, or the process is killed first, the write-ahead logs
/// still exist, and the next start reads them.
pub(super) fn note_end(dir: &Path) {
    if let Err(error) = integrity::closed(dir) {
        tracing::warn!(%error, "The clean end of this process could not be recorded");
    }
}

/// Handles a stop because of `failure`. If the failure is corruption, marks the files so that the next start
/// quarantines them.
pub(super) fn note_damage(dir: &Path, failure: &FirstFailure) {
    let Some(damage) = failure.get().filter(|failure| failure.corrupt) else { return };
    if let Err(error) = integrity::mark_for_quarantine(dir, &damage.reason) {
        tracing::error!(%error, "The damage could not be recorded for the next start");
    }
}

/// Removes quarantined files once they are old enough, until the future is dropped.
pub(super) async fn forget_aside(dir: PathBuf, erase_after: Duration) {
    const LOOK_MAX: Duration = Duration::from_secs(600);
    let mut tick = tokio::time::interval((erase_after / 8).min(LOOK_MAX));
    loop {
        tick.tick().await;
        let dir = dir.clone();
        // Earlier than `erase_after`, because the check that finds the files and their removal take time.
        let forgotten = blocking::run(move || integrity::forget_aside(&dir, erase_after / 4 * 3)).await;
        if let Ok(Err(error)) = forgotten {
            tracing::warn!(%error, "Quarantined files could not be removed");
        }
    }
}

fn open_trusted(
    dir: &Path,
    metrics: &Metrics,
    tracer: &Tracer,
    background: &dyn Background,
) -> Result<(LogDb, StateMachine), StorageError> {
    if let Some(reason) = integrity::quarantine_reason(dir)? {
        set_aside(dir, &reason)?;
    }
    match open_and_verify(dir, metrics, tracer, background) {
        Err(error) if error.is_corruption() => {
            set_aside(dir, &error.to_string())?;
            open_and_verify(dir, metrics, tracer, background)
        }
        other => other,
    }
}

fn open_and_verify(
    dir: &Path,
    metrics: &Metrics,
    tracer: &Tracer,
    background: &dyn Background,
) -> Result<(LogDb, StateMachine), StorageError> {
    let (fsync, group) = (metrics.storage.log_fsync_seconds.clone(), metrics.storage.log_group_entries.clone());
    let tracer = tracer.clone();
    let on_group = Box::new(move |commit: &GroupCommit| {
        let GroupCommit { began, written, durable, .. } = *commit;
        fsync.observe(durable.saturating_duration_since(began).as_secs_f64());
        group.observe(commit.entries as f64);
        let entries = || ("log.entries", commit.entries.into());
        tracer.record("log.write", Kind::Internal, &commit.traces, (began, written), [entries()]);
        tracer.record("log.fsync", Kind::Internal, &commit.traces, (written, durable), [entries()]);
    });
    let log = LogDb::open_in_background(dir, on_group, background)?;
    let verified = StateMachine::open(dir).and_then(|mut machine| {
        machine.close_gap(log.bounds().0)?;
        integrity::verify(dir, &log, &machine)?;
        remove_earlier_copies(dir)?;
        Ok(machine)
    });
    match verified {
        Ok(machine) => Ok((log, machine)),
        Err(error) => {
            log.close();
            Err(error)
        }
    }
}

fn set_aside(dir: &Path, reason: &str) -> Result<(), StorageError> {
    let aside = integrity::move_aside(dir, reason)?;
    tracing::error!(
        aside = %aside.display(),
        "The files in CHAT_DATA_DIR failed their integrity checks ({reason}). They were moved aside; this node starts \
         empty, under a new id"
    );
    Ok(())
}

/// Creates the directory if necessary, and locks it against other processes.
pub(super) fn lock(dir: &Path) -> Result<File, ServerError> {
    let failed = |source| ServerError::DataDir { path: dir.to_owned(), source };
    private::create_dir_all(dir).map_err(failed)?;
    let file = private::open_or_create(&dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(ServerError::DataDirInUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    report(dir, private::narrow(dir)?);
    Ok(file)
}

/// Logs which files other users could read. It is unknown whether they did.
fn report(dir: &Path, narrowed: Narrowed) {
    if let Some((first, mode)) = narrowed.first {
        tracing::warn!(
            first = %first.display(),
            mode = %format_args!("{mode:04o}"),
            narrowed = narrowed.count,
            "Files in CHAT_DATA_DIR were accessible to other users of this machine; access was restricted to their \
             owner"
        );
    }
    if let Some(mode) = narrowed.writable_by_others {
        tracing::warn!(
            dir = %dir.display(),
            mode = %format_args!("{mode:04o}"),
            "CHAT_DATA_DIR belongs to another user and is writable for every user, who could remove and replace files. \
             Restrict its access"
        );
    }
}
