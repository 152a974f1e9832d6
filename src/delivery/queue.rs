//! One subscriber's queue: bounded, never waited for by the one who fills it.
//!
//! Memory is taken when the first event arrives, and given back when the subscriber is cut.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::chat::Event;

/// Events that a subscriber may be behind before it is cut.
pub const QUEUE_EVENTS_MAX: usize = 256;

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// More than [`QUEUE_EVENTS_MAX`] events were waiting.
    #[error("the subscriber does not keep up")]
    Slow,
    /// Its session was closed.
    #[error("the session was closed")]
    SessionClosed,
    /// A snapshot was installed: the events between are only in the database.
    #[error("the state was replaced by a snapshot")]
    Reset,
    /// The node drains.
    #[error("the node is stopping")]
    Stopping,
}

#[derive(Debug, Default)]
struct State {
    /// With the time at which they were committed and applied here.
    events: VecDeque<(Arc<Event>, Instant)>,
    cut: Option<Cut>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. False: the queue was full, and is cut now.
    pub(super) fn push(&self, event: &Arc<Event>, at: Instant) -> bool {
        let mut state = self.lock();
        if state.cut.is_some() {
            return false;
        }
        let fits = state.events.len() < QUEUE_EVENTS_MAX;
        if fits {
            state.events.push_back((event.clone(), at));
        } else {
            state.cut = Some(Cut::Slow);
            state.events = VecDeque::new();
        }
        drop(state);
        self.filled.notify_one();
        fits
    }

    /// Ends the queue; what waits in it is dropped. The first reason stays.
    pub(super) fn cut(&self, cut: Cut) {
        let mut state = self.lock();
        if state.cut.is_none() {
            state.cut = Some(cut);
            state.events = VecDeque::new();
        }
        drop(state);
        self.filled.notify_one();
    }

    pub(super) fn cut_reason(&self) -> Option<Cut> {
        self.lock().cut
    }

    /// The next event, and when it came.
    pub(super) fn try_next(&self) -> Option<Result<(Arc<Event>, Instant), Cut>> {
        let mut state = self.lock();
        match state.cut {
            Some(cut) => Some(Err(cut)),
            None => {
                let event = state.events.pop_front()?;
                // An idle subscription after a burst costs no more than one before it.
                if state.events.is_empty() && state.events.capacity() > 16 {
                    state.events = VecDeque::new();
                }
                Some(Ok(event))
            }
        }
    }

    /// Cancel-safe: an event is taken only when it is returned.
    pub(super) async fn next(&self) -> Result<(Arc<Event>, Instant), Cut> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            // A push since the look above left a permit: this returns at once then.
            self.filled.notified().await;
        }
    }
}
