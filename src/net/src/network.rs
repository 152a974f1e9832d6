//! The network that connections are made on: the system's, or one that a simulation provides.

use std::{io, net::SocketAddr};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};

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
pub(crate) struct Tcp;

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
