//! One client, which makes one call after the other, chosen at random.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep};
use uuid::{Builder, Uuid};

use super::{Person, Recent, Shared, calls::Route};
use crate::history::{Action, Digest, Freshness, Outcome, Uid};
use fastrand::Rng;

/// Maximum number of messages that an account's clients remember.
const RECENT_MAX: usize = 64;
/// Maximum number of messages on a page, except at the end.
const PAGE_MAX: u64 = 20;
/// Pause before a send is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time after the load in which sends with unknown outcome are still retried.
const SETTLE: Duration = Duration::from_secs(5);

/// One client. See the [module](self).
pub(super) struct Actor {
    shared: Arc<Shared>,
    client: u32,
    account: u16,
    random: Rng,
    sent: u64,
}

/// Returns an independent random number generator for each task, all from one seed.
pub(super) fn random(seed: u64, task: u32) -> Rng {
    // SplitMix64: neighbouring seeds give unrelated numbers.
    let mut bits = seed.wrapping_add(u64::from(task).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    Rng::with_seed(bits ^ bits >> 31)
}

/// Returns the client library once in three times, otherwise one of the nodes.
pub(super) fn any_route(random: &mut Rng, nodes: usize) -> Route {
    match random.u64(..3) {
        0 => Route::Library,
        _ => Route::Node(random.u16(..nodes as u16)),
    }
}

impl Actor {
    pub(super) fn new(shared: Arc<Shared>, client: u32) -> Self {
        let account = (client as usize % shared.people.len()) as u16;
        let random = random(shared.seed, client);
        Self { shared, client, account, random, sent: 0 }
    }

    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let me = &shared.people[usize::from(self.account)];
        while Instant::now() < shared.until() {
            match self.random.u64(..100) {
                0..45 => self.send(me).await,
                45..78 => self.read(me).await,
                78..90 => self.mark_read(me).await,
                _ => self.delete(me).await,
            }
            let pause = self.random.u64(..=2 * shared.pause.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
        }
    }

    fn route(&mut self) -> Route {
        any_route(&mut self.random, self.shared.nodes.len())
    }

    /// Returns the account to talk to: usually another one, sometimes the own one.
    fn partner(&mut self) -> u16 {
        let people = self.shared.people.len() as u64;
        match self.random.u64(..10) {
            0 => self.account,
            _ => ((u64::from(self.account) + 1 + self.random.u64(..people - 1)) % people) as u16,
        }
    }

    /// Sends a message and retries until its outcome is known. Sometimes gives up before.
    async fn send(&mut self, me: &Person) {
        let (id, to) = (self.message_id(), self.partner());
        self.sent += 1;
        let filling = "x".repeat(self.random.u64(..100) as usize);
        let body = format!("{id} {} of client {} {filling}", self.sent, self.client);
        let keeps_trying = self.random.u64(..4) > 0;
        let mut may_be_stored = false;
        loop {
            match self.attempt(me, id, to, &body).await {
                Outcome::Ok(()) => break,
                Outcome::Unknown => may_be_stored = true,
                Outcome::Refused => {}
            }
            let (now, end) = (Instant::now(), self.shared.until());
            let limit = if may_be_stored { end + SETTLE } else { end };
            if !keeps_trying || now >= limit {
                return;
            }
            sleep(RETRY_PAUSE).await;
        }
        if self.random.u64(..3) == 0 {
            // Reads immediately through another node, because it may not have applied the message yet.
            let node = Route::Node(self.random.u16(..self.shared.nodes.len() as u16));
            let newest = self.shared.newest.load(Ordering::Relaxed);
            let freshness =
                if self.random.u64(..4) == 0 { Freshness::AtLeast(newest) } else { Freshness::Linearizable };
            self.read_page(me, node, to, freshness).await;
        }
        if self.random.u64(..20) == 0 {
            // Sends again although the outcome is known. This must store nothing new.
            self.attempt(me, id, to, &body).await;
        }
    }

    async fn attempt(&mut self, me: &Person, id: Uuid, to: u16, body: &str) -> Outcome<()> {
        let shared = self.shared.clone();
        let (route, began) = (self.route(), shared.now_us());
        let outcome = shared.send(route, me, id, &shared.people[usize::from(to)].name, body).await;
        let action = Action::Send { id: Uid(id), to, body: Digest::of(body), outcome };
        shared.record(self.client, self.account, route.node(), began, action);
        match outcome {
            Outcome::Ok(stored) => {
                remember(me, Recent { with: to, message: stored.message, seq: stored.seq, own: true });
                Outcome::Ok(())
            }
            Outcome::Refused => Outcome::Refused,
            Outcome::Unknown => Outcome::Unknown,
        }
    }

    async fn read(&mut self, me: &Person) {
        let with = self.partner();
        let freshness = match self.random.u64(..3) {
            0 => Freshness::Linearizable,
            // The newest revision that any client observed, most likely through another node.
            1 => Freshness::AtLeast(self.shared.newest.load(Ordering::Relaxed)),
            _ => Freshness::Local,
        };
        let route = self.route();
        self.read_page(me, route, with, freshness).await;
    }

    async fn read_page(&mut self, me: &Person, route: Route, with: u16, freshness: Freshness) {
        let shared = self.shared.clone();
        let limit = 1 + self.random.u64(..PAGE_MAX) as u32;
        let known = self.recent(me, |recent| recent.with == with).map_or(0, |recent| recent.seq);
        let before = if self.random.u64(..4) == 0 { known } else { 0 };
        let began = shared.now_us();
        let name = &shared.people[usize::from(with)].name;
        let outcome = shared.read(route, me, name, (before, limit), freshness).await;
        if let Outcome::Ok(page) = &outcome {
            for seen in page.messages.iter().take(2) {
                remember(
                    me,
                    Recent { with, message: seen.message, seq: seen.seq, own: seen.sender == Some(self.account) },
                );
            }
        }
        let action = Action::Read { with, before, limit, freshness, last: false, outcome };
        shared.record(self.client, self.account, route.node(), began, action);
    }

    async fn mark_read(&mut self, me: &Person) {
        let Some(Recent { with, seq, .. }) = self.recent(me, |_| true) else { return };
        let shared = self.shared.clone();
        let up_to = if self.random.u64(..3) == 0 { 0 } else { seq };
        let (route, began) = (self.route(), shared.now_us());
        let outcome = shared.mark_read(route, me, &shared.people[usize::from(with)].name, up_to).await;
        shared.record(self.client, self.account, route.node(), began, Action::MarkRead { with, up_to, outcome });
    }

    async fn delete(&mut self, me: &Person) {
        let for_everyone = self.random.u64(..2) == 0;
        // Usually a message that may be deleted, sometimes one that has to be ignored.
        let any = self.random.u64(..8) == 0;
        let Some(chosen) = self.recent(me, |recent| any || !for_everyone || recent.own) else { return };
        let shared = self.shared.clone();
        let (route, began) = (self.route(), shared.now_us());
        let messages = vec![chosen.message];
        let outcome = shared.delete(route, me, messages.clone(), for_everyone).await;
        let action = Action::Delete { messages, for_everyone, outcome };
        shared.record(self.client, self.account, route.node(), began, action);
    }

    fn recent(&mut self, me: &Person, fits: impl Fn(&Recent) -> bool) -> Option<Recent> {
        let recent = me.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting: Vec<Recent> = recent.iter().copied().filter(fits).collect();
        self.random.choice(fitting)
    }

    /// Returns an id in the form that clients use: a timestamp, then random bits.
    fn message_id(&mut self) -> Uuid {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut bits = [0; 10];
        self.random.fill(&mut bits);
        Builder::from_unix_timestamp_millis(now, &bits).into_uuid()
    }
}

fn remember(me: &Person, message: Recent) {
    let mut recent = me.recent.lock().unwrap_or_else(PoisonError::into_inner);
    recent.push_back(message);
    if recent.len() > RECENT_MAX {
        recent.pop_front();
    }
}
