//! Random numbers for jitter and for the choice of nodes. Not for secrets.

use std::hash::{BuildHasher as _, RandomState};

/// Returns a generator that the operating system seeds. Not `fastrand::Rng::new`, which takes its seed from the clock
/// and the thread: many clients that start at once must not retry at once.
pub(crate) fn generator() -> fastrand::Rng {
    // If the system has no randomness, the hash seeds of the standard library still differ per use.
    fastrand::Rng::with_seed(getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(0u8)))
}
