//! What one subscriber is sent, and in which order: a state machine that needs no task of its own.
//!
//! A feed goes through three phases:
//! 1. *Undelivered* (only without a cursor): messages that no client of the caller acknowledged, up to the revision at
//!    which the subscription was opened. They carry no cursor; the heartbeat that follows is the first.
//! 2. *History*: the database, from the cursor to the subscription's start.
//! 3. *Live*: the subscription's queue, which holds everything after its start.
//!
//! Invariants:
//! - The cursor only grows, and everything up to it has been sent.
//! - A queue that overflows before the subscriber was level once is not held against it: a new subscription is opened,
//!   with a later start, and the database read up to there. Likewise after a snapshot was installed.
//! - Each subscription that is opened is followed by at least one page from the database, whose transaction checks
//!   the session: one closed before the subscription is found there, one closed later cuts it.
//!
//! Idle, a feed is a few hundred bytes and a timer.

use std::{future::Future, time::Duration, vec};

use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::{
    auth::{self, Caller},
    convert, status,
};
use crate::{
    chat::{Event, Revision, TimeMs, limits::fitting},
    delivery::{Cut, Hub, Subscription},
    net::shares::Share,
    planted,
    proto::chat::v1 as pb,
};

/// Events on a page from the database.
pub(super) const PAGE_EVENTS: usize = 64;
/// Bytes of them that a subscriber keeps until they are sent; one event at least. What is beyond is read again.
const PAGE_BYTES_MAX: usize = 128 * 1024;

/// The replicated clock may be ahead of this machine's and stand still: then the end of a session comes no nearer by
/// waiting for it, and the waits must not become ever shorter.
const EXPIRY_CHECK_MIN: Duration = Duration::from_millis(50);

/// Which of the past events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Messages that were not acknowledged.
    Undelivered,
    /// All that concern the caller.
    All,
}

/// Where the past is read from: the database, or a test's.
pub(super) trait Backlog: Send + Sync + 'static {
    /// Up to [`PAGE_EVENTS`] events with `after < revision <= up_to`, in order; fewer: there are no more. Fails when
    /// the caller's session is closed.
    fn page(
        &self,
        which: Which,
        after: Revision,
        up_to: Revision,
    ) -> impl Future<Output = Result<Vec<Event>, Status>> + Send;

    /// How old what it has may be; `None`: that is not known.
    fn age(&self) -> Option<Duration>;

    /// Fails when a session that ends at this time, which has come by this machine's clock, has expired for the cluster.
    fn settle_clock(&self, caller: &Caller) -> impl Future<Output = Result<TimeMs, Status>> + Send;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `after`: sent up to here. `up_to`: the first subscription's start.
    Undelivered {
        after: Revision,
        up_to: Revision,
    },
    History,
    Live,
}

/// The page at hand.
#[derive(Debug, Default)]
struct Page {
    events: vec::IntoIter<Event>,
    /// Nothing follows it, as far as it was asked for.
    last: bool,
    /// What it holds of the bytes that may wait for the account.
    _share: Option<Share>,
}

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
    /// The queue was seen empty: from here on, an overflow is the subscriber's doing.
    level: bool,
    last_sent: Instant,
    /// When the cluster said last that the session has not expired, although this machine's clock says so.
    clock_settled: Option<Instant>,
}

impl<B: Backlog> Feed<B> {
    /// Opens a subscription: after `after`, or else with what is undelivered. `after` must not be beyond the hub's
    /// revision.
    pub(super) fn open(
        hub: Hub,
        backlog: B,
        caller: Caller,
        after: Option<Revision>,
        heartbeat: Duration,
    ) -> Result<Self, Status> {
        let after = match after {
            Some(Revision(after)) if planted::is(planted::REVISION_SKIPPED_ON_RESUME) => Some(Revision(after + 1)),
            after => after,
        };
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
            level: false,
            last_sent: Instant::now(),
            clock_settled: None,
        })
    }

    /// The next thing to send, or why the stream ends.
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

    /// After a cut: goes on with a new subscription where that is nobody's fault, or ends.
    fn resume(&mut self, cut: Cut) -> Result<(), Status> {
        match cut {
            Cut::Slow if self.level => return Err(status::cut(cut)),
            Cut::SessionClosed | Cut::Stopping => return Err(status::cut(cut)),
            Cut::Slow | Cut::Reset => {}
        }
        let subscription = self.hub.subscribe(self.caller.account, self.caller.session);
        self.subscription = subscription.map_err(status::subscriptions)?;
        self.level = false;
        if self.phase == Phase::Live {
            self.phase = Phase::History;
        }
        if self.phase == Phase::History {
            // What is at hand is still right, but there is more to read now.
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
            self.page = self.page(Which::Undelivered, after, up_to).await?;
            return Ok(None);
        }
        self.cursor = up_to;
        self.page = Page::default();
        self.phase = Phase::History;
        Ok(Some(self.say_cursor(up_to)))
    }

    /// The next page, as much of it as may wait.
    async fn page(&self, which: Which, after: Revision, up_to: Revision) -> Result<Page, Status> {
        let mut events = self.backlog.page(which, after, up_to).await?;
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
            self.page = self.page(Which::All, self.cursor, up_to).await?;
            return Ok(None);
        }
        self.cursor = self.cursor.max(up_to);
        self.page = Page::default();
        self.phase = Phase::Live;
        Ok((self.announced != Some(self.cursor)).then(|| self.say_cursor(self.cursor)))
    }

    /// The next event; or `None` when it is time to look at the rest: a cut, the expiry.
    async fn live(&mut self) -> Option<pb::SubscribeResponse> {
        // Before the queue: what is announced was queued before, so an empty queue then means that it was sent.
        let (revision, _) = self.hub.current();
        let event = match self.subscription.try_next() {
            Some(next) => next.ok()?,
            None => {
                self.level = true;
                let quiet_until = self.last_sent + self.heartbeat;
                if Instant::now() >= quiet_until {
                    self.cursor = self.cursor.max(revision);
                    return Some(self.say_cursor(self.cursor));
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

    /// Fails when the session has expired. A machine whose clock is ahead asks the cluster now and then.
    async fn check_expiry(&mut self) -> Result<(), Status> {
        let asked_lately = self.clock_settled.is_some_and(|at| at.elapsed() < self.heartbeat);
        let decided = auth::is_expired(self.caller.expires_at, self.hub.current().1);
        if decided || !asked_lately && auth::is_expired(self.caller.expires_at, auth::now(&self.hub)) {
            self.caller.expires_at = self.backlog.settle_clock(&self.caller).await?;
            self.clock_settled = Some(Instant::now());
        }
        Ok(())
    }

    /// When to look at the session's time again: about when it ends, or after a heartbeat's time, if that is sooner.
    fn expiry(&self) -> Instant {
        if let Some(settled) = self.clock_settled {
            return settled + self.heartbeat;
        }
        let TimeMs(now) = auth::now(&self.hub);
        let left = Duration::from_millis(self.caller.expires_at.0.saturating_sub(now));
        Instant::now() + left.min(self.heartbeat).max(EXPIRY_CHECK_MIN)
    }

    fn say_cursor(&mut self, cursor: Revision) -> pb::SubscribeResponse {
        self.announced = Some(cursor);
        let (_, clock) = self.hub.current();
        let age_ms = self.backlog.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let heartbeat = pb::Heartbeat { time_ms: clock.0, age_ms };
        let event = Some(pb::subscribe_response::Event::Heartbeat(heartbeat));
        pb::SubscribeResponse { revision: cursor.0, event, traceparent: String::new() }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
