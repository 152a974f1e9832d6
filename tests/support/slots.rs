//! Limits how many clusters run at the same time. Most tests wait for elections and disks, so each core can serve a
//! cluster of five debug builds. A test that measures time gets the machine to itself.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread::available_parallelism,
};

const CORES_PER_CLUSTER: usize = 1;

/// Global, because the tests of the process have no common owner that could pass it to them.
static TAKEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to run a cluster.
pub struct Slots(usize);

impl Slots {
    /// Waits for a slot next to other clusters.
    pub fn one() -> Self {
        Self::take(1)
    }

    /// Waits until no other cluster runs, and prevents others from starting.
    pub fn all() -> Self {
        Self::take(Self::capacity())
    }

    fn capacity() -> usize {
        available_parallelism().map_or(1, |cores| cores.get() / CORES_PER_CLUSTER).max(1)
    }

    fn take(count: usize) -> Self {
        let taken = TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = TAKEN.1.wait_while(taken, |taken| *taken + count > Self::capacity());
        *room.unwrap_or_else(PoisonError::into_inner) += count;
        Self(count)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        *TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        TAKEN.1.notify_all();
    }
}
