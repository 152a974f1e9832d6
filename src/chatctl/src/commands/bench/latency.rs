//! Latencies of a benchmark, in constant memory.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Highest latency that has a bucket: a day, the limit of `--seconds`. A higher one counts as this one.
const HIGHEST_US: u64 = 24 * 60 * 60 * 1_000_000;
/// Precision of quantiles, in decimal digits.
const SIGNIFICANT_FIGURES: u8 = 3;

/// A histogram of microseconds. The maximum is exact, and no quantile exceeds it.
#[derive(Debug, Clone)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_max(HIGHEST_US, SIGNIFICANT_FIGURES);
        Self { histogram: histogram.expect("constants that are valid bounds"), max_us: 0 }
    }
}

impl Latencies {
    pub(super) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(us);
        self.max_us = self.max_us.max(us);
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub(super) fn max_us(&self) -> u64 {
        self.max_us
    }

    /// Returns the latency that this part of all latencies does not exceed; 0 when there are none.
    pub(super) fn quantile_us(&self, quantile: f64) -> u64 {
        // The highest value of a bucket can exceed the maximum.
        self.histogram.value_at_quantile(quantile).min(self.max_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_ends_at_most_one_percent_above() {
        let mut value = 0;
        while value <= HIGHEST_US {
            let mut latencies = Latencies::default();
            latencies.record(Duration::from_micros(value));
            // A higher value, so that the quantile is that of the bucket and not the maximum.
            latencies.record(Duration::from_micros(2 * HIGHEST_US));
            let highest = latencies.quantile_us(0.5);
            assert!(highest >= value && highest - value <= value / 1000, "{value}: {highest}");
            value += value / 7 + 1;
        }
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.quantile_us(0.5), latencies.max_us(), latencies.count()), (0, 0, 0));
        for us in 1..=100 {
            latencies.record(Duration::from_micros(us));
        }
        assert_eq!(latencies.quantile_us(0.5), 50);
        assert_eq!(latencies.quantile_us(0.99), 99);
        assert_eq!(latencies.quantile_us(1.0), 100);
        latencies.record(Duration::from_micros(1_000_003));
        assert_eq!(latencies.max_us(), 1_000_003);
        assert_eq!(latencies.quantile_us(1.0), 1_000_003, "never above the largest");
        assert_eq!(latencies.count(), 101);
        latencies.record(Duration::MAX);
        assert_eq!((latencies.max_us(), latencies.count()), (u64::MAX, 102));
    }
}
