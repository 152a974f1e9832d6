//! Stands in for the crate `base2histogram`, on which openraft depends: the part of its API that openraft uses.
//!
//! That crate computes tables for every precision on first use, which take 26 MiB, and openraft uses one of the
//! smallest. Here the bounds of a bucket are computed when they are needed. See
//! `docs/decisions/0044-the-memory-of-a-node.md`.
//!
//! A histogram has four buckets for each power of two, as the original does.
//!
//! Does not cover: slots, other precisions, and charts. openraft prints charts only with its feature `runtime-stats`.

use std::{fmt, marker::PhantomData};

/// Buckets of each power of two.
const STEPS: u64 = 4;
/// Buckets of all numbers.
const BUCKETS: usize = 252;

/// Counts of numbers, by magnitude.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    of: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// A histogram that has counted nothing.
    pub fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, of: PhantomData }
    }

    /// Counts a number.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a number several times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        self.counts[bucket(value)] += times;
        self.total += times;
    }

    /// How many numbers were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The middle of the bucket below which, or in which, this part of all numbers is; 0 if there are none.
    pub fn percentile(&self, part: f64) -> u64 {
        let rank = ((self.total as f64 * part).ceil() as u64).clamp(1, self.total.max(1));
        let mut below = 0;
        for (at, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                let (least, width) = bounds(at);
                return least + (width - 1) / 2;
            }
        }
        0
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.10),
            p50: self.percentile(0.50),
            p90: self.percentile(0.90),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// The bucket of a number: those below [`STEPS`] have one each, the others go by the three highest bits.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let magnitude = u64::from(value.ilog2());
    let step = (value >> (magnitude - 2)) - STEPS;
    (STEPS * (magnitude - 1) + step) as usize
}

/// The least number of a bucket, and how many numbers it has.
fn bounds(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return (bucket, 1);
    }
    let width = 1 << (bucket / STEPS - 1);
    ((STEPS + bucket % STEPS) * width, width)
}

/// Percentiles of a [`Histogram`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// Number of all samples.
    pub samples: u64,
    /// 0.1 %.
    pub p0_1: u64,
    /// 1 %.
    pub p1: u64,
    /// 5 %.
    pub p5: u64,
    /// 10 %.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(
            f,
            "[samples: {samples}, P0.1: {p0_1}, P1: {p1}, P5: {p5}, P10: {p10}, P50: {p50}, P90: {p90}, P99: {p99}, \
             P99.9: {p99_9}]"
        )
    }
}

/// Histograms to be shown together.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    /// Their names, and the histograms.
    pub series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// A chart of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a histogram.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_the_bucket_with_its_bounds() {
        let powers = (0..64).map(|power| 1_u64 << power);
        let around = powers.flat_map(|number| [number - 1, number, number + number / 3, number + (number - 1)]);
        for number in (0..1000).chain(around).chain([u64::MAX]) {
            let at = bucket(number);
            let (least, width) = bounds(at);
            assert!(at < BUCKETS && least <= number && number - least < width, "{number}: {at}, {least}, {width}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for at in 1..BUCKETS {
            let (least, width) = bounds(at - 1);
            assert_eq!(bounds(at).0, least + width, "{at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_within_a_bucket_of_the_truth() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=1000).for_each(|number| histogram.record(number));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        for (found, exact) in [(stats.p1, 10), (stats.p50, 500), (stats.p90, 900), (stats.p99, 990)] {
            assert!(found.abs_diff(exact) * 8 <= exact, "{found} for {exact}");
        }
    }
}
