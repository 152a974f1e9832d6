//! How connections are made and taken: over TCP, or TLS ([`tls`]), unless whoever puts the parts together says otherwise.
//!
//! The simulation says otherwise: it runs nodes and clients on a network of its own. Left out: what is spoken on a
//! connection, and timeouts and limits of calls, which are those of the endpoint and of the servers. Callers behind [`proxies`]
//! are named by them. Connections are admitted by a [`gate`], bounded in time in [`bounded`], and served by [`serve`], which
//! knows what is `under_way`; bodies are received in [`receive`], and budgets are divided by [`shares`].

pub mod answer;
pub mod bounded;
pub mod gate;
pub mod proxies;
pub mod receive;
pub mod serve;
pub mod shares;
pub mod tls;
mod under_way;

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tonic::transport::{Channel, Endpoint};

use tls::Connector;

/// Turns an endpoint into a channel that connects when it is first used, and again after each failure.
#[derive(Clone)]
pub struct Dialer {
    connect: Arc<dyn Fn(Endpoint) -> Channel + Send + Sync>,
    tls: Option<Connector>,
}

impl Dialer {
    /// A dialer that connects in its own way.
    pub fn new(connect: impl Fn(Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self { connect: Arc::new(connect), tls: None }
    }

    /// With what it secures connections, for those who make their own.
    pub fn tls(&self) -> Option<&Connector> {
        self.tls.as_ref()
    }

    /// A channel to `endpoint`.
    pub fn channel(&self, endpoint: Endpoint) -> Channel {
        (self.connect)(endpoint)
    }
}

/// Over TLS.
impl From<Connector> for Dialer {
    fn from(connector: Connector) -> Self {
        let tls = Some(connector.clone());
        Self { connect: Arc::new(move |endpoint| connector.channel(endpoint)), tls }
    }
}

/// Over TCP.
impl Default for Dialer {
    fn default() -> Self {
        Self::new(|endpoint| endpoint.connect_lazy())
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// The address of what has none.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Takes connections on a port.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who calls. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// It could not be accepted; the next one may be.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where the address of the caller will be, for connections that come through a proxy. Empty until the first byte of a request
    /// was read, and for others.
    fn behind(_: &Self::Stream) -> Option<Arc<OnceLock<SocketAddr>>> {
        None
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        // Without it answers may be late, but they come.
        let _ = stream.set_nodelay(true);
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

/// Its callers have no addresses: they count as one.
impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, _) = UnixListener::accept(self).await?;
        Ok((stream, NOWHERE))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(NOWHERE)
    }
}
