//! The times at which a leader refuses commands because its lease has expired.
//!
//! The proposer records them, and `tasks::lease` transfers leadership when they go on for too long. Does not cover: the
//! lease itself, which openraft keeps.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The current spell of refusals for want of a lease: the first and the last of them, without a longer break in
/// between.
#[derive(Debug)]
pub(crate) struct Lapses {
    bound: Duration,
    spell: Mutex<Option<(Instant, Instant)>>,
}

impl Lapses {
    /// No refusals yet. A spell that lasts longer than `bound` is too long, and a break of `bound` ends it.
    pub(crate) fn new(bound: Duration) -> Self {
        Self { bound, spell: Mutex::default() }
    }

    /// How long a spell may last, and how long a break ends it.
    pub(crate) fn bound(&self) -> Duration {
        self.bound
    }

    /// Records a refusal at `now`.
    pub(crate) fn note(&self, now: Instant) {
        let mut spell = self.spell.lock().unwrap_or_else(PoisonError::into_inner);
        let first = spell.filter(|(_, last)| now.duration_since(*last) < self.bound).map_or(now, |(first, _)| first);
        *spell = Some((first, now));
    }

    /// Start of the spell that is too long and still goes on at `now`.
    pub(crate) fn too_long(&self, now: Instant) -> Option<Instant> {
        let spell = *self.spell.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = spell?;
        (now.duration_since(last) < self.bound && now.duration_since(first) > self.bound).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_on_and_off_are_one_spell_until_a_break() {
        let (began, ms, bound) = (Instant::now(), Duration::from_millis, Duration::from_millis(1_200));
        let lapses = Lapses::new(bound);
        assert_eq!(lapses.too_long(began), None);
        for after in [0, 900, 1_800] {
            lapses.note(began + ms(after));
        }
        assert_eq!(lapses.too_long(began + ms(1_200)), None, "not longer than it may last");
        assert_eq!(lapses.too_long(began + ms(1_900)), Some(began));
        assert_eq!(lapses.too_long(began + ms(3_000)), None, "it is over");
        lapses.note(began + ms(3_000));
        assert_eq!(lapses.too_long(began + ms(3_100)), None, "a new one");
        lapses.note(began + ms(4_100));
        assert_eq!(lapses.too_long(began + ms(4_300)), Some(began + ms(3_000)));
    }
}
