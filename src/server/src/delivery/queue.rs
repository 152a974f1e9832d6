//! The bounded queue of one subscriber. The thread that fills it never waits for it.
//!
//! Memory is allocated when the first event arrives, and released when the subscriber is cut.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use chat::{AccountId, Event};
use net::{
    gate::Owner,
    shares::{Share, Shares},
};

/// Events that a subscriber may be behind before it is cut.
pub const QUEUE_EVENTS_MAX: usize = 256;

/// Bytes of events that a subscriber may be behind before it is cut; one event always fits.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// Too many events were waiting, or too many bytes of them.
    #[error("the subscriber does not keep up")]
    Slow,
    /// Its session was closed.
    #[error("the session was closed")]
    SessionClosed,
    /// A snapshot was installed. The events in between are only in the database.
    #[error("the state was replaced by a snapshot")]
    Reset,
    /// The node drains.
    #[error("the node is stopping")]
    Stopping,
}

#[derive(Debug, Default)]
struct State {
    /// The events, with the time at which they were committed and applied on this node.
    events: VecDeque<(Arc<Event>, Instant)>,
    /// The size of these events.
    bytes: usize,
    /// The share of the budget for these events. `None` while none were counted.
    share: Option<Share>,
    cut: Option<DisconnectReason>,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Notify,
    /// The budget of waiting bytes on this node, for all accounts.
    waiting: Arc<Shares>,
    owner: Owner,
}

impl State {
    fn empty(&mut self) {
        self.events = VecDeque::new();
        self.bytes = 0;
        self.share = None;
    }
}

impl Queue {
    pub(super) fn new(waiting: &Arc<Shares>, account: AccountId) -> Self {
        let (waiting, owner) = (Arc::clone(waiting), Owner::Account(account.0));
        Self { state: Mutex::default(), filled: Notify::new(), waiting, owner }
    }

    /// Reserves bytes for an event. Returns false if the account has reached its current limit.
    fn count(&self, state: &mut State, bytes: usize) -> bool {
        match &mut state.share {
            Some(share) => share.grow(bytes),
            None => {
                state.share = self.waiting.take(self.owner, bytes);
                state.share.is_some()
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns false if the queue was full; it is cut then.
    pub(super) fn push(&self, event: &Arc<Event>, at: Instant) -> bool {
        let mut state = self.lock();
        if state.cut.is_some() {
            return false;
        }
        let size = event.size();
        let bytes = state.bytes + size;
        let fits = state.events.len() < QUEUE_EVENTS_MAX && bytes <= QUEUE_BYTES_MAX && self.count(&mut state, size);
        if fits || state.events.is_empty() {
            state.events.push_back((event.clone(), at));
            state.bytes = bytes;
        } else {
            state.cut = Some(DisconnectReason::Slow);
            state.empty();
        }
        let fits = state.cut.is_none();
        drop(state);
        self.filled.notify_one();
        fits
    }

    /// Ends the queue and drops its events. The first reason is kept.
    pub(super) fn cut(&self, cut: DisconnectReason) {
        let mut state = self.lock();
        if state.cut.is_none() {
            state.cut = Some(cut);
            state.empty();
        }
        drop(state);
        self.filled.notify_one();
    }

    pub(super) fn cut_reason(&self) -> Option<DisconnectReason> {
        self.lock().cut
    }

    /// The next event, with the time of its arrival.
    pub(super) fn try_next(&self) -> Option<Result<(Arc<Event>, Instant), DisconnectReason>> {
        let mut state = self.lock();
        match state.cut {
            Some(cut) => Some(Err(cut)),
            None => {
                let event = state.events.pop_front()?;
                let size = event.0.size();
                state.bytes -= size;
                if let Some(share) = &mut state.share {
                    share.shrink(size);
                }
                // Releases the memory of a burst, so that an idle subscription stays cheap.
                if state.events.is_empty() && state.events.capacity() > 16 {
                    state.events = VecDeque::new();
                }
                Some(Ok(event))
            }
        }
    }

    /// Cancel-safe: an event is taken only when it is returned.
    pub(super) async fn next(&self) -> Result<(Arc<Event>, Instant), DisconnectReason> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            // A push since the check above left a permit. Then this returns at once.
            self.filled.notified().await;
        }
    }
}
