//! Lifetime of a connection with certificates on both sides: until one of them is replaced or expires.
//!
//! A handshake checks the certificates only once. Without a later check, a certificate that was withdrawn or has
//! expired would keep its connections for as long as both sides run. Both sides see the end as a lost connection.
//! Callers then connect again, with the certificates in use at that time.

#[cfg(feature = "server")]
use std::time::{Duration, SystemTime};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(feature = "server")]
use tokio::{sync::watch, time::sleep};

/// Interval between two readings of the wall clock, which may be set while a connection is open.
#[cfg(feature = "server")]
const LOOK: Duration = Duration::from_secs(60);

/// A signal that certificates were replaced, and the earliest expiry of the own ones.
#[cfg(feature = "server")]
pub(super) type Lifetime = (watch::Receiver<()>, Option<SystemTime>);

/// A connection that fails once its certificates are no longer valid.
pub struct Mortal<S> {
    stream: S,
    /// Ready when the connection ends; `None` if its lifetime is not limited.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Mortal<S> {
    /// A connection without a limited lifetime.
    pub(super) fn immortal(stream: S) -> Self {
        Self { stream, end: None }
    }

    /// A connection that ends with the next message of `replaced`, or at `expires_at`.
    #[cfg(feature = "server")]
    pub(super) fn until(stream: S, replaced: watch::Receiver<()>, expires_at: Option<SystemTime>) -> Self {
        Self { stream, end: Some(Box::pin(ends(replaced, expires_at))) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready());
        if !over {
            return Ok(());
        }
        // Polled again by the next operation, which must fail too.
        self.end = Some(Box::pin(std::future::ready(())));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a certificate was replaced or has expired"))
    }
}

#[cfg(feature = "server")]
async fn ends(mut replaced: watch::Receiver<()>, expires_at: Option<SystemTime>) {
    let replaced = async {
        if replaced.changed().await.is_err() {
            // The sender is gone without a replacement, so the process is stopping.
            std::future::pending().await
        }
    };
    let expired = async {
        let Some(at) = expires_at else { return std::future::pending().await };
        while let Ok(left) = at.duration_since(SystemTime::now()) {
            sleep(left.min(LOOK) + Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = replaced => {}
        () = expired => {}
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mortal<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mortal<S> {
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
