//! Connections that break although both ends are well, as when a device between them loses its state.

use std::{
    future::pending,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use turmoil::net::TcpStream;

/// Breaks the connections of a host.
pub struct Resets(watch::Sender<()>);

impl Default for Resets {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl Resets {
    /// Breaks all connections that exist now.
    pub fn reset(&self) {
        self.0.send_replace(());
    }

    /// For the host's next connections.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// A connection that breaks with the next reset.
pub struct Breakable {
    stream: TcpStream,
    /// `None` once it is broken.
    reset: Option<BoxFuture<'static, ()>>,
}

impl Breakable {
    pub fn new(stream: TcpStream, mut resets: watch::Receiver<()>) -> Self {
        resets.mark_unchanged();
        let reset = async move {
            if resets.changed().await.is_err() {
                // The host never resets its connections again.
                pending::<()>().await;
            }
        };
        Self { stream, reset: Some(reset.boxed()) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.reset.as_mut().is_some_and(|reset| reset.as_mut().poll(cx).is_ready()) {
            self.reset = None;
        }
        if self.reset.is_some() { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }
}

impl AsyncRead for Breakable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
