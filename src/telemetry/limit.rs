//! How often one place in the program may write a line.
//!
//! A peer that is down or broken makes others say the same over and over: ten times a second, for as long as it lasts. Each
//! place gets [`LINES_MAX`] lines in [`WINDOW`]; the first line after that tells how many were left out.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long lines are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one place in that time.
pub(super) const LINES_MAX: u32 = 10;

/// Counts lines by where they come from. The places are those of the program: a bounded number.
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

    /// Whether a line may be written; then, how many were left out since the last one from the same place.
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
