//! Connections that are bounded: in number, and in how long they may get nowhere.
//!
//! When the bound is reached, further connections wait in the kernel's queue until one ends. Somebody who opens connections and
//! says nothing, drips in their words byte by byte, or reads no answers would fill the places, so each connection has a
//! [`Demand`] to meet. Left out: what is spoken on it, and what it may ask for.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use super::Listener;

/// Pause after a failed accept: it fails for lack of file descriptors, and those need time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What has to be done on a connection. One that does not meet it fails with `TimedOut`.
#[derive(Debug, Clone, Copy)]
pub enum Demand {
    /// So many bytes must come in time; after that, nothing more is asked.
    FirstBytes {
        /// How many.
        bytes: usize,
        /// After it was accepted.
        within: Duration,
    },
    /// This side must get something written, again and again. That needs no look into the protocol; the price is that an answer
    /// must begin within that time, and that an idle connection ends after it.
    Writes {
        /// After it was accepted, or the last write.
        within: Duration,
    },
}

/// A listener that has at most a fixed number of connections at a time.
pub struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
    demand: Demand,
}

impl<L: Listener> Bounded<L> {
    /// At most `connections` of `listener`, each of which has to meet `demand`.
    pub fn new(listener: L, connections: usize, demand: Demand) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections)), demand }
    }

    /// The next connection, once there is a place for it. May be dropped and called again without losing one.
    pub async fn accept(&mut self) -> Connection<L::Stream> {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return Connection::new(stream, from, place, self.demand),
                Err(error) => {
                    let port = self.listener.local_addr().map(|address| address.port()).unwrap_or_default();
                    tracing::warn!(%error, port, "A connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that keeps its place until it is dropped, and fails when it does not meet its [`Demand`].
pub struct Connection<S> {
    stream: S,
    from: SocketAddr,
    /// What is still to be done.
    demand: Demand,
    /// `None` once that is nothing.
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn new(stream: S, from: SocketAddr, place: OwnedSemaphorePermit, demand: Demand) -> Self {
        let (Demand::FirstBytes { within, .. } | Demand::Writes { within }) = demand;
        Self { stream, from, demand, deadline: Some(Box::pin(sleep(within))), _place: place }
    }

    /// Who calls.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    fn has_read(&mut self, count: usize) {
        if let Demand::FirstBytes { bytes, .. } = &mut self.demand {
            *bytes = bytes.saturating_sub(count);
            if *bytes == 0 {
                self.deadline = None;
            }
        }
    }

    fn has_written(&mut self) {
        if let (Demand::Writes { within }, Some(deadline)) = (self.demand, &mut self.deadline) {
            deadline.as_mut().reset(Instant::now() + within);
        }
    }

    /// For an operation that has to wait: whether it may wait on.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn done<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() { self.wait(cx) } else { result }
    }

    fn written(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.has_written();
        }
        self.done(cx, result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.has_read(buffer.filled().len() - before);
        self.done(cx, result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // TLS takes what is written into a buffer: there it is the flush, and the farewell, that wait for the other side.

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.done(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.done(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3600);
    /// For what must come.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn bounded(connections: usize, demand: Demand) -> (Bounded<TcpListener>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded::new(listener, connections, demand), address)
    }

    async fn fails<T: std::fmt::Debug>(operation: impl Future<Output = io::Result<T>>) -> io::ErrorKind {
        timeout(PATIENCE, operation).await.expect("it is cut off").unwrap_err().kind()
    }

    #[tokio::test]
    async fn who_does_not_say_enough_in_time_is_cut_off() {
        let (mut listener, address) = bounded(8, Demand::FirstBytes { bytes: 24, within: SOON }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[1; 23]).await.unwrap();
        let mut connection = listener.accept().await;
        connection.read_exact(&mut [0; 23]).await.unwrap();
        assert_eq!(fails(connection.read(&mut [0; 1])).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_said_enough_may_be_silent() {
        let (mut listener, address) = bounded(8, Demand::FirstBytes { bytes: 24, within: LONG }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        assert_eq!(connection.from(), client.local_addr().unwrap());
        client.write_all(&[1; 24]).await.unwrap();
        connection.read_exact(&mut [0; 24]).await.unwrap();
        assert!(connection.deadline.is_none(), "nothing is asked any more");
    }

    #[tokio::test]
    async fn who_only_asks_is_cut_off() {
        let (mut listener, address) = bounded(8, Demand::Writes { within: SOON }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        client.write_all(&[1; 1000]).await.unwrap();
        connection.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(fails(connection.read(&mut [0; 1])).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_reads_nothing_is_cut_off() {
        let (mut listener, address) = bounded(8, Demand::Writes { within: SOON }).await;
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        let everything = async {
            loop {
                connection.write_all(&[1; 1 << 16]).await?
            }
        };
        assert_eq!(fails::<()>(everything).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_reads_nothing_of_what_tls_keeps_for_them_is_cut_off() {
        let (ours, _theirs) = tokio::io::duplex(1);
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let buffered = tokio::io::BufWriter::new(ours);
        let mut connection = Connection::new(buffered, from, place, Demand::Writes { within: SOON });
        connection.write_all(&[1; 100]).await.unwrap();
        assert_eq!(fails(connection.flush()).await, io::ErrorKind::TimedOut);
        assert_eq!(fails(connection.shutdown()).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn each_write_starts_the_time_anew() {
        let (mut listener, address) = bounded(8, Demand::Writes { within: LONG }).await;
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        let first = connection.deadline.as_ref().unwrap().deadline();
        connection.write_all(b"x").await.unwrap();
        assert!(connection.deadline.as_ref().unwrap().deadline() > first);
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let (mut listener, address) = bounded(2, Demand::Writes { within: LONG }).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = listener.accept().await;
        let _second = listener.accept().await;
        assert!(futures_util::poll!(std::pin::pin!(listener.accept())).is_pending());
        drop(first);
        listener.accept().await;
    }
}
