//! Work that a file's owner does beside its callers: on a thread of its own, or wherever a simulation puts it.
//!
//! The log's writer and the state's committer are such work. They are written as turns that never wait, so that whoever
//! runs them decides when: a thread at once, a simulation when its clock and its dice say so, or never again.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a turn of the work says about the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do at once.
    More,
    /// There is nothing to do until it is woken.
    Wait,
    /// It is over: there are no further turns.
    End,
}

/// One turn: does what there is to do, bounded, and waits for nobody.
pub type Work = Box<dyn FnMut() -> Turn + Send>;

/// Runs work beside its owner.
pub trait Background: Send + Sync + 'static {
    /// Takes `work`, and gives it a turn `pause` after each time that it is woken; what wakes it in between counts once.
    ///
    /// # Errors
    /// There is no thread for it.
    fn start(&self, name: &'static str, pause: Duration, work: Work) -> io::Result<Arc<dyn Worker>>;
}

/// Work that was started. It ends when this is dropped, after the turn that it was woken for.
pub trait Worker: Send + Sync {
    /// There is something to do.
    fn wake(&self);
    /// Returns when the work is over. Its next turn has to be the last.
    fn finish(&self);
}

/// A thread for each.
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
        // Full: it is awake already. Closed: it is over.
        let _ = self.wake.try_send(());
    }

    fn finish(&self) {
        self.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic has been reported by the panic hook already.
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
        let (told, turns) = mpsc::channel();
        let mut left = 3;
        let work: Work = Box::new(move || {
            left -= 1;
            told.send(left).expect("the test listens");
            if left == 0 { Turn::End } else { Turn::More }
        });
        let worker = Threads.start("test", Duration::ZERO, work).expect("starts");
        worker.finish();
        // Over: nobody listens to it, and nobody waits.
        worker.wake();
        worker.finish();
        assert_eq!(turns.iter().collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn who_is_dropped_after_it_was_woken_takes_the_turn() {
        let (told, turns) = mpsc::channel();
        let work: Work = Box::new(move || {
            told.send(()).expect("the test listens");
            Turn::Wait
        });
        let worker = Threads.start("test", Duration::ZERO, work).expect("starts");
        worker.wake();
        drop(worker);
        assert_eq!(turns.iter().count(), 1);
    }
}
