//! Receives the bodies of requests within budgets of bytes and of time.
//!
//! The received bytes of a body and the fixed cost of a request are held until the request is done. The budgets are
//! [`Shares`]: one for accounts, one for callers that have not presented a session. When a stranger's share is full,
//! the connection of the same owner that holds the most of it ends, so that incomplete requests make room for a new
//! one.
//!
//! Does not cover: how many requests run at once, and their content.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::{
    gate::{Gate, Owner, Ticket},
    shares::{Share, Shares},
};

/// Time limit for a whole body. The largest gRPC request has 64 KiB, which takes a second at 512 kbit/s.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// Cost of a request in flight without its body: its task and its stream, measured with waiting requests.
const REQUEST_OVERHEAD_BYTES: usize = 8 * 1024;
/// Bytes of requests in flight of callers without a session.
const STRANGERS_BYTES_MAX: usize = 16 << 20;
/// Bytes of requests in flight of accounts.
const KNOWN_BYTES_MAX: usize = 32 << 20;

/// Why a body was not received. Nothing of the request was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReceived {
    /// The body exceeds the limit for a request.
    TooLarge,
    /// The body did not arrive in time.
    Incomplete,
    /// The caller has disconnected or cancelled the request.
    BrokenOff,
    /// Too many bytes are being received for this owner, or for all.
    Full,
}

/// The budgets of a node.
#[derive(Debug)]
pub struct Receiver {
    strangers: Arc<Shares>,
    known: Arc<Shares>,
    /// The gates of the ports that it receives for.
    gates: Mutex<Vec<Gate>>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            strangers: Shares::new(STRANGERS_BYTES_MAX),
            known: Shares::new(KNOWN_BYTES_MAX),
            gates: Mutex::default(),
        }
    }
}

/// The part of a budget that a received request holds until it is dropped.
#[derive(Debug)]
pub struct Received {
    share: Share,
    ticket: Arc<Ticket>,
    bytes: usize,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.ticket.receiving().fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Receiver {
    /// Receives the whole body of a request of `owner`, at most `bytes_max` bytes.
    ///
    /// # Errors
    /// See [`NotReceived`].
    pub async fn receive(
        &self,
        ticket: &Arc<Ticket>,
        owner: Owner,
        body: Body,
        bytes_max: usize,
    ) -> Result<(Bytes, Received), NotReceived> {
        let deadline = Instant::now() + BODY_TIME_MAX;
        let received = timeout_at(deadline, async {
            let mut held = self.begin(ticket, owner).await?;
            let body = self.collect(&mut held, owner, body, bytes_max).await?;
            Ok((body, held))
        });
        received.await.unwrap_or(Err(NotReceived::Incomplete))
    }

    /// Ends the unproven connection of `owner`, on any port, that holds the most bytes. Fails unless that is another
    /// connection that holds at least as much as this one.
    fn make_room(&self, ticket: &Ticket, owner: Owner) -> Result<(), NotReceived> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let most = gates.iter().filter_map(|gate| Some((gate, gate.receives_most(owner)?)));
        let Some((gate, (bytes, most))) = most.max_by_key(|(_, (bytes, _))| *bytes) else {
            return Err(NotReceived::Full);
        };
        let is_this = std::ptr::eq(Arc::as_ptr(&most), ticket);
        if is_this || bytes == 0 || bytes < ticket.receiving().load(Ordering::Relaxed) {
            return Err(NotReceived::Full);
        }
        gate.displace(&most);
        Ok(())
    }

    /// Registers a gate whose unproven connections may be displaced for later requests.
    pub fn watch(&self, gate: &Gate) {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).push(gate.clone());
    }

    fn budget(&self, owner: Owner) -> &Arc<Shares> {
        match owner {
            Owner::Account(_) => &self.known,
            Owner::Address(_) => &self.strangers,
        }
    }

    async fn begin(&self, ticket: &Arc<Ticket>, owner: Owner) -> Result<Received, NotReceived> {
        let budget = self.budget(owner);
        loop {
            let released = budget.released();
            if let Some(share) = budget.take(owner, REQUEST_OVERHEAD_BYTES) {
                ticket.receiving().fetch_add(REQUEST_OVERHEAD_BYTES, Ordering::Relaxed);
                return Ok(Received { share, ticket: Arc::clone(ticket), bytes: REQUEST_OVERHEAD_BYTES });
            }
            self.make_room(ticket, owner)?;
            released.await;
        }
    }

    async fn collect(
        &self,
        held: &mut Received,
        owner: Owner,
        mut body: Body,
        bytes_max: usize,
    ) -> Result<Bytes, NotReceived> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| NotReceived::BrokenOff)?;
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + all.len() + data.len() > bytes_max {
                return Err(NotReceived::TooLarge);
            }
            self.grow(held, owner, data.len()).await?;
            // Most bodies have a single frame, which needs no copy.
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        Ok(if first.is_empty() { all.freeze() } else { first })
    }

    async fn grow(&self, held: &mut Received, owner: Owner, bytes: usize) -> Result<(), NotReceived> {
        loop {
            let released = self.budget(owner).released();
            if held.share.grow(bytes) {
                held.bytes += bytes;
                held.ticket.receiving().fetch_add(bytes, Ordering::Relaxed);
                return Ok(());
            }
            self.make_room(&held.ticket, owner)?;
            released.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn small(bytes: usize) -> Receiver {
        Receiver { strangers: Shares::new(bytes), known: Shares::new(bytes), gates: Mutex::default() }
    }

    fn ticket(gate: &Gate, host: u8) -> Arc<Ticket> {
        gate.admit(SocketAddr::from(([10, 0, 0, host], 1)))
    }

    #[tokio::test]
    async fn a_body_is_bounded_in_bytes_and_gives_them_back() {
        let (receiver, gate) = (small(56 * 1024), Gate::uncounted(8));
        let ticket = ticket(&gate, 1);
        let receive = |bytes: usize| receiver.receive(&ticket, ticket.owner(), Body::from(vec![1; bytes]), 8 * 1024);
        let (body, held) = receive(8 * 1024).await.unwrap();
        assert_eq!(body.len(), 8 * 1024);
        assert_eq!(ticket.receiving().load(Ordering::Relaxed), 16 * 1024);
        assert_eq!(receive(8 * 1024 + 1).await.map(drop), Err(NotReceived::TooLarge));
        let _second = receive(8 * 1024).await.unwrap();
        // Half of the budget is used, and there is no other connection of the same address to end.
        assert_eq!(receive(8 * 1024).await.map(drop), Err(NotReceived::Full));
        drop(held);
        assert_eq!(ticket.receiving().load(Ordering::Relaxed), 16 * 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_ends_in_time() {
        let (receiver, gate) = (small(64 * 1024), Gate::uncounted(8));
        let ticket = ticket(&gate, 1);
        let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let started = Instant::now();
        assert_eq!(receiver.receive(&ticket, ticket.owner(), never, 10).await.map(drop), Err(NotReceived::Incomplete));
        assert_eq!(started.elapsed(), BODY_TIME_MAX);
        assert_eq!(ticket.receiving().load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_new_request_displaces_the_connection_with_most_of_the_half_ones() {
        let (receiver, gate, other) = (small(72 * 1024), Gate::uncounted(8), Gate::uncounted(8));
        receiver.watch(&gate);
        receiver.watch(&other);
        // The last ticket is on another port.
        let tickets = [(&gate, 1), (&gate, 1), (&gate, 2), (&other, 1)].map(|(gate, host)| ticket(gate, host));
        let mut held = Vec::new();
        for ticket in [&tickets[0], &tickets[1], &tickets[1], &tickets[1], &tickets[2]] {
            held.push(receiver.begin(ticket, ticket.owner()).await.unwrap());
        }
        let another = receiver.begin(&tickets[3], tickets[3].owner());
        let mut another = std::pin::pin!(another);
        assert!(futures_util::poll!(another.as_mut()).is_pending());
        assert_eq!(tickets.each_ref().map(|ticket| ticket.is_cut()), [false, true, false, false]);
        // Its connection has ended, and with it its requests.
        held.retain(|held| !held.ticket.is_cut());
        another.await.unwrap();
    }
}
