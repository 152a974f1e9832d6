//! How long a connection with certificates on both sides may live: until one of them is replaced or expires.
//!
//! A handshake decides about a moment. Without a look later, a certificate that was withdrawn, or whose time is over, would keep its
//! connections for as long as both sides run. The end looks like a lost connection to both sides; callers connect again,
//! with what is in use then.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::sleep,
};

/// Between two looks at the wall clock, which may be set while a connection is open.
const LOOK: Duration = Duration::from_secs(60);

/// Says when certificates were replaced, and when the first of them expires.
pub(super) type Lifetime = (watch::Receiver<()>, Option<SystemTime>);

/// A connection that fails from the moment its certificates are no longer good.
pub struct Mortal<S> {
    stream: S,
    /// Ready when it ends; `None`: it does not.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Mortal<S> {
    /// A connection that lives for as long as its ends like.
    pub(super) fn immortal(stream: S) -> Self {
        Self { stream, end: None }
    }

    /// A connection that ends with the next message of `replaced`, or when the time of a certificate is over.
    pub(super) fn until(stream: S, replaced: watch::Receiver<()>, expires_at: Option<SystemTime>) -> Self {
        Self { stream, end: Some(Box::pin(ends(replaced, expires_at))) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready());
        if !over {
            return Ok(());
        }
        // Checked again by the next operation, which must fail too.
        self.end = Some(Box::pin(std::future::ready(())));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a certificate was replaced or has expired"))
    }
}

async fn ends(mut replaced: watch::Receiver<()>, expires_at: Option<SystemTime>) {
    let replaced = async {
        if replaced.changed().await.is_err() {
            // The certificates are gone without a replacement: the process stops.
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
