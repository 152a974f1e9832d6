//! Reads of this node's copy of the state from async code.
//!
//! SQLite blocks, so reads run on blocking threads. A semaphore keeps their number near that of the connections, so
//! that a flood of reads waits here, with deadlines, instead of in threads.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::status;
use chat::TimeMs;
use storage::{BackupFile, Query, Readers, StorageError};
use trace::blocking;

/// Concurrent reads on blocking threads.
const READS_AT_ONCE_MAX: usize = 16;

/// Concurrent reads that scan many rows: lists, totals, and the catch-up of subscriptions. At least one connection
/// remains for the reads that every call needs.
const SCANS_AT_ONCE_MAX: usize = 3;

/// Concurrent backups, counted until they are sent. Each takes the space of the whole state.
const BACKUPS_AT_ONCE_MAX: usize = 1;

/// The read side of the state. Clones share it.
#[derive(Clone)]
pub(super) struct Database {
    readers: Arc<Readers>,
    slots: Arc<Semaphore>,
    scans: Arc<Semaphore>,
    backups: Arc<Semaphore>,
}

impl Database {
    pub(super) fn new(readers: Arc<Readers>) -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self {
            readers,
            slots: slots(READS_AT_ONCE_MAX),
            scans: slots(SCANS_AT_ONCE_MAX),
            backups: slots(BACKUPS_AT_ONCE_MAX),
        }
    }

    /// A permit to make a backup, held until it is dropped.
    pub(super) fn backup_slot(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.backups.clone().try_acquire_owned().map_err(|_| status::overloaded("another backup is under way here"))
    }

    /// Makes a backup; see [`Readers::back_up`]. It continues if the returned future is dropped.
    pub(super) async fn back_up(&self, cluster_id: String, node: String, now: TimeMs) -> Result<BackupFile, Status> {
        let readers = self.readers.clone();
        let made = blocking::run(move || readers.back_up(&cluster_id, &node, now)).await;
        made.map_err(|error| status::internal("a backup did not finish", &error))?
            .map_err(|error| status::backup(&error))
    }

    /// Like [`Self::read`], for a read that may scan many rows.
    pub(super) async fn scan<T: Send + 'static>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&Query<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Status> {
        let Ok(Ok(scan)) = timeout_at(deadline, self.scans.clone().acquire_owned()).await else {
            return Err(status::overloaded("too many reads of lists are waiting"));
        };
        self.read(deadline, move |query| {
            let result = read(query);
            drop(scan);
            result
        })
        .await
    }

    /// Runs `read` in one read transaction. The deadline applies to the wait before it starts.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&Query<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Status> {
        let slot = match timeout_at(deadline, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(closed)) => return Err(status::internal("the database was closed", &closed)),
            Err(_) => return Err(status::overloaded("too many reads are waiting")),
        };
        let readers = self.readers.clone();
        let work = move || {
            let result = readers.read(read);
            drop(slot);
            result
        };
        let result = blocking::run(work).await;
        result
            .map_err(|error| status::internal("a read did not finish", &error))?
            .map_err(|error| status::storage(&error))
    }
}
