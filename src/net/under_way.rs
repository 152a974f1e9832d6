//! Which requests of a connection are under way, so that a node that stops waits for those and for nothing else.
//!
//! A request is under way from when all of it was read until all of its answer is written. One whose body is still missing,
//! or was not looked at, is not: nothing of it was done, and its caller may never send the rest. A call whose last byte
//! comes in the moment in which its connection ends is cut as one on a connection that breaks.
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

/// Between two looks at a connection that a stop waits for.
const LOOK: Duration = Duration::from_millis(200);
/// It ends when so many in a row find nothing under way: an answer that was given in between is on its way to the socket.
const UNUSED_LOOKS: u32 = 2;
/// And when so many in a row find answers that are not taken, and no call that runs.
const UNREAD_LOOKS: u32 = 15;

/// A request of a connection.
pub(super) struct Call {
    ticket: Arc<Ticket>,
    has_come: AtomicBool,
    is_answered: AtomicBool,
}

impl Call {
    /// A request, of which only the head has come.
    pub(super) fn new(ticket: Arc<Ticket>) -> Arc<Self> {
        Arc::new(Self { ticket, has_come: AtomicBool::new(false), is_answered: AtomicBool::new(false) })
    }

    fn come(&self) {
        if !self.has_come.swap(true, Ordering::Relaxed) {
            self.ticket.calls().0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// There is an answer, which may have to be written for long.
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

/// Returns once `stopping` is true and nothing of the connection is under way but answers that are not taken. A connection on
/// which all is in order ends by itself before that: hyper closes it, and its caller agrees.
pub(super) async fn unused(mut stopping: watch::Receiver<bool>, ticket: &Ticket) {
    // A dropped sender means the same.
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
