//! A port with or without TLS.
//!
//! A handshake runs as part of its connection, from the first byte that is read or written. So a slow caller does not
//! delay the connections after it. The handshake must complete within [`HANDSHAKE_MAX`].

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
    time::{Sleep, sleep},
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

use rustls::{client::verify_server_name, pki_types::CertificateDer, server::ParsedCertificate};

use super::{Mortal, Protocol, Tls, certificates::Source, files, lifetime::Lifetime, server_name};
use crate::Listener;

/// Time limit for a handshake: two round trips of 1.5 s, on the slowest links that are supported, and the signature.
const HANDSHAKE_MAX: Duration = Duration::from_secs(4);

/// A listener and the TLS settings of its connections.
pub struct Port<L> {
    listener: L,
    tls: Option<(Arc<Tls>, Protocol)>,
}

impl<L> Port<L> {
    /// Accepts the connections of `listener`, with TLS if there are certificates.
    pub fn new(listener: L, tls: Option<Arc<Tls>>, protocol: Protocol) -> Self {
        Self { listener, tls: tls.map(|tls| (tls, protocol)) }
    }
}

impl<L: Listener> Listener for Port<L> {
    type Stream = Stream<L::Stream>;

    async fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        let Some((tls, protocol)) = &self.tls else { return Ok((Stream::Plain(stream), from)) };
        let lifetime = tls.lifetime();
        let accept = TlsAcceptor::from(tls.server(*protocol)).accept(stream);
        let kind = match &tls.source {
            _ if lifetime.is_none() => Kind::Anonymous,
            Source::Secrets(_) => Kind::Secret,
            Source::Files(_) => Kind::Certificate,
        };
        Ok((Stream::greeting(accept, from, lifetime, Peer { kind, chain: Arc::default() }), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn behind(stream: &Self::Stream) -> Option<Arc<OnceLock<SocketAddr>>> {
        match stream {
            Stream::Plain(stream) => L::behind(stream),
            Stream::Greeting(greeting) => greeting.accept.get_ref().and_then(L::behind),
            Stream::Secure(..) | Stream::Refused => None,
        }
    }
}

/// What the caller of a connection has proven in the handshake. Known once the first byte of a request was read.
#[derive(Clone)]
pub struct Peer {
    kind: Kind,
    chain: Arc<OnceLock<Vec<CertificateDer<'static>>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The caller has proven nothing.
    Anonymous,
    /// The caller has the shared secret.
    Secret,
    /// The caller has the key of a certificate of the authority.
    Certificate,
}

impl Peer {
    /// A caller without TLS.
    pub fn anonymous() -> Self {
        Self { kind: Kind::Anonymous, chain: Arc::default() }
    }

    /// Whether the caller may speak only for the hosts of its certificate.
    pub fn is_restricted(&self) -> bool {
        self.kind == Kind::Certificate
    }

    /// Whether the caller may speak for one of `hosts`. Only a certificate restricts that. All holders of a shared
    /// secret are equal, and a caller with neither has no known identity.
    pub fn may_speak_for<'a>(&self, hosts: impl IntoIterator<Item = &'a str>) -> bool {
        if !self.is_restricted() {
            return true;
        }
        let Some(certificate) = self.chain.get().and_then(|chain| chain.first()) else { return false };
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
        hosts
            .into_iter()
            .filter_map(|host| server_name(host).ok())
            .any(|name| verify_server_name(&parsed, &name).is_ok())
    }
}

/// A connection.
pub enum Stream<S> {
    /// Without TLS.
    Plain(S),
    /// The handshake is in progress.
    Greeting(Box<Greeting<S>>),
    /// The handshake is complete.
    Secure(Box<Mortal<TlsStream<S>>>, Peer),
    /// The handshake failed; nothing more is received.
    Refused,
}

/// A handshake in progress.
pub struct Greeting<S> {
    accept: Accept<S>,
    timeout: Pin<Box<Sleep>>,
    from: SocketAddr,
    lifetime: Option<Lifetime>,
    peer: Peer,
}

impl<S> Stream<S> {
    /// What the caller proves. Complete after the handshake.
    pub fn peer(&self) -> Peer {
        match self {
            Self::Greeting(greeting) => greeting.peer.clone(),
            Self::Secure(_, peer) => peer.clone(),
            Self::Plain(_) | Self::Refused => Peer::anonymous(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    pub(super) fn greeting(accept: Accept<S>, from: SocketAddr, lifetime: Option<Lifetime>, peer: Peer) -> Self {
        let timeout = Box::pin(sleep(HANDSHAKE_MAX));
        Self::Greeting(Box::new(Greeting { accept, timeout, from, lifetime, peer }))
    }

    /// Continues the handshake. Ready when it is complete, or when there is none.
    fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Greeting(greeting) = self else { return Poll::Ready(Ok(())) };
        let done = match Pin::new(&mut greeting.accept).poll(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => {
                ready!(greeting.timeout.as_mut().poll(cx));
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        match done {
            Ok(stream) => {
                *self = Self::secure(stream, greeting.lifetime.take(), greeting.peer.clone());
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                tracing::warn!(from = %greeting.from, %error, "A TLS handshake failed");
                *self = Self::Refused;
                Poll::Ready(Err(error))
            }
        }
    }

    /// The stream after the handshake.
    fn secure(stream: TlsStream<S>, lifetime: Option<Lifetime>, peer: Peer) -> Self {
        let Some((replaced, own_end)) = lifetime else { return Self::Secure(Box::new(Mortal::immortal(stream)), peer) };
        let mut their_end = None;
        if let (Kind::Certificate, Some(chain)) = (peer.kind, stream.get_ref().1.peer_certificates()) {
            their_end = files::first_end(chain);
            // The cell is empty, as there is only one handshake.
            let _ = peer.chain.set(chain.iter().map(|certificate| certificate.clone().into_owned()).collect());
        }
        let end = own_end.into_iter().chain(their_end).min();
        Self::Secure(Box::new(Mortal::until(stream, replaced, end)), peer)
    }
}

/// The result of operations after a failed handshake.
fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Secure(stream, _) => Pin::new(stream).poll_read(cx, buffer),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_greeting(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Secure(stream, _) => Pin::new(stream).poll_write(cx, bytes),
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
            Self::Secure(stream, _) => Pin::new(stream).poll_write_vectored(cx, slices),
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
            Self::Secure(stream, _) => Pin::new(stream).poll_flush(cx),
            Self::Greeting(_) | Self::Refused => gone(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream, _) => Pin::new(stream).poll_shutdown(cx),
            // Without a completed handshake there is nothing to shut down.
            Self::Greeting(_) | Self::Refused => Poll::Ready(Ok(())),
        }
    }
}
