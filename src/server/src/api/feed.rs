//! The messages that one subscriber receives, and their order: a state machine that needs no task of its own.
//!
//! A feed goes through three phases:
//! 1. *Undelivered* (only without a cursor): messages that no client of the caller has acknowledged, up to the revision
//!    at which the subscription was opened. They carry no cursor; the heartbeat that follows carries the first.
//! 2. *History*: the database, from the cursor to the subscription's start.
//! 3. *Live*: the subscription's queue, which holds everything after its start.
//!
//! Invariants:
//! - The cursor only grows, and everything up to it has been sent.
//! - A queue that overflows before the feed has caught up does not end it. A new subscription is opened, with a later
//!   start, and the database is read up to there. The same happens after a snapshot was installed.
//! - Each subscription that is opened is followed by at least one page from the database, whose transaction checks the
//!   session. A session that was closed before the subscription is found there; one that is closed later cuts it.
//!
//! An idle feed takes a few hundred bytes and a timer.

use std::{future::Future, time::Duration, vec};

use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::{
    auth::{self, Caller},
    convert, status,
};
use crate::delivery::{DisconnectReason, Hub, Subscription};
use chat::{Event, Revision, TimeMs, limits::fitting};
use net::shares::Share;
use proto::chat::v1 as pb;

/// Events on a page from the database.
pub(super) const PAGE_EVENTS: usize = 64;
/// Bytes of a page that a subscriber keeps until they are sent; at least one event is kept. The rest is read again.
const PAGE_BYTES_MAX: usize = 128 * 1024;

/// Shortest interval of expiry checks. The replicated clock may be ahead of this machine's and stand still. Then
/// waiting brings the end of a session no nearer, and the waits must not become ever shorter.
const EXPIRY_CHECK_MIN: Duration = Duration::from_millis(50);

/// A selection of the past events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BacklogScope {
    /// Messages that were not acknowledged.
    Undelivered,
    /// All events that concern the caller.
    All,
}

/// The source of past events: the database, or a test's.
pub(super) trait Backlog: Send + Sync + 'static {
    /// Up to [`PAGE_EVENTS`] events with `after < revision <= up_to`, in order. Fewer events mean that there are no
    /// more. Fails when the caller's session is closed.
    fn page(
        &self,
        scope: BacklogScope,
        after: Revision,
        up_to: Revision,
    ) -> impl Future<Output = Result<Vec<Event>, Status>> + Send;

    /// An upper bound of the age of its content; `None` if it is unknown.
    fn age(&self) -> Option<Duration>;

    /// Decides whether a session that has expired by this machine's clock has expired for the cluster. Returns its
    /// expiry, or fails if it has expired.
    fn confirm_clock(&self, caller: &Caller) -> impl Future<Output = Result<TimeMs, Status>> + Send;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `after`: everything up to here was sent. `up_to`: the first subscription's start.
    Undelivered {
        after: Revision,
        up_to: Revision,
    },
    History,
    Live,
}

/// The current page.
#[derive(Debug, Default)]
struct Page {
    events: vec::IntoIter<Event>,
    /// Whether nothing follows it in the requested range.
    last: bool,
    /// Its share of the bytes that may wait for the account.
    _share: Option<Share>,
}

/// An age, if it is known, and the time of its measurement.
type Age = (Option<Duration>, Instant);

/// One subscriber's stream. Dropping it closes the subscription.
#[derive(Debug)]
pub(super) struct Feed<B> {
    hub: Hub,
    backlog: B,
    caller: Caller,
    heartbeat: Duration,
    subscription: Subscription,
    phase: Phase,
    page: Page,
    /// Everything up to here has been sent.
    cursor: Revision,
    /// The revision of the last heartbeat.
    announced: Option<Revision>,
    /// The age of the undelivered messages, measured when the feed was opened.
    age_at_first: Age,
    /// The age of everything else, measured before the events to send were determined.
    age: Age,
    /// Whether the queue of this subscription was seen empty. An overflow then ends the feed, as the subscriber is too
    /// slow.
    caught_up: bool,
    last_sent: Instant,
    /// The last time when the cluster confirmed the session, although it has expired by this machine's clock.
    clock_confirmed: Option<Instant>,
}

impl<B: Backlog> Feed<B> {
    /// Opens a subscription, after `after` or else with the undelivered messages. `after` must not be beyond the hub's
    /// revision.
    pub(super) fn open(
        hub: Hub,
        backlog: B,
        caller: Caller,
        after: Option<Revision>,
        heartbeat: Duration,
    ) -> Result<Self, Status> {
        let after = match after {
            Some(Revision(after)) if failpoints::is_active(failpoints::REVISION_SKIPPED_ON_RESUME) => {
                Some(Revision(after + 1))
            }
            after => after,
        };
        let age = measured(&backlog);
        let subscription = hub.subscribe(caller.account, caller.session).map_err(status::subscriptions)?;
        let phase = match after {
            Some(_) => Phase::History,
            None => Phase::Undelivered { after: Revision(0), up_to: subscription.start },
        };
        Ok(Self {
            hub,
            backlog,
            caller,
            heartbeat,
            subscription,
            phase,
            page: Page::default(),
            cursor: after.unwrap_or_default(),
            announced: None,
            age_at_first: age,
            age,
            caught_up: false,
            last_sent: Instant::now(),
            clock_confirmed: None,
        })
    }

    /// The next message, or the reason why the stream ends.
    pub(super) async fn next(&mut self) -> Result<pb::SubscribeResponse, Status> {
        let response = loop {
            self.check_expiry().await?;
            if let Some(cut) = self.subscription.cut() {
                self.resume(cut)?;
            }
            let step = match self.phase {
                Phase::Undelivered { after, up_to } => self.undelivered(after, up_to).await?,
                Phase::History => self.history().await?,
                Phase::Live => self.live().await,
            };
            if let Some(response) = step {
                break response;
            }
        };
        self.last_sent = Instant::now();
        Ok(response)
    }

    /// Handles a cut: opens a new subscription if the subscriber did not cause the cut, or else ends the feed.
    fn resume(&mut self, cut: DisconnectReason) -> Result<(), Status> {
        match cut {
            DisconnectReason::Slow if self.caught_up => return Err(status::cut(cut)),
            DisconnectReason::SessionClosed | DisconnectReason::Stopping => return Err(status::cut(cut)),
            DisconnectReason::Slow | DisconnectReason::Reset => {}
        }
        self.age = measured(&self.backlog);
        let subscription = self.hub.subscribe(self.caller.account, self.caller.session);
        self.subscription = subscription.map_err(status::subscriptions)?;
        self.caught_up = false;
        if self.phase == Phase::Live {
            self.phase = Phase::History;
        }
        if self.phase == Phase::History {
            // The current page stays valid, but there is more to read now.
            self.page.last = false;
        }
        Ok(())
    }

    async fn undelivered(&mut self, after: Revision, up_to: Revision) -> Result<Option<pb::SubscribeResponse>, Status> {
        if let Some(event) = self.page.events.next() {
            self.phase = Phase::Undelivered { after: event.revision, up_to };
            return Ok(Some(convert::event(&event, self.caller.account, Revision(0))));
        }
        if !self.page.last {
            self.page = self.page(BacklogScope::Undelivered, after, up_to).await?;
            return Ok(None);
        }
        self.cursor = up_to;
        self.page = Page::default();
        self.phase = Phase::History;
        Ok(Some(self.say_cursor(up_to, self.age_at_first)))
    }

    /// The next page, truncated to what may wait.
    async fn page(&self, scope: BacklogScope, after: Revision, up_to: Revision) -> Result<Page, Status> {
        let mut events = self.backlog.page(scope, after, up_to).await?;
        let fitting = fitting(events.iter().map(Event::size), PAGE_BYTES_MAX);
        let bytes = events.iter().take(fitting).map(Event::size).sum();
        let share = self.hub.reserve(self.caller.account, bytes);
        let kept = if share.is_some() { fitting } else { 1 };
        let last = events.len() < PAGE_EVENTS && kept >= events.len();
        events.truncate(kept);
        Ok(Page { events: events.into_iter(), last, _share: share })
    }

    async fn history(&mut self) -> Result<Option<pb::SubscribeResponse>, Status> {
        if let Some(event) = self.page.events.next() {
            self.cursor = event.revision;
            return Ok(Some(convert::event(&event, self.caller.account, event.revision)));
        }
        let up_to = self.subscription.start;
        if !self.page.last {
            self.page = self.page(BacklogScope::All, self.cursor, up_to).await?;
            return Ok(None);
        }
        self.cursor = self.cursor.max(up_to);
        self.page = Page::default();
        self.phase = Phase::Live;
        Ok((self.announced != Some(self.cursor)).then(|| self.say_cursor(self.cursor, self.age)))
    }

    /// The next event; `None` to check the rest again: a cut, or the expiry.
    async fn live(&mut self) -> Option<pb::SubscribeResponse> {
        self.age = measured(&self.backlog);
        // Read before the queue. Events are queued before their revision is announced, so if the queue is empty now,
        // they were sent.
        let (revision, _) = self.hub.current();
        let event = match self.subscription.try_next() {
            Some(next) => next.ok()?,
            None => {
                self.caught_up = true;
                let quiet_until = self.last_sent + self.heartbeat;
                if Instant::now() >= quiet_until {
                    self.cursor = self.cursor.max(revision);
                    return Some(self.say_cursor(self.cursor, self.age));
                }
                let wake = quiet_until.min(self.expiry());
                tokio::select! {
                    biased;
                    next = self.subscription.next() => next.ok()?,
                    () = sleep_until(wake) => return None,
                }
            }
        };
        self.cursor = event.revision;
        Some(convert::event(&event, self.caller.account, event.revision))
    }

    /// Fails when the session has expired. If this machine's clock is ahead, the cluster is queried at intervals.
    async fn check_expiry(&mut self) -> Result<(), Status> {
        let asked_lately = self.clock_confirmed.is_some_and(|at| at.elapsed() < self.heartbeat);
        let decided = auth::is_expired(self.caller.expires_at, self.hub.current().1);
        if decided || !asked_lately && auth::is_expired(self.caller.expires_at, auth::now(&self.hub)) {
            self.caller.expires_at = self.backlog.confirm_clock(&self.caller).await?;
            self.clock_confirmed = Some(Instant::now());
        }
        Ok(())
    }

    /// The time of the next expiry check: about the end of the session, but after a heartbeat interval at the latest.
    fn expiry(&self) -> Instant {
        if let Some(settled) = self.clock_confirmed {
            return settled + self.heartbeat;
        }
        let TimeMs(now) = auth::now(&self.hub);
        let left = Duration::from_millis(self.caller.expires_at.0.saturating_sub(now));
        Instant::now() + left.min(self.heartbeat).max(EXPIRY_CHECK_MIN)
    }

    fn say_cursor(&mut self, cursor: Revision, (age, measured_at): Age) -> pb::SubscribeResponse {
        self.announced = Some(cursor);
        let (_, clock) = self.hub.current();
        let heartbeat = pb::Heartbeat { time_ms: clock.0, age_ms: convert::age_ms(age, measured_at) };
        let event = Some(pb::subscribe_response::Event::Heartbeat(heartbeat));
        pb::SubscribeResponse { revision: cursor.0, event, traceparent: String::new() }
    }
}

/// The age of the database's content. A pause between the two measurements makes it look older, not younger.
fn measured(backlog: &impl Backlog) -> Age {
    let measured_at = Instant::now();
    (backlog.age(), measured_at)
}

#[cfg(test)]
mod tests;
