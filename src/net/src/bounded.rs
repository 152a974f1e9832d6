//! Connections that are bounded in number by a [`Gate`], and in the time that they may go without progress.
//!
//! A caller could hold a connection forever by sending nothing, sending byte by byte, or reading no answers. Each
//! connection therefore has an [`IdlePolicy`] to meet.
//!
//! Does not cover: the protocol on the connection, and the requests.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    Listener,
    gate::{Gate, Ticket},
};

/// Pause after a failed accept. The usual cause is a lack of file descriptors, which take time to become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The progress that a connection has to make. A connection that fails to make it ends with `TimedOut`.
#[derive(Debug, Clone, Copy)]
pub enum IdlePolicy {
    /// A number of bytes must arrive in time. There is no limit after that.
    FirstBytes {
        /// The number of bytes.
        bytes: usize,
        /// Time limit, counted from the accept.
        within: Duration,
    },
    /// This side must keep writing. This needs no knowledge of the protocol. In return, an answer must begin within the
    /// limit, and an idle connection ends after it. The first byte that arrives after a write begins a request, which
    /// gets the full time.
    Writes {
        /// Time limit, counted from the accept, from the last write, or from the first byte that arrives after it.
        within: Duration,
    },
}

/// A listener whose connections pass through a gate.
pub struct Bounded<L> {
    listener: L,
    gate: Gate,
    idle_policy: IdlePolicy,
}

impl<L: Listener> Bounded<L> {
    /// The connections of `listener` that `gate` admits, each of which has to meet `idle_policy`.
    pub fn new(listener: L, gate: Gate, idle_policy: IdlePolicy) -> Self {
        Self { listener, gate, idle_policy }
    }

    /// The gate that admits the connections.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The next connection. Cancel-safe: no connection is lost.
    pub async fn accept(&mut self) -> Connection<L::Stream> {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let behind = L::behind(&stream);
                    return Connection::new(stream, self.gate.admit(from), behind, self.idle_policy);
                }
                Err(error) => {
                    let port = self.listener.local_addr().map(|address| address.port()).unwrap_or_default();
                    tracing::warn!(%error, port, "A connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The local address.
    ///
    /// # Errors
    /// The operating system cannot determine it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that keeps its place at the gate until it is dropped. It fails when the gate ends it, or when it does
/// not meet its [`IdlePolicy`].
pub struct Connection<S> {
    stream: S,
    ticket: Arc<Ticket>,
    /// Where a proxy will name the caller; `None` once the caller is known.
    behind: Option<Arc<OnceLock<SocketAddr>>>,
    /// The policy that still applies.
    idle_policy: IdlePolicy,
    /// Whether the last operation was a write, with no byte received since.
    is_idle: bool,
    /// `None` once no policy applies.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.ticket.leave();
    }
}

impl<S> Connection<S> {
    fn new(stream: S, ticket: Arc<Ticket>, behind: Option<Arc<OnceLock<SocketAddr>>>, idle_policy: IdlePolicy) -> Self {
        let (IdlePolicy::FirstBytes { within, .. } | IdlePolicy::Writes { within }) = idle_policy;
        Self { stream, ticket, behind, idle_policy, is_idle: true, deadline: Some(Box::pin(sleep(within))) }
    }

    /// The inner connection.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Its place at the gate.
    pub fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    /// Fails once the gate has ended the connection.
    fn check(&self) -> io::Result<()> {
        if self.ticket.is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Counts the connection to the caller that a proxy has named.
    fn learn_caller(&mut self) {
        if let Some(caller) = self.behind.as_ref().and_then(|behind| behind.get()) {
            self.ticket.name_caller(*caller);
            self.behind = None;
        }
    }

    fn has_read(&mut self, count: usize) {
        match &mut self.idle_policy {
            IdlePolicy::FirstBytes { bytes, .. } => {
                *bytes = bytes.saturating_sub(count);
                if *bytes == 0 {
                    self.deadline = None;
                }
            }
            IdlePolicy::Writes { .. } if count > 0 && self.is_idle => {
                self.is_idle = false;
                self.begin_anew();
            }
            IdlePolicy::Writes { .. } => {}
        }
    }

    fn has_written(&mut self) {
        self.is_idle = true;
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        if let (IdlePolicy::Writes { within }, Some(deadline)) = (self.idle_policy, &mut self.deadline) {
            deadline.as_mut().reset(Instant::now() + within);
        }
    }

    /// Returns `Pending` for an operation that may keep waiting, or an error when the gate or the deadline ends it.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.ticket.watch(cx.waker());
        // Checked after the registration. Otherwise a drop in between would wake no task.
        self.check()?;
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
            self.ticket.flushed(false);
        }
        self.done(cx, result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.learn_caller();
        self.has_read(buffer.filled().len() - before);
        self.done(cx, result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // TLS buffers what is written, so with TLS the flush and the shutdown wait for the peer.

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.ticket.flushed(true);
        }
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
    /// Time limit for events that must happen.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn bounded(connections: usize, idle_policy: IdlePolicy) -> (Bounded<TcpListener>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded::new(listener, Gate::uncounted(connections), idle_policy), address)
    }

    async fn fails<T: std::fmt::Debug>(operation: impl Future<Output = io::Result<T>>) -> io::ErrorKind {
        timeout(PATIENCE, operation).await.expect("it is cut off").unwrap_err().kind()
    }

    #[tokio::test]
    async fn who_does_not_say_enough_in_time_is_cut_off() {
        let (mut listener, address) = bounded(8, IdlePolicy::FirstBytes { bytes: 24, within: SOON }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[1; 23]).await.unwrap();
        let mut connection = listener.accept().await;
        connection.read_exact(&mut [0; 23]).await.unwrap();
        assert_eq!(fails(connection.read(&mut [0; 1])).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_said_enough_may_be_silent() {
        let (mut listener, address) = bounded(8, IdlePolicy::FirstBytes { bytes: 24, within: LONG }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        assert_eq!(connection.ticket().from(), client.local_addr().unwrap());
        client.write_all(&[1; 24]).await.unwrap();
        connection.read_exact(&mut [0; 24]).await.unwrap();
        assert!(connection.deadline.is_none(), "nothing is asked any more");
    }

    #[tokio::test]
    async fn who_only_asks_is_cut_off() {
        let (mut listener, address) = bounded(8, IdlePolicy::Writes { within: SOON }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        client.write_all(&[1; 1000]).await.unwrap();
        connection.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(fails(connection.read(&mut [0; 1])).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_reads_nothing_is_cut_off() {
        let (mut listener, address) = bounded(8, IdlePolicy::Writes { within: SOON }).await;
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
        let ticket = Gate::uncounted(1).admit(SocketAddr::from(([127, 0, 0, 1], 1)));
        let buffered = tokio::io::BufWriter::new(ours);
        let mut connection = Connection::new(buffered, ticket, None, IdlePolicy::Writes { within: SOON });
        connection.write_all(&[1; 100]).await.unwrap();
        assert_eq!(fails(connection.flush()).await, io::ErrorKind::TimedOut);
        assert_eq!(fails(connection.shutdown()).await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn each_write_starts_the_time_anew() {
        let (mut listener, address) = bounded(8, IdlePolicy::Writes { within: LONG }).await;
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.accept().await;
        let first = connection.deadline.as_ref().unwrap().deadline();
        connection.write_all(b"x").await.unwrap();
        assert!(connection.deadline.as_ref().unwrap().deadline() > first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_all_of_the_time_however_long_the_connection_was_idle() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let ticket = Gate::uncounted(1).admit(SocketAddr::from(([127, 0, 0, 1], 1)));
        let within = Duration::from_secs(30);
        let mut connection = Connection::new(ours, ticket, None, IdlePolicy::Writes { within });
        connection.write_all(b"an answer").await.unwrap();
        let written = Instant::now();
        tokio::time::advance(within - Duration::from_secs(1)).await;
        theirs.write_all(b"?").await.unwrap();
        connection.read_exact(&mut [0; 1]).await.unwrap();
        let end = connection.deadline.as_ref().unwrap().deadline();
        assert_eq!(end, Instant::now() + within);
        assert!(end > written + within);
        // Later bytes belong to the same request.
        tokio::time::advance(Duration::from_secs(20)).await;
        theirs.write_all(b"?").await.unwrap();
        connection.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(connection.deadline.as_ref().unwrap().deadline(), end);
    }

    #[tokio::test]
    async fn a_connection_beyond_the_bound_ends_the_oldest() {
        let (mut listener, address) = bounded(2, IdlePolicy::Writes { within: LONG }).await;
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
            connections.push(listener.accept().await);
        }
        assert_eq!(fails(connections[0].read(&mut [0; 1])).await, io::ErrorKind::ConnectionAborted);
        clients[1].write_all(b"x").await.unwrap();
        connections[1].read_exact(&mut [0; 1]).await.unwrap();
        connections.clear();
        assert_eq!(listener.gate().counts(), (0, 0));
    }
}
