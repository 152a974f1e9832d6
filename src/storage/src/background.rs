//! Background work of the owners of files, on dedicated threads or under the control of a simulation.
//!
//! The log's writer and the state's committer are such work. They are written as turns that never block, so that the
//! [`Background`] decides when they run: a thread immediately, and a simulation according to its clock and its random
//! numbers, or never again.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The result of a turn, which determines the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is more work. The next turn follows at once.
    More,
    /// There is no work until the next wake-up.
    Wait,
    /// The work has ended. There are no further turns.
    End,
}

/// One turn. It does a bounded amount of the available work and does not block.
pub type Work = Box<dyn FnMut() -> Turn + Send>;

/// Runs work in the background.
pub trait Background: Send + Sync + 'static {
    /// Starts `work`, and gives it a turn `pause` after each wake-up. Further wake-ups before the turn have no effect.
    ///
    /// # Errors
    /// The thread cannot be started.
    fn start(&self, name: &'static str, pause: Duration, work: Work) -> io::Result<Arc<dyn Worker>>;
}

/// Started work. When this is dropped, the work ends after the turn for which it was woken.
pub trait Worker: Send + Sync {
    /// Requests a turn.
    fn wake(&self);
    /// Waits until the work has ended. Its next turn has to be the last.
    fn finish(&self);
}

/// Runs each work on a thread of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads;

impl Background for Threads {
    fn start(&self, name: &'static str, pause: Duration, mut work: Work) -> io::Result<Arc<dyn Worker>> {
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(name.into()).spawn(move || take_turns(&woken, pause, &mut work))?;
        Ok(Arc::new(Thread { wake, thread: Mutex::new(Some(thread)) }))
    }
}

struct Thread {
    wake: SyncSender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker for Thread {
    fn wake(&self) {
        // A full channel means that it is awake already, a closed one that it has ended.
        let _ = self.wake.try_send(());
    }

    fn finish(&self) {
        self.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The panic hook has already reported a panic.
            let _ = thread.join();
        }
    }
}

fn take_turns(woken: &Receiver<()>, pause: Duration, work: &mut Work) {
    while woken.recv().is_ok() {
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        loop {
            match work() {
                Turn::More => {}
                Turn::Wait => break,
                Turn::End => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_taken_for_what_came_before_the_end_and_none_after_it() {
        let (turn, turns) = mpsc::channel();
        let mut left = 3;
        let work: Work = Box::new(move || {
            left -= 1;
            turn.send(left).expect("the test listens");
            if left == 0 { Turn::End } else { Turn::More }
        });
        let worker = Threads.start("test", Duration::ZERO, work).expect("starts");
        worker.finish();
        // The work has ended: no call blocks.
        worker.wake();
        worker.finish();
        assert_eq!(turns.iter().collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn who_is_dropped_after_it_was_woken_takes_the_turn() {
        let (turn, turns) = mpsc::channel();
        let work: Work = Box::new(move || {
            turn.send(()).expect("the test listens");
            Turn::Wait
        });
        let worker = Threads.start("test", Duration::ZERO, work).expect("starts");
        worker.wake();
        drop(worker);
        assert_eq!(turns.iter().count(), 1);
    }
}
