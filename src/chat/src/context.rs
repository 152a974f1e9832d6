//! The W3C trace context, in the form of version 00.

use std::{fmt, str::FromStr};

/// A trace and the parent span in it: `00-<32 hex>-<16 hex>-<2 hex>`.
///
/// The vendors' `tracestate` is not propagated, because it may be long and has no meaning here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// The text is not a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C trace context (00-<32 hex digits>-<16 hex digits>-<2 hex digits>, lower case, ids not 0)")]
pub struct Malformed;

impl TraceContext {
    /// Length of its text.
    const BYTES: usize = 55;
    const SAMPLED: u8 = 1;

    /// `None` if an id is 0, which is invalid.
    pub fn new(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, flags: u8::from(sampled) })
    }

    /// The id of the trace.
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// The id of the parent span.
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// The trace id in its usual text form.
    pub fn trace_id_text(self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceContext {
    type Err = Malformed;

    /// Later versions are parsed as the standard requires: by the part that they share with version 00.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bytes = text.as_bytes();
        let hex = |range: std::ops::Range<usize>| {
            let digits =
                bytes.get(range).filter(|digits| digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            digits.and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(Malformed)
        };
        let number = |range| u64::from_str_radix(hex(range)?, 16).map_err(|_| Malformed);
        let is_dash = |at: usize| bytes.get(at) == Some(&b'-');
        let ends = match number(0..2)? {
            0 => bytes.len() == Self::BYTES,
            0xff => false,
            _ => bytes.len() == Self::BYTES || is_dash(Self::BYTES),
        };
        if !ends || ![2, 35, 52].into_iter().all(is_dash) {
            return Err(Malformed);
        }
        let trace_id = u128::from_str_radix(hex(3..35)?, 16).map_err(|_| Malformed)?;
        let sampled = number(53..55)? as u8 & Self::SAMPLED != 0;
        Self::new(trace_id, number(36..52)?, sampled).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trace_contexts_are_read() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: TraceContext = good.parse().unwrap();
        assert_eq!(context.to_string(), good);
        assert_eq!(context.trace_id_text(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(
            (context.trace_id(), context.span_id()),
            (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331)
        );
        assert!(context.is_sampled());
        let parse = |text: &str| text.parse::<TraceContext>();
        assert!(!parse(&format!("{}00", &good[..53])).unwrap().is_sampled());
        // Other flags have no meaning here, and are not propagated.
        assert_eq!(parse(&format!("{}03", &good[..53])), Ok(context));
        // A later version may have more fields.
        assert_eq!(parse(&format!("01{}", &good[2..])), Ok(context));
        assert_eq!(parse(&format!("cc{}-what-ever", &good[2..])), Ok(context));
        for bad in [
            "",
            "garbage",
            &good[..54],
            &format!("{good}-"),
            &format!("ff{}", &good[2..]),
            &format!("01{}x", &good[2..]),
            &good.to_uppercase(),
            &good.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0é",
            "+0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(bad), Err(Malformed), "{bad}");
        }
        assert_eq!(TraceContext::new(0, 1, true), None);
        assert_eq!(TraceContext::new(1, 0, true), None);
    }
}
