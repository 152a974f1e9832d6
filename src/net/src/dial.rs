//! Outgoing connections: made on a [`Network`], where the fastest of a name's addresses wins (`race`), secured with TLS
//! if a connector is configured, and used by a channel that connects again after each failure.
//!
//! Connecting is not bound to the call that needs the connection. A call waits for a connection for at most
//! [`ConnectTimeouts::per_call`], and then fails as not sent ([`never_connected`]). Connecting continues, and a later
//! call uses the connection. So a dead node costs a call little time, and a distant node is still reached.
//! [`RoundTrip`] holds the measured round-trip time for limits that depend on it.
//!
//! Does not cover: limits of calls, and the choice of the next target.

use std::{
    error::Error as _,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Mutex, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{
    ConnectError, Status,
    codegen::http::{Uri, uri::Scheme},
    transport::{Channel, Endpoint},
};

use super::{
    network::Tcp,
    plain::Plain,
    race,
    tls::{Connector, host_of},
};

pub use super::network::{ByteStream, Duplex, Network};

/// How long an unused connection is kept for the next call. Shorter than the time that a server waits for a first byte.
const UNUSED_MAX: Duration = Duration::from_secs(2);

/// The longest attempt that counts as a round trip. A longer one means a lost packet rather than a slow link.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(3);

/// Time limits for connecting.
#[derive(Debug, Clone, Copy)]
pub struct ConnectTimeouts {
    /// How long a call waits for a connection.
    pub per_call: Duration,
    /// How long an attempt goes on, for this call and later ones.
    pub total: Duration,
}

/// A channel that connects when it is first used and again after each failure, with the measured round-trip time.
#[derive(Debug, Clone)]
pub struct MeasuredChannel {
    /// The channel to send calls on.
    pub channel: Channel,
    /// The round-trip time to the peer.
    pub round_trip: Arc<RoundTrip>,
}

/// The round-trip time to a peer, as the newest connection measured it.
#[derive(Debug, Default)]
pub struct RoundTrip {
    round_trip_us: AtomicU64,
}

impl RoundTrip {
    /// The latest measurement; zero before the first connection. At most 3 s.
    pub fn latest(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    fn note(&self, took: Duration) {
        let micros = u64::try_from(took.min(ROUND_TRIP_MAX).as_micros()).unwrap_or(u64::MAX);
        self.round_trip_us.store(micros, Ordering::Relaxed);
    }
}

/// Makes connections.
#[derive(Clone)]
pub struct Dialer {
    network: Arc<dyn Network>,
    tls: Option<Connector>,
}

/// A dialer over TCP.
impl Default for Dialer {
    fn default() -> Self {
        Self::new(Tcp)
    }
}

/// A dialer over TLS.
impl From<Connector> for Dialer {
    fn from(connector: Connector) -> Self {
        Self { tls: Some(connector), ..Self::default() }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    /// A dialer without TLS on `network`.
    pub fn new(network: impl Network) -> Self {
        Self { network: Arc::new(network), tls: None }
    }

    /// Connects to `host:port`.
    ///
    /// # Errors
    /// `TimedOut` if there is no connection within `limit`. Other errors if the host refuses the connection or, with
    /// TLS, if the server presents a certificate that is not valid for this host, or does not have the shared secret.
    pub async fn open(&self, address: &str, limit: Duration) -> io::Result<ByteStream> {
        self.open_on(&RoundTrip::default(), address, limit).await
    }

    async fn open_on(&self, round_trip: &RoundTrip, address: &str, limit: Duration) -> io::Result<ByteStream> {
        let deadline = Instant::now() + limit;
        let won = race::connect(&*self.network, address, deadline).await?;
        round_trip.note(won.took);
        let Some(tls) = &self.tls else { return Ok(Box::new(Plain::new(won.stream))) };
        match timeout_at(deadline, tls.secure(won.stream, host_of(address))).await {
            Ok(stream) => Ok(Box::new(stream?)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{address} did not complete a TLS handshake in time"),
            )),
        }
    }

    /// A channel to `endpoint`, which holds the settings of the calls. Those of connecting are in `timeouts`.
    pub fn channel(&self, endpoint: Endpoint, timeouts: ConnectTimeouts) -> MeasuredChannel {
        let round_trip = Arc::<RoundTrip>::default();
        let address = address_of(endpoint.uri(), self.tls.is_some());
        let reconnect = Arc::new(Reconnect {
            dialer: self.clone(),
            address,
            timeouts,
            round_trip: Arc::clone(&round_trip),
            pending: Mutex::default(),
            attempts: AtomicU64::new(0),
        });
        let connect = tower::service_fn(move |_: Uri| {
            let reconnect = Arc::clone(&reconnect);
            async move { reconnect.connection().await.map(TokioIo::new) }
        });
        MeasuredChannel { channel: self.with_origin(endpoint).connect_with_connector_lazy(connect), round_trip }
    }

    /// Sets the scheme that the requests show. For tonic, each connection is one that needs no TLS of its own.
    fn with_origin(&self, endpoint: Endpoint) -> Endpoint {
        let mut parts = endpoint.uri().clone().into_parts();
        parts.scheme = Some(if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        match Uri::from_parts(parts) {
            Ok(origin) => endpoint.origin(origin),
            Err(_) => endpoint,
        }
    }
}

/// `host:port`, with the default port of the scheme if the URI has none.
fn address_of(uri: &Uri, tls: bool) -> String {
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// Makes the connections of one channel, one at a time.
struct Reconnect {
    dialer: Dialer,
    address: String,
    timeouts: ConnectTimeouts,
    round_trip: Arc<RoundTrip>,
    pending: Mutex<Option<Pending>>,
    /// The number of the next attempt.
    attempts: AtomicU64,
}

/// A connection attempt in flight, or a connection that was completed after its call had given up.
struct Pending {
    /// Distinguishes the attempts of a channel.
    number: u64,
    made: oneshot::Receiver<io::Result<ByteStream>>,
}

impl Reconnect {
    /// The next connection.
    async fn connection(self: Arc<Self>) -> io::Result<ByteStream> {
        let mut slot = self.pending.lock().await;
        if let Some(mut pending) = slot.take() {
            match pending.made.try_recv() {
                Ok(Ok(stream)) => return Ok(stream),
                // An attempt that failed before this call does not fail this call.
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
                Err(oneshot::error::TryRecvError::Empty) => *slot = Some(pending),
            }
        }
        let pending = slot.get_or_insert_with(|| self.begin());
        match timeout(self.timeouts.per_call, &mut pending.made).await {
            Ok(made) => {
                *slot = None;
                made.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not connected to {} within {} ms", self.address, self.timeouts.per_call.as_millis()),
            )),
        }
    }

    /// Starts an attempt, which continues until it completes or its receiver is dropped.
    fn begin(self: &Arc<Self>) -> Pending {
        let (mut sender, made) = oneshot::channel();
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        let (dialer, address, timeouts) = (self.dialer.clone(), self.address.clone(), self.timeouts);
        let (round_trip, reconnect) = (Arc::clone(&self.round_trip), Arc::downgrade(self));
        tokio::spawn(async move {
            let made = tokio::select! {
                biased;
                () = sender.closed() => return,
                made = dialer.open_on(&round_trip, &address, timeouts.total) => made,
            };
            // A waiting call has received the connection by now.
            let _ = sender.send(made);
            sleep(UNUSED_MAX).await;
            if let Some(reconnect) = reconnect.upgrade() {
                reconnect.close_unused(number);
            }
        });
        Pending { number, made }
    }

    /// Closes the connection of this attempt if no call has used it.
    fn close_unused(&self, number: u64) {
        // The lock is held by a call that waits, so the connection is not left over.
        let Ok(mut slot) = self.pending.try_lock() else { return };
        if slot.as_ref().is_some_and(|pending| pending.number == number) {
            *slot = None;
        }
    }
}

/// Whether a call failed for lack of a connection. Nothing of it has left this process then.
pub fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
