//! Outgoing connections: made on a [`Network`], where the fastest of a name's addresses wins (`race`), secured with TLS
//! if a connector is configured, and used by a channel that connects again after each failure.
//!
//! Connecting is not bound to the call that needs the connection. A call waits for a connection for at most
//! [`Patience::call`], and then fails as not sent ([`never_connected`]). Connecting continues, and a later call uses
//! the connection. So a dead node costs a call little time, and a distant node is still reached. [`Way`] holds the
//! measured round-trip time for limits that depend on it.
//!
//! Does not cover: limits of calls, and the choice of the next target.

use std::{
    error::Error as _,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::{Mutex, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{
    ConnectError, Status,
    codegen::http::{Uri, uri::Scheme},
    transport::{Channel, Endpoint},
};

use super::{
    plain::Plain,
    race,
    tls::{Connector, host_of},
};

/// How long an unused connection is kept for the next call. Shorter than the time that a server waits for a first byte.
const KEPT: Duration = Duration::from_secs(2);

/// The longest attempt that counts as a round trip. A longer one means a lost packet rather than a slow link.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(3);

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A connection.
pub type ByteStream = Box<dyn Duplex>;

/// A network to connect on.
pub trait Network: Send + Sync + 'static {
    /// The addresses of `host:port`, in order of preference.
    ///
    /// # Errors
    /// The future fails if the name has no address or cannot be resolved.
    fn resolve(&self, address: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

    /// Connects to an address.
    ///
    /// # Errors
    /// The future fails if the address does not accept connections.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<ByteStream>>;
}

/// The system's network.
struct Tcp;

impl Network for Tcp {
    fn resolve(&self, address: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let address = address.to_owned();
        Box::pin(async move { Ok(lookup_host(address).await?.collect()) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<ByteStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // Best effort: without it, requests are delayed but not lost.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as ByteStream)
        })
    }
}

/// Time limits for connecting.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a call waits for a connection.
    pub call: Duration,
    /// How long an attempt goes on, for this call and later ones.
    pub all: Duration,
}

/// A channel that connects when it is first used and again after each failure, with the measured distance.
#[derive(Debug, Clone)]
pub struct Line {
    /// The channel to send calls on.
    pub channel: Channel,
    /// The distance of the peer.
    pub way: Arc<Way>,
}

/// The distance of a peer, as the newest connection measured it.
#[derive(Debug, Default)]
pub struct Way {
    round_trip_us: AtomicU64,
}

impl Way {
    /// The round-trip time that the newest connection measured; zero before the first. At most 3 s.
    pub fn round_trip(&self) -> Duration {
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
        self.open_on(&Way::default(), address, limit).await
    }

    async fn open_on(&self, way: &Way, address: &str, limit: Duration) -> io::Result<ByteStream> {
        let deadline = Instant::now() + limit;
        let won = race::connect(&*self.network, address, deadline).await?;
        way.note(won.took);
        let Some(tls) = &self.tls else { return Ok(Box::new(Plain::new(won.stream))) };
        match timeout_at(deadline, tls.secure(won.stream, host_of(address))).await {
            Ok(stream) => Ok(Box::new(stream?)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{address} did not complete a TLS handshake in time"),
            )),
        }
    }

    /// A channel to `endpoint`, which holds the settings of the calls. Those of connecting are in `patience`.
    pub fn line(&self, endpoint: Endpoint, patience: Patience) -> Line {
        let way = Arc::<Way>::default();
        let address = address_of(endpoint.uri(), self.tls.is_some());
        let under_way = Mutex::default();
        let reconnect =
            Arc::new(Reconnect { dialer: self.clone(), address, patience, way: Arc::clone(&way), under_way });
        let connect = tower::service_fn(move |_: Uri| {
            let reconnect = Arc::clone(&reconnect);
            async move { reconnect.connection().await.map(TokioIo::new) }
        });
        Line { channel: self.with_origin(endpoint).connect_with_connector_lazy(connect), way }
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
    patience: Patience,
    way: Arc<Way>,
    under_way: Mutex<Option<Making>>,
}

/// A connection attempt in flight, or a connection that was completed after its call had given up.
type Making = oneshot::Receiver<io::Result<ByteStream>>;

impl Reconnect {
    /// The next connection.
    async fn connection(self: Arc<Self>) -> io::Result<ByteStream> {
        let mut under_way = self.under_way.lock().await;
        if let Some(mut making) = under_way.take() {
            match making.try_recv() {
                Ok(Ok(stream)) => return Ok(stream),
                // An attempt that failed before this call does not fail this call.
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
                Err(oneshot::error::TryRecvError::Empty) => *under_way = Some(making),
            }
        }
        let making = under_way.get_or_insert_with(|| self.begin());
        match timeout(self.patience.call, making).await {
            Ok(made) => {
                *under_way = None;
                made.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not connected to {} within {} ms", self.address, self.patience.call.as_millis()),
            )),
        }
    }

    /// Starts an attempt, which continues until it completes or its receiver is dropped.
    fn begin(self: &Arc<Self>) -> Making {
        let (mut sender, receiver) = oneshot::channel();
        let (dialer, address, patience) = (self.dialer.clone(), self.address.clone(), self.patience);
        let (way, reconnect) = (Arc::clone(&self.way), Arc::downgrade(self));
        tokio::spawn(async move {
            let made = tokio::select! {
                biased;
                () = sender.closed() => return,
                made = dialer.open_on(&way, &address, patience.all) => made,
            };
            // A waiting call has received the connection by now.
            let _ = sender.send(made);
            sleep(KEPT).await;
            if let Some(reconnect) = reconnect.upgrade() {
                reconnect.drop_what_is_left();
            }
        });
        receiver
    }

    /// Closes a connection that no call has used.
    fn drop_what_is_left(&self) {
        // The lock is held by a call that waits, so the connection is not left over.
        let Ok(mut under_way) = self.under_way.try_lock() else { return };
        if let Some(mut making) = under_way.take()
            && matches!(making.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            *under_way = Some(making);
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
#[path = "dial_tests.rs"]
mod tests;
