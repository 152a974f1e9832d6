//! Conversion of a time to a date and a time of day, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// The components of a time in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub year: u64,
    pub month: u64,
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    pub millisecond: u32,
}

impl Civil {
    /// Converts `time`. A clock before 1970 or after 9999 counts as 1970, as a log line with a wrong date is better
    /// than none.
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
        let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self {
            // Never before 1970.
            year: time.year().unsigned_abs().into(),
            month: u8::from(time.month()).into(),
            day: time.day().into(),
            hour: time.hour().into(),
            minute: time.minute().into(),
            second: time.second().into(),
            millisecond: since.subsec_millis(),
        }
    }

    /// `2024-03-20 10:15:30`.
    pub fn text(&self) -> String {
        let Self { year, month, day, hour, minute, second, .. } = self;
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }

    /// `2024-03-20T10:15:30.123Z`.
    pub fn rfc3339(&self) -> String {
        let Self { year, month, day, hour, minute, second, millisecond } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(seconds: u64) -> String {
        Civil::from_system(UNIX_EPOCH + Duration::from_secs(seconds)).text()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(951_868_800), "2000-03-01 00:00:00");
        assert_eq!(text(1_710_929_730), "2024-03-20 10:15:30");
        assert_eq!(text(1_735_689_599), "2024-12-31 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
        let civil = Civil::from_system(UNIX_EPOCH + Duration::from_millis(1_710_929_730_045));
        assert_eq!(civil.rfc3339(), "2024-03-20T10:15:30.045Z");
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut before = Civil::from_system(UNIX_EPOCH);
        for day in 1..=160_000_u64 {
            let next = Civil::from_system(UNIX_EPOCH + Duration::from_secs(day * 86_400));
            let leap = {
                let multiple = |of| before.year.is_multiple_of(of);
                multiple(4) && (!multiple(100) || multiple(400))
            };
            let last = match before.month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (before.month, before.day) {
                (12, 31) => (before.year + 1, 1, 1),
                (month, day) if day == last => (before.year, month + 1, 1),
                (month, day) => (before.year, month, day + 1),
            };
            assert_eq!((next.year, next.month, next.day), expected);
            before = next;
        }
    }
}
