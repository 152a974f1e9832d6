//! The body of an answer, handed to the connection in small parts, so that the unread data is known and bounded.
//!
//! A part stays in the memory of this process until the connection has written it, however little the flow control of
//! the peer lets through. Until then the answer is *not taken*, which the ticket records.
//!
//! Does not cover: the content of the answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{gate::Ticket, in_flight::Call, shares::Share};

/// Largest part. The send buffer of a stream has the same size, so no stream has more than twice this in the
/// connection.
pub const PART_BYTES_MAX: usize = 32 * 1024;

/// The permits and shares that an answer holds until it is taken. An extension of the response.
#[derive(Debug, Clone)]
pub struct Held(pub Arc<(Option<tokio::sync::OwnedSemaphorePermit>, Option<Share>)>);

/// The body of an answer.
pub struct Answer {
    body: Body,
    /// The part of the last frame of `body` that is not handed out yet.
    rest: Bytes,
    ticket: Arc<Ticket>,
    held: Option<Held>,
    _call: Arc<Call>,
}

/// Bytes on their way to the socket. The connection drops them once they are written, or when the stream ends.
struct Part {
    bytes: Bytes,
    ticket: Arc<Ticket>,
    slot: usize,
    _held: Option<Held>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.ticket.written(self.slot);
    }
}

impl Answer {
    /// Hands out `body`, the answer to `call`, and keeps `held` until all of it is written.
    pub(super) fn new(body: Body, ticket: Arc<Ticket>, held: Option<Held>, call: Arc<Call>) -> Self {
        call.answered();
        Self { body, rest: Bytes::new(), ticket, held, _call: call }
    }

    fn part(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(PART_BYTES_MAX));
        let slot = self.ticket.handed_out();
        let part = Part { bytes, ticket: Arc::clone(&self.ticket), slot, _held: self.held.clone() };
        Frame::data(Bytes::from_owner(part))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.part())));
        }
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    // h2 ends connections that receive many empty frames.
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.rest = data;
                        return Poll::Ready(Some(Ok(self.part())));
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
