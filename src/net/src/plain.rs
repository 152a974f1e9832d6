//! A connection without TLS that detects a peer that speaks TLS.
//!
//! Such a server answers unreadable data with an alert of seven bytes and closes the connection. The alert is too short
//! for an HTTP/2 frame, so without this check the caller only sees a closed connection.
//!
//! Does not cover: servers that close without an alert.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first byte of a TLS record with an alert (RFC 8446, section 5.1). No server begins HTTP/2 with it, as it would
/// be the length of a settings frame that exceeds any real one.
const ALERT: u8 = 0x15;

/// A connection that records whether anything was read on it. One task has to poll both its reads and its writes: a
/// failed write waits for the other direction.
pub(super) struct Plain<S> {
    stream: S,
    is_begun: bool,
    /// A byte that was read after a write had failed. An alert stays here: all that follows fails because of it.
    first: Option<u8>,
}

impl<S> Plain<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, is_begun: false, first: None }
    }
}

fn talks_tls() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it talks TLS, and this side does not")
}

impl<S: AsyncRead + Unpin> Plain<S> {
    /// The result of a write that failed with `failed`, possibly because the server answered with an alert and closed
    /// the connection. Pending until it is known whether there is an alert. If there is one, a caller that also reads
    /// finds it there, because HTTP/2 does not report the cause of a failed write to the calls on the connection.
    fn failed_write<T>(&mut self, context: &mut Context<'_>, failed: io::Error) -> Poll<io::Result<T>> {
        let is_closed = matches!(failed.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        match self.first {
            Some(ALERT) => return Poll::Ready(Err(talks_tls())),
            None if is_closed && !self.is_begun => {}
            _ => return Poll::Ready(Err(failed)),
        }
        let mut first = [0];
        let mut buffer = ReadBuf::new(&mut first);
        // A connection that the server closed becomes readable, so this wakes the task. After a shutdown of this side a
        // write can fail without that, but nothing writes then.
        if ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)).is_ok() {
            self.first = buffer.filled().first().copied();
        }
        if self.first == Some(ALERT) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(failed))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.first == Some(ALERT) {
            return Poll::Ready(Err(talks_tls()));
        }
        if let Some(first) = self.first.take_if(|_| buffer.remaining() > 0) {
            buffer.put_slice(&[first]);
            self.is_begun = true;
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if !self.is_begun && buffer.filled().get(before) == Some(&ALERT) {
            self.first = Some(ALERT);
            return Poll::Ready(Err(talks_tls()));
        }
        self.is_begun |= buffer.filled().len() > before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.stream).poll_write(context, bytes)) {
            Err(error) => self.failed_write(context, error),
            written => Poll::Ready(written),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices)) {
            Err(error) => self.failed_write(context, error),
            written => Poll::Ready(written),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_flush(context)) {
            Err(error) => self.failed_write(context, error),
            flushed => Poll::Ready(flushed),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const ALERT_RECORD: [u8; 7] = [ALERT, 3, 3, 0, 2, 2, 70];

    #[tokio::test]
    async fn an_alert_at_the_beginning_is_told_and_later_bytes_are_handed_on() {
        let (near, mut far) = duplex(64);
        far.write_all(&ALERT_RECORD).await.unwrap();
        drop(far);
        let error = Plain::new(near).read_u8().await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("talks TLS")), (io::ErrorKind::InvalidData, true));

        let (near, mut far) = duplex(64);
        far.write_all(&[0, ALERT]).await.unwrap();
        let mut near = Plain::new(near);
        assert_eq!((near.read_u8().await.unwrap(), near.read_u8().await.unwrap()), (0, ALERT));
    }

    #[tokio::test]
    async fn a_write_that_fails_because_of_an_alert_says_so() {
        let (near, mut far) = duplex(64);
        far.write_all(&ALERT_RECORD).await.unwrap();
        drop(far);
        let error = Plain::new(near).write_all(b"PRI * HTTP/2.0").await.unwrap_err();
        assert!(error.to_string().contains("talks TLS"), "{error}");
        // A caller that also reads finds the alert there.
        let (near, mut far) = duplex(64);
        far.write_all(&ALERT_RECORD).await.unwrap();
        drop(far);
        let mut near = Plain::new(near);
        assert!(futures_util::poll!(std::pin::pin!(near.write_all(b"PRI * HTTP/2.0"))).is_pending());
        for _ in 0..2 {
            assert!(near.read_u8().await.unwrap_err().to_string().contains("talks TLS"));
        }
        // Without an alert, the original error stays.
        let (near, far) = duplex(64);
        drop(far);
        let error = Plain::new(near).write_all(b"PRI * HTTP/2.0").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
