//! Fan-out of applied events to the subscribers on this node.
//!
//! Owns the open subscriptions and their queues, in memory only. Older events are in the database: a subscriber reads
//! the database up to [`Subscription::start`], and receives everything after it through the queue.
//!
//! Invariants:
//! - Registering and publishing take the same lock. So each event is either at or below a subscription's start, or in
//!   its queue; never both, never neither.
//! - [`Hub::publish`] is called in the order of the log, one call at a time, after the entries were applied. Their
//!   transaction may still be open (decision 0009). A read that starts after a revision was announced contains it
//!   nevertheless, because every read first commits the applied entries (`SharedState::commit_staged`). If that commit
//!   fails, the node neither reads nor publishes any more.
//! - The revision is announced after the events up to it are queued. A subscriber that observes revision R and then
//!   finds its queue empty has received everything up to R.
//! - Nothing here waits for a subscriber. A subscription whose queue is full is cut, and its subscriber receives the
//!   reason.
//!
//! Does not cover: catching up from the database (`api::feed`), and every wire format (`api::convert`).

mod queue;
mod timing;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::watch;

use chat::{AccountId, Event, Revision, SessionId, TimeMs, limits::SUBSCRIPTIONS_PER_ACCOUNT_MAX};
use net::{
    gate::Owner,
    shares::{Share, Shares},
};
use trace::{Kind, Tracer};

use queue::Queue;
use timing::Sample;

pub use queue::{DisconnectReason, QUEUE_EVENTS_MAX};
pub use timing::DeliveryObserver;

/// Open subscriptions of a node. Each takes one to two kilobytes, with its stream.
const SUBSCRIPTIONS_MAX: usize = 65_536;

/// Bytes that wait on a node for subscribers: events in their queues, and pages of past events. An account may hold a
/// share of them.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// The account already has [`SUBSCRIPTIONS_PER_ACCOUNT_MAX`] open subscriptions on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an account may have {SUBSCRIPTIONS_PER_ACCOUNT_MAX} open subscriptions on a node, and fewer on one that has very \
     many"
)]
pub struct TooManySubscriptions;

/// Sessions that have ended.
#[derive(Debug, Clone, Copy)]
pub enum Closed<'a> {
    /// These sessions.
    Sessions(&'a [SessionId]),
    /// Any session, as the state was replaced.
    Any,
}

/// Numbers for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HubStats {
    /// Open subscriptions.
    pub subscriptions: usize,
    /// Subscriptions that were cut since the start because their queue was full. One that was still catching up goes on
    /// from the database, and its subscriber does not notice.
    pub slow_cuts: u64,
}

type OnClosed = Box<dyn Fn(Closed<'_>) + Send>;

/// The subscriptions of one node. Clones share them.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Mutex<Registry>,
    published: watch::Sender<(Revision, TimeMs)>,
    watch: Watch,
    /// Budget of the bytes that wait for subscribers.
    waiting: Arc<Shares>,
}

/// Observers of the hub.
#[derive(Clone)]
pub struct Watch {
    /// Observes how long deliveries take.
    pub observer: Arc<dyn DeliveryObserver>,
    /// Records the deliveries of traced messages.
    pub tracer: Tracer,
}

struct Registry {
    accounts: HashMap<AccountId, Vec<Entry>>,
    /// The accounts of the sessions that have subscriptions.
    sessions: HashMap<SessionId, AccountId>,
    on_closed: Vec<OnClosed>,
    next_id: u64,
    stopping: bool,
    stats: HubStats,
}

struct Entry {
    id: u64,
    session: SessionId,
    queue: Arc<Queue>,
    sample: Arc<Sample>,
}

impl Registry {
    /// Removes the entries of `account` for which `keep` returns false, and the index entries that depend on them.
    fn retain(&mut self, account: AccountId, mut keep: impl FnMut(&Entry) -> bool) {
        let Some(entries) = self.accounts.get_mut(&account) else { return };
        let mut gone = Vec::new();
        entries.retain(|entry| {
            let kept = keep(entry);
            if !kept {
                gone.push(entry.session);
            }
            kept
        });
        self.stats.subscriptions -= gone.len();
        for session in gone {
            if !entries.iter().any(|entry| entry.session == session) {
                self.sessions.remove(&session);
            }
        }
        if entries.is_empty() {
            self.accounts.remove(&account);
        }
    }

    fn hand_out(&mut self, event: &Arc<Event>, at: Instant, watch: &Watch) {
        for member in event.members.iter() {
            let Some(entries) = self.accounts.get(&member.account) else { continue };
            if !event.concerns(member.account) {
                continue;
            }
            let mut full = Vec::new();
            for entry in entries {
                entry.sample.see(event, member.account, at, watch);
                if !entry.queue.push(event, at) {
                    full.push(entry.id);
                }
            }
            if !full.is_empty() {
                self.stats.slow_cuts += full.len() as u64;
                self.retain(member.account, |entry| !full.contains(&entry.id));
            }
        }
    }

    fn cut_all(&mut self, cut: DisconnectReason) {
        for entry in self.accounts.values().flatten() {
            entry.queue.cut(cut);
        }
        self.accounts = HashMap::new();
        self.sessions = HashMap::new();
        self.stats.subscriptions = 0;
    }

    fn tell_closed(&self, closed: Closed<'_>) {
        for callback in &self.on_closed {
            callback(closed);
        }
    }
}

impl Hub {
    /// A hub for a state that is at `revision` now.
    pub fn new(revision: Revision, clock: TimeMs) -> Self {
        Self::watched(revision, clock, Watch { observer: Arc::new(()), tracer: Tracer::off() })
    }

    /// A hub that reports its deliveries to `watch`.
    pub fn watched(revision: Revision, clock: TimeMs, watch: Watch) -> Self {
        let registry = Registry {
            accounts: HashMap::new(),
            sessions: HashMap::new(),
            on_closed: Vec::new(),
            next_id: 0,
            stopping: false,
            stats: HubStats::default(),
        };
        let (published, _) = watch::channel((revision, clock));
        Self {
            inner: Arc::new(Inner {
                registry: Mutex::new(registry),
                published,
                watch,
                waiting: Shares::new(WAITING_BYTES_MAX),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the events of entries that were just applied, whose transaction may still be open. Called in revision
    /// order, by the thread that applies. Never waits; costs one look-up per member of an event without subscribers.
    pub fn publish(&self, events: Vec<Arc<Event>>, closed_sessions: &[SessionId], revision: Revision, clock: TimeMs) {
        let mut registry = self.lock();
        if !registry.accounts.is_empty() {
            let at = Instant::now();
            for event in &events {
                registry.hand_out(event, at, &self.inner.watch);
            }
            for session in closed_sessions {
                let Some(account) = registry.sessions.get(session).copied() else { continue };
                registry.retain(account, |entry| {
                    let closed = entry.session == *session;
                    if closed {
                        entry.queue.cut(DisconnectReason::SessionClosed);
                    }
                    !closed
                });
            }
        }
        if !closed_sessions.is_empty() {
            registry.tell_closed(Closed::Sessions(closed_sessions));
        }
        // Under the lock, so that a subscription's start is never beyond the announced revision.
        self.inner.published.send_replace((revision, clock));
    }

    /// Cuts every open subscription after a snapshot was installed. They resume from the database.
    pub fn reset(&self, revision: Revision, clock: TimeMs) {
        let mut registry = self.lock();
        registry.cut_all(DisconnectReason::Reset);
        registry.tell_closed(Closed::Any);
        self.inner.published.send_replace((revision, clock));
    }

    /// Cuts every subscription for draining. Later subscriptions are cut at once.
    pub fn stop(&self) {
        let mut registry = self.lock();
        registry.stopping = true;
        registry.cut_all(DisconnectReason::Stopping);
    }

    /// Whether the node is draining.
    pub fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Revision and clock of the state, to wait for a change.
    pub fn revision(&self) -> watch::Receiver<(Revision, TimeMs)> {
        self.inner.published.subscribe()
    }

    /// Revision and clock of the state now.
    pub fn current(&self) -> (Revision, TimeMs) {
        *self.inner.published.borrow()
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> HubStats {
        self.lock().stats
    }

    /// Registers `callback` for closed sessions. It is called before the revision that closed them is announced, on the
    /// thread that applies, with the hub locked. It must be quick, and must not call the hub.
    pub fn on_closed(&self, callback: impl Fn(Closed<'_>) + Send + 'static) {
        self.lock().on_closed.push(Box::new(callback));
    }

    /// Reserves bytes that wait for a subscriber, until the share is dropped. `None` if the account has reached its
    /// current limit.
    pub fn reserve(&self, account: AccountId, bytes: usize) -> Option<Share> {
        self.inner.waiting.take(Owner::Account(account.0), bytes)
    }

    /// Opens a subscription. The caller must check *afterwards* in the database that the session is open. A session
    /// that is closed later cuts the subscription.
    ///
    /// # Errors
    /// See [`TooManySubscriptions`].
    pub fn subscribe(&self, account: AccountId, session: SessionId) -> Result<Subscription, TooManySubscriptions> {
        let mut registry = self.lock();
        let (queue, sample) = (Arc::new(Queue::new(&self.inner.waiting, account)), Arc::new(Sample::default()));
        let (start, _) = self.current();
        let id = registry.next_id;
        registry.next_id += 1;
        if registry.stopping {
            queue.cut(DisconnectReason::Stopping);
        } else {
            // The fuller the node, the fewer subscriptions an account gets, so that a newcomer always finds room.
            let free = SUBSCRIPTIONS_MAX.saturating_sub(registry.stats.subscriptions);
            let open = registry.accounts.get(&account).map_or(0, Vec::len);
            if open >= SUBSCRIPTIONS_PER_ACCOUNT_MAX.min(free) {
                return Err(TooManySubscriptions);
            }
            let entries = registry.accounts.entry(account).or_default();
            entries.push(Entry { id, session, queue: queue.clone(), sample: sample.clone() });
            registry.sessions.insert(session, account);
            registry.stats.subscriptions += 1;
        }
        Ok(Subscription { start, id, account, queue, sample, hub: self.clone() })
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("published", &self.current()).field("stats", &self.stats()).finish()
    }
}

/// An open subscription. Dropping it closes it.
#[derive(Debug)]
pub struct Subscription {
    /// The revision of the state when it was opened. Everything after it comes through the queue, nothing up to it
    /// does.
    pub start: Revision,
    id: u64,
    account: AccountId,
    queue: Arc<Queue>,
    sample: Arc<Sample>,
    hub: Hub,
}

impl Subscription {
    /// The next event, in revision order, or the reason why there will be none. Cancel-safe.
    pub async fn next(&mut self) -> Result<Arc<Event>, DisconnectReason> {
        let (event, since) = self.queue.next().await?;
        Ok(self.pushed(event, since))
    }

    /// The next event or end if one is available; `None` if [`Self::next`] would wait.
    pub fn try_next(&mut self) -> Option<Result<Arc<Event>, DisconnectReason>> {
        let next = self.queue.try_next()?;
        Some(next.map(|(event, since)| self.pushed(event, since)))
    }

    fn pushed(&self, event: Arc<Event>, since: Instant) -> Arc<Event> {
        let now = Instant::now();
        let watch = &self.hub.inner.watch;
        watch.observer.pushed(now.saturating_duration_since(since));
        watch.tracer.record("delivery.push", Kind::Producer, event.trace.as_slice(), (since, now), []);
        self.sample.take(&event, self.account, now);
        event
    }

    /// The reason why the subscription was cut, if it was.
    pub fn cut(&self) -> Option<DisconnectReason> {
        self.queue.cut_reason()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.lock().retain(self.account, |entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests;
