//! Work that blocks, called from asynchronous code.
//!
//! On a runtime with threads to spare it runs on one that may block. A runtime of a single thread has nobody to keep free:
//! there it runs in place. That is what the simulation rests on, in which everything happens on one thread, in an order that
//! follows from the seed. So such work must not wait for anything that asynchronous code does.
//!
//! Left out: how much of it runs at once. Who starts it bounds that.

use std::{future::Future, io};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::spawn_blocking,
};

/// Runs `work`, and waits for it. Once begun it is not cut off, also when nobody waits any more.
///
/// # Errors
/// The runtime is being shut down, or the work panicked.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = io::Result<T>> + Send {
    // Begun before it is polled, like any task.
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

/// The same for work that may fail like a file operation.
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
