//! Outgoing connections ([`dial`]) and incoming connections, over TCP or TLS ([`tls`]) unless the composition root
//! chooses another network.
//!
//! The simulation chooses its own network for nodes and clients. A [`gate`] admits connections, [`bounded`] limits them
//! in time, and [`serve`] serves them and uses `in_flight` to find the requests in flight. [`receive`] receives the
//! bodies, and [`shares`] divides budgets. Behind trusted [`proxies`], the proxy names the caller.
//!
//! Without the feature `server` there is only what a client needs: [`dial`], and [`tls::Connector`].
//!
//! Does not cover: the protocols on a connection, nor the timeouts and limits of calls, which belong to the endpoints
//! and the servers.

#[cfg(feature = "server")]
pub mod answer;
#[cfg(feature = "server")]
pub mod bounded;
pub mod dial;
#[cfg(any(test, feature = "test-util"))]
pub mod far;
#[cfg(feature = "server")]
pub mod gate;
#[cfg(feature = "server")]
mod in_flight;
mod network;
mod plain;
#[cfg(feature = "server")]
pub mod proxies;
mod race;
#[cfg(feature = "server")]
pub mod receive;
#[cfg(feature = "server")]
pub mod serve;
#[cfg(feature = "server")]
pub mod shares;
pub mod tls;

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

/// A placeholder for callers that have no address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Accepts connections on a port.
pub trait Listener: Send + 'static {
    /// An accepted connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection and the address of its peer. Cancel-safe: no connection is lost.
    ///
    /// # Errors
    /// The connection could not be accepted. The next one may be.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The cell that will hold the address of the caller, for connections that may come through a proxy. It is empty
    /// until the first byte of a request was read, and stays empty for connections without a proxy.
    fn behind(_: &Self::Stream) -> Option<Arc<OnceLock<SocketAddr>>> {
        None
    }

    /// The local address.
    ///
    /// # Errors
    /// The operating system cannot determine it.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, mut from) = TcpListener::accept(self).await?;
        // A dual-stack listener reports IPv4 callers as IPv4-mapped IPv6 addresses.
        from.set_ip(from.ip().to_canonical());
        // Best effort: without it, answers are delayed but not lost.
        let _ = stream.set_nodelay(true);
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

/// Callers of a Unix socket have no addresses, so all count as one.
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
