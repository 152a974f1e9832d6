//! Latency of deliveries: from the commit to the push, and from there to the recipient's acknowledgement.
//!
//! The first is measured for every event. The second is sampled: each subscription tracks one message at a time, so
//! that it costs a few bytes, however far a client is behind. It also tracks the newest traced messages. An
//! acknowledgement comes back through the log, so this node sees it whichever node the client sent it to.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Watch;
use chat::{AccountId, ConversationId, Event, EventKind, Seq};
use trace::{Kind, TraceContext};

/// Time after which an unacknowledged message is no longer tracked, as its client may never acknowledge it.
const FOLLOWED_MAX: Duration = Duration::from_secs(60);
/// Traced messages that a subscription tracks.
const TRACED_MAX: usize = 32;

/// Observes the latency of deliveries. Called during delivery, so it must not block.
pub trait DeliveryObserver: Send + Sync + 'static {
    /// An event was handed to a subscriber's stream. `waited` is the time since it was committed and applied on this
    /// node.
    fn pushed(&self, waited: Duration);
    /// A recipient's acknowledgement of a message was committed. `took` is the time since the message was handed to its
    /// stream.
    fn acknowledged(&self, took: Duration);
}

/// Ignores all reports.
impl DeliveryObserver for () {
    fn pushed(&self, _waited: Duration) {}
    fn acknowledged(&self, _took: Duration) {}
}

/// A message that was handed to a stream.
#[derive(Debug, Clone, Copy)]
struct Pushed {
    conversation: ConversationId,
    seq: Seq,
    at: Instant,
}

impl Pushed {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) > FOLLOWED_MAX
    }
}

/// The messages that a subscription tracks.
#[derive(Debug, Default)]
struct Followed {
    one: Option<Pushed>,
    traced: VecDeque<(Pushed, TraceContext)>,
}

/// The tracked messages of one subscription, behind a lock.
#[derive(Debug, Default)]
pub(super) struct Sample(Mutex<Followed>);

impl Sample {
    /// Records that `event` was handed to the stream of `account`.
    pub(super) fn take(&self, event: &Event, account: AccountId, at: Instant) {
        let EventKind::Message { seq, sender, .. } = &event.kind else { return };
        if *sender == account {
            return;
        }
        let pushed = Pushed { conversation: event.conversation, seq: *seq, at };
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.one.is_none_or(|one| one.is_old(at)) {
            followed.one = Some(pushed);
        }
        if let Some(trace) = event.trace {
            while followed.traced.pop_front_if(|(oldest, _)| oldest.is_old(at)).is_some() {}
            if followed.traced.len() >= TRACED_MAX {
                followed.traced.pop_front();
            }
            followed.traced.push_back((pushed, trace));
        }
    }

    /// Checks whether the committed `event` is the acknowledgement by `account` of a tracked message.
    pub(super) fn see(&self, event: &Event, account: AccountId, at: Instant, watch: &Watch) {
        let EventKind::Receipt { member, delivered, .. } = &event.kind else { return };
        if *member != account {
            return;
        }
        let is_of = |pushed: &Pushed| pushed.conversation == event.conversation && *delivered >= pushed.seq;
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = followed.one.take_if(|one| is_of(one));
        let mut traced = Vec::new();
        followed.traced.retain(|(pushed, trace)| {
            let acknowledged = is_of(pushed);
            traced.extend(acknowledged.then_some((pushed.at, *trace)));
            !acknowledged
        });
        if followed.traced.is_empty() {
            // Releases the memory of traced messages, so that an idle subscription stays cheap.
            followed.traced = VecDeque::new();
        }
        drop(followed);
        if let Some(one) = one {
            watch.observer.acknowledged(at.saturating_duration_since(one.at));
        }
        for (since, trace) in traced {
            watch.tracer.record("delivery.acknowledge", Kind::Internal, &[trace], (since, at), []);
        }
    }
}
