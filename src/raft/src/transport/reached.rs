//! Members to which calls fail, for the log: one line when that has lasted for a while, and one when it is over.
//!
//! Each lane counts by itself: a follower that answers heartbeats may be unable to take entries. The consensus library
//! warns of each call instead, hundreds of times a minute.
//!
//! Does not cover: elections and the repetition of calls, which are openraft's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::peers::Lane;

/// Members start and stop one after the other. Only what lasts longer is worth a line.
const LOGGED_AFTER: Duration = Duration::from_secs(1);
/// Time without any call after which it is unknown what came of it: another node leads, or the member was removed.
/// Longer than any pause between the attempts of a leader.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// The members to which calls have failed since the last one that succeeded.
#[derive(Debug, Default)]
pub(super) struct Reached {
    failing: Mutex<HashMap<(u64, Lane), Failing>>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    last: Instant,
    is_logged: bool,
}

impl Reached {
    /// Notes that a call to a member has succeeded.
    pub fn succeeded(&self, id: u64, name: &str, lane: Lane) {
        if let Some(took) = self.over(id, lane) {
            let seconds = took.as_secs();
            tracing::info!(node = name, lane = lane.name(), "Calls to a node succeed again, after {seconds} s");
        }
    }

    /// Notes that a call to a member has failed.
    pub fn failed(&self, id: u64, name: &str, lane: Lane, error: &str) {
        if self.is_news(id, lane) {
            tracing::warn!(node = name, lane = lane.name(), error, "Calls to a node fail");
        }
    }

    /// How long calls have failed, if that was logged.
    fn over(&self, id: u64, lane: Lane) -> Option<Duration> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).remove(&(id, lane))?;
        (failing.is_logged && failing.last.elapsed() < FORGOTTEN_AFTER).then(|| failing.since.elapsed())
    }

    /// Whether a failed call is to be logged.
    fn is_news(&self, id: u64, lane: Lane) -> bool {
        let now = Instant::now();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.retain(|_, failing| now - failing.last < FORGOTTEN_AFTER);
        let failing = failing.entry((id, lane)).or_insert(Failing { since: now, last: now, is_logged: false });
        failing.last = now;
        let is_news = !failing.is_logged && now - failing.since >= LOGGED_AFTER;
        failing.is_logged |= is_news;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::{Lane::Control, Lane::Replication, *};

    #[tokio::test(start_paused = true)]
    async fn a_member_that_stays_away_is_logged_once_and_its_return_too() {
        let reached = Reached::default();
        assert!(!reached.is_news(1, Control), "it may only be starting");
        advance(LOGGED_AFTER).await;
        assert!(reached.is_news(1, Control));
        assert!(!reached.is_news(1, Control), "once");
        assert!(!reached.is_news(2, Control) && !reached.is_news(1, Replication), "each counts by itself");
        advance(LOGGED_AFTER).await;
        assert_eq!(reached.over(1, Control), Some(2 * LOGGED_AFTER));
        assert_eq!(
            (reached.over(1, Control), reached.over(2, Control)),
            (None, None),
            "what was not logged is not over"
        );
        assert!(!reached.is_news(1, Control), "the next time counts from its own beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_has_tried_for_long_is_forgotten() {
        let reached = Reached::default();
        reached.is_news(1, Control);
        advance(LOGGED_AFTER).await;
        assert!(reached.is_news(1, Control) && !reached.is_news(2, Control));
        advance(FORGOTTEN_AFTER).await;
        assert_eq!(reached.over(1, Control), None, "it may have been back for hours");
        assert!(!reached.is_news(2, Control), "one failure then and one now are no time in between");
        assert_eq!(reached.failing.lock().expect("not poisoned").len(), 1);
    }
}
