//! Latency histogram of a benchmark, in constant memory.
//!
//! Bucket sizes grow with the value: there are 128 buckets per power of two, so a percentile is at most 0.8 % too high.
//! The maximum is exact.

/// Buckets per power of two.
const FINE: u64 = 128;
const FINE_BITS: u32 = FINE.trailing_zeros();
/// Number of buckets for all 64-bit values.
const BUCKETS: usize = (64 - FINE_BITS as usize + 1) * FINE as usize;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

/// A histogram of microseconds.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(super) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Returns the value that `per_mille` of all values do not exceed; 0 when there are none.
    pub(super) fn percentile(&self, per_mille: u64) -> u64 {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(bucket).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    // Each value below 2 * FINE has its own bucket.
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(FINE_BITS + 1);
    u64::from(shift) as usize * FINE as usize + (value >> shift) as usize
}

/// Returns the largest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let (bucket, fine) = (bucket as u64, FINE);
    let shift = (bucket / fine).saturating_sub(1);
    let first = bucket - shift * fine;
    ((u128::from(first) + 1) << shift).saturating_sub(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_ends_at_most_one_percent_above() {
        let mut value = 0u64;
        let mut last = 0;
        while value < u64::MAX / 2 {
            let index = bucket(value);
            assert!(index >= last && index < BUCKETS, "{value}");
            assert!(highest(index) >= value && highest(index) - value <= value / 127, "{value}");
            last = index;
            value += value / 200 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
        assert_eq!(highest(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.percentile(500), histogram.max(), histogram.total()), (0, 0, 0));
        for value in 1..=100 {
            histogram.record(value);
        }
        assert_eq!(histogram.percentile(500), 50);
        assert_eq!(histogram.percentile(990), 99);
        assert_eq!(histogram.percentile(1000), 100);
        histogram.record(1_000_003);
        assert_eq!(histogram.max(), 1_000_003);
        assert_eq!(histogram.percentile(1000), 1_000_003, "never above the largest");
        assert_eq!(histogram.total(), 101);
    }
}
