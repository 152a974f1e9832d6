//! The context of a call, known before its body is examined: deadline, trace, peer.

use std::{net::IpAddr, time::Duration};

use tokio::time::Instant;
use tonic::{Request, codegen::http::HeaderMap};

use trace::TraceContext;

/// Time reserved for the answer, so that it arrives before the caller (or tonic, with CANCELLED) times out. At most a
/// tenth of the caller's timeout.
const MARGIN_MAX: Duration = Duration::from_millis(50);

/// The context of one call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The time by which the call is answered.
    pub(super) deadline: Instant,
    /// The trace of the call, sampled or not.
    pub(super) trace: Option<TraceContext>,
    /// The address that the caller connected from; `None` on a Unix socket.
    pub(super) peer: Option<IpAddr>,
}

impl Call {
    pub(super) fn of<T>(request: &Request<T>, limit: Duration) -> Self {
        let asked = timeout_of(request.metadata().as_ref());
        let limit = asked.map_or(limit, |asked| (asked - MARGIN_MAX.min(asked / 10)).min(limit));
        Self {
            deadline: Instant::now() + limit,
            trace: trace::current(),
            peer: request.remote_addr().map(|address| address.ip()),
        }
    }
}

/// The caller's `grpc-timeout`: up to eight digits and a unit. An unreadable value counts as absent.
pub(super) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderName;

    use super::*;

    #[test]
    fn timeouts() {
        let parse = |text: &'static str| {
            timeout_of(&HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), text.parse().unwrap())]))
        };
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse("5M"), Some(Duration::from_secs(300)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "5", "-5S", "5s", "123456789S", "1.5S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn the_deadline_is_the_callers_within_ours() {
        let limit = Duration::from_secs(10);
        let left = |text: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(text) = text {
                request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
            }
            Call::of(&request, limit).deadline - Instant::now()
        };
        assert!(left(None) > Duration::from_secs(9));
        assert!(left(Some("1H")) <= limit);
        assert!(left(Some("1S")) <= Duration::from_millis(950));
        assert!(left(Some("100m")) <= Duration::from_millis(90));
    }
}
