//! A small random number generator for jitter and for the choice of nodes. Not for secrets.

use std::hash::{BuildHasher as _, RandomState};

/// xorshift64*: a few instructions per number, good enough to spread retries.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by the operating system.
    pub(crate) fn new() -> Self {
        // If the system has no randomness, the hash seeds of the standard library still differ per use.
        let seed = getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(0u8));
        Self::seeded(seed)
    }

    /// Seeded with `seed`: the same seed gives the same numbers.
    pub(crate) fn seeded(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(seed | 1)
    }

    /// Returns any number but 0.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number below `bound`; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high half of a widening multiplication is in range, without a division.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_the_bound_and_spread_over_it() {
        let mut random = Random::seeded(7);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(random.below(0), 0);
        assert_eq!(random.below(1), 0);
    }
}
