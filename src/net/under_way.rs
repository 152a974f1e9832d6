//! Which requests of a connection are under way, so that a node that stops waits for those and for nothing else.
//!
//! A request is under way from when all of it has come until all of its answer is written. One whose body is still missing
//! is not: nothing of it was done, and its caller may never send the rest.
//!
//! Does not cover: how long a stop waits for what is under way.

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

/// Between two looks at a connection that a stop waits for. It ends when two in a row find nothing under way: an answer that was
/// given in between is on its way to the socket.
const LOOK: Duration = Duration::from_millis(200);

/// A request of a connection.
pub(super) struct Call {
    ticket: Arc<Ticket>,
    has_come: AtomicBool,
}

impl Call {
    /// A request, of which only the head has come.
    pub(super) fn new(ticket: Arc<Ticket>) -> Arc<Self> {
        Arc::new(Self { ticket, has_come: AtomicBool::new(false) })
    }

    fn come(&self) {
        if !self.has_come.swap(true, Ordering::Relaxed) {
            self.ticket.under_way().fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if *self.has_come.get_mut() {
            self.ticket.under_way().fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The body of a request, whose call is under way once it was read to its end, or nobody wants to read it.
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

/// Returns once `stopping` is true and nothing of the connection is under way. A connection on which all is in order ends by
/// itself before that: hyper closes it, and its caller agrees.
pub(super) async fn unused(mut stopping: watch::Receiver<bool>, ticket: &Ticket) {
    // A dropped sender means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
    let mut was_unused = false;
    loop {
        sleep(LOOK).await;
        let is_unused = !ticket.is_used();
        if is_unused && was_unused {
            return;
        }
        was_unused = is_unused;
    }
}
