//! Times as people read them.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Formats milliseconds since the Unix epoch as `2024-03-20T10:15:30Z`, or as a number when after the year 9999.
pub fn time(time_ms: u64) -> String {
    let seconds = i64::try_from(time_ms / 1000).ok();
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| time_ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696_789, "2000-02-29T12:34:56Z"),
            (1_710_929_730_000, "2024-03-20T10:15:30Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59Z"),
            (253_402_300_800_000, "253402300800000"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(time(ms), text);
        }
    }
}
