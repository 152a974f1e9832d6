//! The requests in flight on a connection. A node that stops waits for these and for nothing else.
//!
//! A request is in flight from the moment all of it was read until all of its answer is written. A request whose body
//! is incomplete or unread is not in flight: nothing of it was executed, and its caller may never send the rest. A call
//! whose last byte arrives at the moment its connection ends is cut off, as on a broken connection.
//!
//! Does not cover: how long a stop waits for the requests in flight.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{sync::watch, time::sleep};

use super::gate::Ticket;

/// Interval between two checks of a connection that a stop waits for.
const LOOK: Duration = Duration::from_millis(200);
/// Consecutive checks without anything in flight after which the connection ends. More than one, as an answer may be on
/// its way to the socket between two checks.
const UNUSED_LOOKS: u32 = 2;
/// Consecutive checks that find only answers that are not taken, and no running call, after which the connection ends.
const UNREAD_LOOKS: u32 = 15;

/// A request on a connection.
pub(super) struct Call {
    ticket: Arc<Ticket>,
    has_come: AtomicBool,
    is_answered: AtomicBool,
}

impl Call {
    /// A request of which only the head has arrived.
    pub(super) fn new(ticket: Arc<Ticket>) -> Arc<Self> {
        Arc::new(Self { ticket, has_come: AtomicBool::new(false), is_answered: AtomicBool::new(false) })
    }

    fn come(&self) {
        if !self.has_come.swap(true, Ordering::Relaxed) {
            self.ticket.calls().0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that there is an answer, which may take long to write.
    pub(super) fn answered(&self) {
        self.come();
        if !self.is_answered.swap(true, Ordering::Relaxed) {
            let (running, answers) = self.ticket.calls();
            answers.fetch_add(1, Ordering::Relaxed);
            running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (running, answers) = self.ticket.calls();
        if *self.is_answered.get_mut() {
            answers.fetch_sub(1, Ordering::Relaxed);
        } else if *self.has_come.get_mut() {
            running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The body of a request. Its call is in flight once the body was read to its end, or was dropped unread.
pub(super) struct Coming {
    body: Incoming,
    call: Arc<Call>,
}

impl Coming {
    pub(super) fn new(body: Incoming, call: Arc<Call>) -> Self {
        if body.is_end_stream() {
            call.come();
        }
        Self { body, call }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.call.come();
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.call.come();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns once `stopping` is true and the connection is idle except for answers that are not taken. A healthy
/// connection ends earlier, when hyper closes it and its caller agrees.
pub(super) async fn unused(mut stopping: watch::Receiver<bool>, ticket: &Ticket) {
    // A dropped sender also means a stop.
    let _ = stopping.wait_for(|stopping| *stopping).await;
    let (mut unused, mut unread) = (0, 0);
    while unused < UNUSED_LOOKS && unread < UNREAD_LOOKS {
        sleep(LOOK).await;
        (unused, unread) = match (ticket.runs_calls(), ticket.has_unwritten()) {
            (true, _) => (0, 0),
            (false, true) => (0, unread + 1),
            (false, false) => (unused + 1, 0),
        };
    }
}
