//! A port on which TLS is spoken, or not.
//!
//! A handshake is a matter of its connection: it begins with the first byte that is read or written, so that nobody who
//! is slow with it holds up those who come after. It has to be done within [`HANDSHAKE_PATIENCE`].

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
    time::{Sleep, sleep},
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

use super::{Protocol, Tls};
use crate::net::Listener;

/// Time for a handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// A listener, and how its connections are secured.
pub struct Port<L> {
    listener: L,
    tls: Option<(Arc<Tls>, Protocol)>,
}

impl<L> Port<L> {
    /// Takes the connections of `listener`, with TLS if there are certificates.
    pub fn new(listener: L, tls: Option<Arc<Tls>>, protocol: Protocol) -> Self {
        Self { listener, tls: tls.map(|tls| (tls, protocol)) }
    }
}

impl<L: Listener> Listener for Port<L> {
    type Stream = Stream<L::Stream>;

    async fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        let Some((tls, protocol)) = &self.tls else { return Ok((Stream::Plain(stream), from)) };
        let accept = TlsAcceptor::from(tls.server(*protocol)).accept(stream);
        Ok((Stream::greeting(accept, from), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection.
pub enum Stream<S> {
    /// Without TLS.
    Plain(S),
    /// The handshake is not over.
    Greeting(Box<Greeting<S>>),
    /// It is.
    Secure(Box<TlsStream<S>>),
    /// It failed; nothing more comes.
    Refused,
}

/// A handshake under way.
pub struct Greeting<S> {
    accept: Accept<S>,
    patience: Pin<Box<Sleep>>,
    from: SocketAddr,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    pub(super) fn greeting(accept: Accept<S>, from: SocketAddr) -> Self {
        Self::Greeting(Box::new(Greeting { accept, patience: Box::pin(sleep(HANDSHAKE_PATIENCE)), from }))
    }

    /// Goes on with the handshake. Ready when it is over, or not needed.
    fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Greeting(greeting) = self else { return Poll::Ready(Ok(())) };
        let done = match Pin::new(&mut greeting.accept).poll(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => {
                ready!(greeting.patience.as_mut().poll(cx));
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        match done {
            Ok(stream) => {
                *self = Self::Secure(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                tracing::warn!(from = %greeting.from, %error, "A TLS handshake failed");
                *self = Self::Refused;
                Poll::Ready(Err(error))
            }
        }
    }
}

/// After a failed handshake.
fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            _ => true,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            // There is nothing to say goodbye to.
            Self::Greeting(_) | Self::Refused => Poll::Ready(Ok(())),
        }
    }
}
