//! What the client makes of bytes of a server, for the fuzz targets in `fuzz/`: only they use it.
//!
//! Each function is one decoder, as the calls use it. Left out: what a target says about the results.

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

/// One call over a connection that exists.
pub async fn call<T>(stream: T) -> Result<SendMessageResponse, Status>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Connection::over(stream, "test").await;
    let mut connection = connection.map_err(|error| Status::unavailable(error.to_string()))?;
    connection.call("/chat.v1.ChatService/SendMessage", None, &SendMessageRequest::default()).await
}

/// What a failed attempt means.
#[derive(Debug, Clone)]
pub struct Judged {
    /// What the caller is told when it was the last one.
    pub error: ClientError,
    /// There is no other attempt.
    pub is_final: bool,
    /// The change may have been applied.
    pub unknown: bool,
    /// How long to wait before the next one.
    pub pause: Duration,
}

/// Judges a failed attempt.
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

/// What an event stream that began after `after` passes on, and where it would resume.
pub fn passed_on(after: Option<u64>, responses: Vec<SubscribeResponse>) -> (Vec<Event>, Option<u64>) {
    let mut resume = Resume::new(after);
    let events = responses.into_iter().filter_map(|response| resume.accept(response)).collect();
    (events, resume.cursor())
}
