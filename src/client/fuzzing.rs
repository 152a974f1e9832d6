//! Entry points for the fuzz targets in `fuzz/`: how the client decodes bytes from a server.
//!
//! Each function wraps one decoder in the way that the calls use it. Does not cover: assertions, which are in the
//! targets.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

use super::{
    ClientError, Event,
    error::{Verdict, classify},
    resume::Resume,
    retry::Backoff,
    unary::Connection,
};
use crate::proto::chat::v1::{SendMessageRequest, SendMessageResponse, SubscribeResponse};

/// Makes one call over an existing connection.
pub async fn call<T>(stream: T) -> Result<SendMessageResponse, Status>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Connection::over(stream, "test").await;
    let mut connection = connection.map_err(|error| Status::unavailable(error.to_string()))?;
    connection.call("/chat.v1.ChatService/SendMessage", None, &SendMessageRequest::default()).await
}

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
