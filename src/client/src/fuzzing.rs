//! Entry points for the fuzz targets in `fuzz/`: how the client decodes bytes from a server.
//!
//! Each function wraps one decoder in the way that the calls use it. Does not cover: assertions, which are in the
//! targets.

use std::time::Duration;

use tonic::Status;

use super::{
    ClientError, Event,
    error::{Verdict, classify},
    resume::Resume,
    retry::Backoff,
};
use proto::chat::v1::SubscribeResponse;

/// The interpretation of a failed attempt.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The error that the caller gets if this is the last attempt.
    pub error: ClientError,
    /// Whether a retry is pointless.
    pub is_final: bool,
    /// Whether the change may have been applied.
    pub unknown: bool,
    /// Pause before the next attempt.
    pub pause: Duration,
}

/// Interprets a failed attempt.
pub fn judge(status: Status, backoff_min: Duration, backoff_max: Duration) -> Judged {
    let verdict = classify(&status);
    let error = ClientError::from(status);
    let pause = Backoff::new(backoff_min, backoff_max).next(error.retry_after);
    let (is_final, unknown) = match verdict {
        Verdict::Final => (true, false),
        Verdict::Retry { unknown, .. } => (false, unknown),
    };
    Judged { error, is_final, unknown, pause }
}

/// Returns the events that a stream after revision `after` passes on, and the revision that it would resume after.
pub fn passed_on(after: Option<u64>, responses: Vec<SubscribeResponse>) -> (Vec<Event>, Option<u64>) {
    let mut resume = Resume::new(after);
    let events = responses.into_iter().filter_map(|response| resume.accept(response)).collect();
    (events, resume.cursor())
}
