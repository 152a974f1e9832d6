//! Rate limit for the log lines of each place in the program.
//!
//! A peer that is down or broken makes other nodes log the same message repeatedly, up to ten times a second. Each
//! place may log [`LINES_MAX`] lines per [`WINDOW`]. The first line after that states how many were suppressed.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The window of the rate limit.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one place per window.
pub(super) const LINES_MAX: u32 = 10;

/// Counts lines by their place in the program. The number of places is bounded.
pub(super) struct Limit<Place>(Mutex<HashMap<Place, Window>>);

struct Window {
    began: Instant,
    written: u32,
    left_out: u64,
}

impl<Place: Eq + Hash> Limit<Place> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The number of lines that were suppressed since the last one from the same place; `None` if this line is
    /// suppressed.
    pub(super) fn admit(&self, place: Place, now: Instant) -> Option<u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Window { began: now, written: 0, left_out: 0 };
        let window = windows.entry(place).or_insert_with(fresh);
        if now.saturating_duration_since(window.began) >= WINDOW {
            let left_out = window.left_out;
            *window = Window { written: 1, ..fresh() };
            return Some(left_out);
        }
        if window.written < LINES_MAX {
            window.written += 1;
            return Some(0);
        }
        window.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_line_tells_how_many_were_left_out() {
        let (limit, began) = (Limit::new(), Instant::now());
        for _ in 0..LINES_MAX {
            assert_eq!(limit.admit("here", began), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(limit.admit("here", began + WINDOW / 2), None);
        }
        assert_eq!(limit.admit("there", began + WINDOW / 2), Some(0));
        assert_eq!(limit.admit("here", began + WINDOW), Some(3));
        assert_eq!(limit.admit("here", began + WINDOW), Some(0));
    }
}
