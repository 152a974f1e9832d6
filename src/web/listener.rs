//! A listener whose connections are bounded in number and in idleness.
//!
//! A connection on which this side got nothing written for [`PATIENCE`] is cut off. That covers the peer that opens
//! a connection and is silent, one that sends its header byte by byte, and one that does not read its answer, without
//! looking into the protocol. The price: an answer must begin within that time, and an idle keep-alive connection ends
//! after it.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use crate::net;

/// How long a connection may go without anything written by this side.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a failed accept: it fails for lack of file descriptors, and those need time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts at most a fixed number of connections at a time; more wait in the kernel's queue.
pub(super) struct BoundedListener<L> {
    inner: L,
    free: Arc<Semaphore>,
    patience: Duration,
}

impl<L> BoundedListener<L> {
    pub(super) fn new(inner: L, connections: usize, patience: Duration) -> Self {
        Self { inner, free: Arc::new(Semaphore::new(connections)), patience }
    }
}

impl<L: net::Listener> Listener for BoundedListener<L> {
    type Io = Connection<L::Stream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<L::Stream>, SocketAddr) {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.inner.accept().await {
                Ok((stream, address)) => return (Connection::new(stream, permit, self.patience), address),
                Err(error) => {
                    tracing::warn!(%error, "a web connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection that fails with `TimedOut` when this side got nothing written for a while.
pub(super) struct Connection<S> {
    stream: S,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn new(stream: S, permit: OwnedSemaphorePermit, patience: Duration) -> Self {
        Self { stream, patience, deadline: Box::pin(sleep(patience)), _permit: permit }
    }

    /// For an operation that has to wait: whether it may wait on.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => self.wait(cx),
            Poll::Ready(done) => {
                self.deadline.as_mut().reset(Instant::now() + self.patience);
                Poll::Ready(done)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, result)
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
