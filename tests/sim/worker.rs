//! The background work on a node's files, as tasks of its simulated host.
//!
//! The log writer runs only when the simulated flush has completed. Entries queued meanwhile are written with the next
//! flush, and a crash before it loses them. A stalled disk is a flush that does not complete.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use storage::{Background, Turn, Work, Worker};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::rng::Rng;

/// Interval at which a stalled disk is polled.
const STALL_LOOK: Duration = Duration::from_millis(5);

/// The latency of a node's flushes.
#[derive(Debug, Default)]
pub struct Latency {
    /// Maximum duration of a usual flush, in microseconds.
    pub usual_us: AtomicU64,
    /// While set, no flush completes.
    pub stalled: AtomicBool,
}

/// The background tasks of a node.
pub struct Tasks {
    pub latency: Arc<Latency>,
    pub rng: Mutex<Rng>,
}

impl Background for Tasks {
    fn start(&self, name: &'static str, pause: Duration, work: Work) -> io::Result<Arc<dyn Worker>> {
        let inner = Arc::new(Inner {
            work: Mutex::new(Some(work)),
            woken: Notify::new(),
            ending: AtomicBool::new(false),
            pause,
            latency: (name == "log-writer").then(|| Arc::clone(&self.latency)),
            rng: Mutex::new(self.rng.lock().unwrap_or_else(PoisonError::into_inner).split(name)),
        });
        tokio::spawn(Arc::clone(&inner).run());
        Ok(Arc::new(Handle(inner)))
    }
}

struct Inner {
    work: Mutex<Option<Work>>,
    woken: Notify,
    /// The handle was dropped.
    ending: AtomicBool,
    pause: Duration,
    latency: Option<Arc<Latency>>,
    rng: Mutex<Rng>,
}

impl Inner {
    async fn run(self: Arc<Self>) {
        loop {
            self.woken.notified().await;
            sleep(self.pause).await;
            loop {
                self.flush().await;
                match self.turn() {
                    Turn::More => {}
                    Turn::Wait => break,
                    Turn::End => return,
                }
            }
            if self.ending.load(Ordering::Relaxed) {
                *self.work.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return;
            }
        }
    }

    async fn flush(&self) {
        let Some(latency) = &self.latency else { return };
        let us = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .range(50..latency.usual_us.load(Ordering::Relaxed).max(51));
        let end = Instant::now() + Duration::from_micros(us);
        tokio::time::sleep_until(end).await;
        while latency.stalled.load(Ordering::Relaxed) {
            sleep(STALL_LOOK).await;
        }
    }

    fn turn(&self) -> Turn {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = work.as_mut().map_or(Turn::End, |work| work());
        if turn == Turn::End {
            *work = None;
        }
        turn
    }
}

struct Handle(Arc<Inner>);

impl Worker for Handle {
    fn wake(&self) {
        self.0.woken.notify_one();
    }

    fn finish(&self) {
        while self.0.turn() != Turn::End {}
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.ending.store(true, Ordering::Relaxed);
        self.0.woken.notify_one();
    }
}
