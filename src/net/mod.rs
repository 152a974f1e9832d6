//! How connections are made ([`dial`]) and taken: over TCP, or TLS ([`tls`]), unless whoever puts the parts together says otherwise.
//!
//! The simulation says otherwise: it runs nodes and clients on a network of its own. Left out: what is spoken on a
//! connection, and timeouts and limits of calls, which are those of the endpoint and of the servers. Callers behind [`proxies`]
//! are named by them. Connections are admitted by a [`gate`], bounded in time in [`bounded`], and served by [`serve`], which
//! knows what is `under_way`; bodies are received in [`receive`], and budgets are divided by [`shares`].

pub mod answer;
pub mod bounded;
pub mod dial;
#[cfg(test)]
pub(crate) mod far;
pub mod gate;
pub mod proxies;
mod race;
pub mod receive;
pub mod serve;
pub mod shares;
pub mod tls;
mod under_way;

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

pub use dial::Dialer;

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
