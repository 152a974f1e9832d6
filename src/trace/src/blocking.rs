//! Blocking work, called from asynchronous code.
//!
//! A runtime with several threads runs it on a thread that may block. A runtime of a single thread runs it in place.
//! The simulation relies on this: there, everything runs on one thread, in an order that follows from the seed. Such
//! work must therefore not wait for asynchronous code.
//!
//! Does not cover: how much blocking work runs at once. The callers bound that.

use std::{future::Future, io};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::spawn_blocking,
};

/// Runs `work` and waits for it. Work that has begun runs to its end, even if the returned future is dropped.
///
/// # Errors
/// The runtime is being shut down, or the work panicked.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = io::Result<T>> + Send {
    // Starts before the future is polled, like a spawned task.
    let begun = match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => Err(spawn_blocking(work)),
    };
    async move {
        match begun {
            Ok(done) => Ok(done),
            Err(task) => task.await.map_err(io::Error::other),
        }
    }
}

/// Like [`run`], for work that returns an [`io::Result`].
///
/// # Errors
/// The work's own, or those of [`run`].
pub async fn io<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    run(work).await?
}

#[cfg(test)]
mod tests {
    use std::thread;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_threads_that_serve_are_kept_free() {
        let serving = tokio::spawn(async { thread::current().id() }).await.expect("no panic");
        assert_ne!(super::run(|| thread::current().id()).await.expect("runs"), serving);
    }

    #[tokio::test]
    async fn a_single_thread_does_it_itself() {
        assert_eq!(super::run(|| thread::current().id()).await.expect("runs"), thread::current().id());
    }
}
