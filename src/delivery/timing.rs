//! How long deliveries take: from the commit to the push, and from there to the recipient's acknowledgement.
//!
//! The first is measured for every event. The second is sampled: each subscription follows one message at a time, so that it
//! costs a few bytes, however far a client is behind. An acknowledgement comes back through the log, so it is seen here
//! whichever node the client sent it to.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::chat::{AccountId, ConversationId, Event, EventKind, Seq};

/// A message that was not acknowledged for so long is followed no more: its client may never do it.
const FOLLOWED_MAX: Duration = Duration::from_secs(60);

/// Who is told how long deliveries take. Called by those who deliver: it must not block.
pub trait DeliveryObserver: Send + Sync + 'static {
    /// An event was handed to a subscriber's stream, so long after it was committed and applied on this node.
    fn pushed(&self, waited: Duration);
    /// A recipient's acknowledgement of a message was committed, so long after the message was handed to its stream.
    fn acknowledged(&self, took: Duration);
}

/// Nobody is told.
impl DeliveryObserver for () {
    fn pushed(&self, _waited: Duration) {}
    fn acknowledged(&self, _took: Duration) {}
}

/// The message that a subscription follows.
#[derive(Debug, Default)]
pub(super) struct Sample(Mutex<Option<(ConversationId, Seq, Instant)>>);

impl Sample {
    /// `event` was handed to the stream of `account`.
    pub(super) fn take(&self, event: &Event, account: AccountId, now: Instant) {
        let EventKind::Message { seq, sender, .. } = &event.kind else { return };
        if *sender == account {
            return;
        }
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.is_none_or(|(_, _, since)| now.saturating_duration_since(since) > FOLLOWED_MAX) {
            *followed = Some((event.conversation, *seq, now));
        }
    }

    /// `event` was committed: perhaps it is the acknowledgement by `account` of what is followed.
    pub(super) fn see(&self, event: &Event, account: AccountId, at: Instant, observer: &dyn DeliveryObserver) {
        let EventKind::Receipt { member, delivered, .. } = &event.kind else { return };
        if *member != account {
            return;
        }
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((conversation, seq, since)) = *followed
            && conversation == event.conversation
            && *delivered >= seq
        {
            *followed = None;
            drop(followed);
            observer.acknowledged(at.saturating_duration_since(since));
        }
    }
}
