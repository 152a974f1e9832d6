//! Accepts gRPC connections: bounded in number, and only kept if the other side speaks HTTP/2.
//!
//! The HTTP/2 keep-alive watches a connection from its preface on; what comes before is watched here: the preface has
//! to be there within [`PREFACE_PATIENCE`], however slowly it drips in. When the bound is reached, further connections
//! wait in the kernel's queue until one ends.
//!
//! Left out: what an open connection may ask for (limits of the servers), and HTTP/1 (`web`).

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::net::Listener;

/// Time for the first words of a connection.
const PREFACE_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the preface that every HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;
/// Pause after a failed accept: it fails for lack of file descriptors, and those need time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections of gRPC clients, and as many of browsers, if there are file descriptors for them.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections of peers: a handful for each node, and those that are about to end.
pub(super) const PEER_CONNECTIONS_MAX: usize = 256;
/// Connections of probes and of Prometheus.
pub(super) const PROBE_CONNECTIONS_MAX: usize = 256;
/// File descriptors for everything but clients and browsers: databases, peers, metrics.
const OTHER_FILES: usize = 1024;

/// How many connections gRPC clients may have, and browsers: the same. Raises the process's limit on open files as far as it may:
/// the usual soft limit of 1024 is for programs that use `select`.
pub(super) fn connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let mut files = limit.current;
    if limit.current != limit.maximum
        && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok()
    {
        files = limit.maximum;
    }
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let each = files.saturating_sub(OTHER_FILES).max(files / 2) / 2;
    if each < CONNECTIONS_MAX {
        tracing::warn!(
            "Only {each} connections of clients and as many of browsers, because the process may open only {files} files"
        );
    }
    each.min(CONNECTIONS_MAX)
}

/// The connections that `listener` accepts, at most `connections` at a time.
pub(super) fn incoming<L: Listener>(
    listener: L,
    connections: usize,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send + 'static {
    accept(listener, connections, PREFACE_PATIENCE)
}

fn accept<L: Listener>(
    listener: L,
    connections: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send + 'static {
    let places = Arc::new(Semaphore::new(connections));
    stream::unfold((listener, places), move |(mut listener, places)| async move {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok()?;
        let (stream, from) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(%error, "A connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let preface = Preface { missing: PREFACE_BYTES, deadline: Box::pin(sleep(patience)) };
        Some((Ok(Connection { stream, from, preface: Some(preface), _place: place }), (listener, places)))
    })
}

/// A connection that fails with `TimedOut` when its first bytes do not come in time.
pub(super) struct Connection<S> {
    stream: S,
    from: SocketAddr,
    /// `None` once it is there.
    preface: Option<Preface>,
    _place: OwnedSemaphorePermit,
}

struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: Some(self.from) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some(preface) = &mut self.preface else { return result };
        preface.missing = preface.missing.saturating_sub(buffer.filled().len() - before);
        if preface.missing == 0 {
            self.preface = None;
        } else if result.is_pending() {
            ready!(preface.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const LONG: Duration = Duration::from_secs(3600);

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn who_says_nothing_is_cut_off() {
        let (listener, address) = listen().await;
        let mut accepted = pin!(accept(listener, 8, Duration::from_millis(20)));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&PREFACE[..23]).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let mut bytes = [0; 23];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(connection.read(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_introduced_itself_may_be_silent() {
        let (listener, address) = listen().await;
        let mut accepted = pin!(accept(listener, 8, LONG));
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        client.write_all(PREFACE).await.unwrap();
        let mut bytes = [0; PREFACE_BYTES];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, PREFACE);
        assert!(connection.preface.is_none(), "nothing is watched any more");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let (listener, address) = listen().await;
        let mut accepted = pin!(accept(listener, 2, LONG));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = accepted.next().await.unwrap().unwrap();
        let _second = accepted.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(accepted.next()).is_pending());
        drop(first);
        accepted.next().await.unwrap().unwrap();
    }
}
