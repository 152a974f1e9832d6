//! Age of the write in progress, so that a hanging flush is visible before it ends.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The write in progress of one thread.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Option<Instant>>);

impl InFlight {
    /// Runs a write and tracks its start.
    pub(super) fn run<T>(&self, write: impl FnOnce() -> T) -> T {
        *self.since() = Some(Instant::now());
        let result = write();
        *self.since() = None;
        result
    }

    /// Age of the write in progress; `None` if there is none.
    pub(super) fn age(&self) -> Option<Duration> {
        self.since().map(|since| since.elapsed())
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
