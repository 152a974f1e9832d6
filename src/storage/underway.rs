//! How long the write that is under way has taken so far: a flush that hangs is seen before it ends.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The write of one thread.
#[derive(Debug, Default)]
pub(super) struct Underway(Mutex<Option<Instant>>);

impl Underway {
    /// Runs a write.
    pub(super) fn run<T>(&self, write: impl FnOnce() -> T) -> T {
        *self.since() = Some(Instant::now());
        let result = write();
        *self.since() = None;
        result
    }

    /// How long ago the write began that has not ended.
    pub(super) fn age(&self) -> Option<Duration> {
        self.since().map(|since| since.elapsed())
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
