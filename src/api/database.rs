//! This node's copy of the state, read from async code.
//!
//! SQLite blocks, so reads run on blocking threads; a semaphore keeps their number near that of the connections, so
//! that a flood of reads waits here, with deadlines, instead of in threads.

use std::sync::Arc;

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::status;
use crate::storage::{Query, Readers, StorageError};

/// Reads on blocking threads at once.
const READS_AT_ONCE_MAX: usize = 16;

/// The read side of the state. Clones share it.
#[derive(Clone)]
pub(super) struct Database {
    readers: Arc<Readers>,
    slots: Arc<Semaphore>,
}

impl Database {
    pub(super) fn new(readers: Arc<Readers>) -> Self {
        Self { readers, slots: Arc::new(Semaphore::new(READS_AT_ONCE_MAX)) }
    }

    /// Runs `read` in one read transaction. The deadline is for the wait before it starts.
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
        let result = tokio::task::spawn_blocking(work).await;
        result
            .map_err(|error| status::internal("a read did not finish", &error))?
            .map_err(|error| status::storage(&error))
    }
}
