//! Trusted proxies in front of a port, and the callers that they name.
//!
//! An HTTP proxy names the caller of each request in `X-Forwarded-For`, and may serve many callers on one connection. A
//! TCP proxy names the caller of a connection before its first byte, with the [PROXY protocol]. Only one of the two is
//! accepted, according to the configuration: a caller behind a TCP proxy could write the header, and one behind an HTTP
//! proxy could write the first bytes.
//!
//! Invariant: an address that a peer claims for its caller is never used, unless the peer is a trusted proxy.
//!
//! Does not cover: the use of the address (the layers above), and `X-Forwarded-Proto` (`web::origins`).
//!
//! [PROXY protocol]: https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use axum::http::HeaderMap;
use ipnet::IpNet;
use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Listener;

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Addresses of `X-Forwarded-For` that are examined, counted from its end.
const HOPS_MAX: usize = 32;
/// Longest header of the PROXY protocol, with the addresses and the fields that a proxy adds.
const HEADER_BYTES_MAX: usize = 4096;

/// The proxies that are trusted.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// Whether they speak the PROXY protocol instead of HTTP.
    pub speak_first: bool,
}

impl Proxies {
    /// Whether an address is that of a trusted proxy.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.networks.iter().any(|network| network.contains(&ip))
    }

    /// Whether the forwarding headers of requests from `ip` are accepted.
    pub fn forwards_requests(&self, ip: IpAddr) -> bool {
        !self.speak_first && self.trusts(ip)
    }

    /// The caller of a request with these `headers` that came from `from`: the last address in `X-Forwarded-For` that
    /// is not that of a trusted proxy.
    pub fn caller(&self, from: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        if !self.forwards_requests(from.ip()) {
            return from;
        }
        // An unreadable value is no address, so it ends the search.
        let named = headers.get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default());
        let hops: Vec<&str> = named.flat_map(|value| value.split(',')).collect();
        let mut caller = from;
        for hop in hops.into_iter().rev().take(HOPS_MAX) {
            let Some(address) = address(hop.trim()) else { break };
            caller = address;
            if !self.trusts(address.ip()) {
                break;
            }
        }
        caller
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`, as proxies write them.
fn address(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let without_port = bare.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 0));
    without_port.or_else(|| text.parse().ok())
}

/// A listener that determines the callers behind trusted proxies.
pub struct Behind<L> {
    listener: L,
    proxies: Arc<Proxies>,
}

impl<L> Behind<L> {
    /// Wraps `listener`.
    pub fn new(listener: L, proxies: Arc<Proxies>) -> Self {
        Self { listener, proxies }
    }
}

impl<L: Listener> Listener for Behind<L> {
    type Stream = Introduced<L::Stream>;

    async fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        let has_header = self.proxies.speak_first && self.proxies.trusts(from.ip());
        Ok((Introduced::new(stream, has_header), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn behind(stream: &Self::Stream) -> Option<Arc<OnceLock<SocketAddr>>> {
        Some(Arc::clone(&stream.caller))
    }
}

/// A connection that may begin with a header of the PROXY protocol.
pub struct Introduced<S> {
    stream: S,
    /// The part of the header that was read; `None` once it is complete, or if there is none.
    header: Option<Vec<u8>>,
    /// Bytes that were read after the header.
    rest: Vec<u8>,
    caller: Arc<OnceLock<SocketAddr>>,
}

impl<S> Introduced<S> {
    fn new(stream: S, has_header: bool) -> Self {
        Self { stream, header: has_header.then(Vec::new), rest: Vec::new(), caller: Arc::default() }
    }
}

impl<S: AsyncRead + Unpin> Introduced<S> {
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(header) = &mut self.header {
            let mut bytes = [0; 512];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            header.extend_from_slice(buffer.filled());
            match parse(header) {
                Some(Ok((length, caller))) => {
                    self.rest = header.split_off(length);
                    self.header = None;
                    if let Some(caller) = caller {
                        // The cell is empty, as there is only one header.
                        let _ = self.caller.set(caller);
                    }
                }
                None if header.len() < HEADER_BYTES_MAX => {}
                None | Some(Err(())) => {
                    let problem = "a trusted proxy did not begin with a header of the PROXY protocol";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The length of the header and the caller that it names. A health check of the proxy names no caller. `None` while the
/// header is incomplete.
fn parse(bytes: &[u8]) -> Option<Result<(usize, Option<SocketAddr>), ()>> {
    let header = HeaderResult::parse(bytes);
    if header.is_incomplete() {
        return None;
    }
    Some(match header {
        HeaderResult::V1(Ok(header)) => Ok((
            header.header.len(),
            match header.addresses {
                v1::Addresses::Tcp4(found) => Some((found.source_address, found.source_port).into()),
                v1::Addresses::Tcp6(found) => Some((found.source_address, found.source_port).into()),
                v1::Addresses::Unknown => None,
            },
        )),
        HeaderResult::V2(Ok(header)) => Ok((
            header.len(),
            match header.addresses {
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(found) => Some((found.source_address, found.source_port).into()),
                v2::Addresses::IPv6(found) => Some((found.source_address, found.source_port).into()),
                v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
            },
        )),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(()),
    })
}

impl<S: AsyncRead + Unpin> AsyncRead for Introduced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_header(cx))?;
        if !self.rest.is_empty() {
            let count = self.rest.len().min(buffer.remaining());
            buffer.put_slice(&self.rest[..count]);
            self.rest.drain(..count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Introduced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn proxies(speak_first: bool) -> Proxies {
        let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap()).into();
        Proxies { networks, speak_first }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (FORWARDED_FOR.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_last_address_that_is_not_trusted_is_the_caller() {
        let caller = |from: &str, values: &[&str]| {
            proxies(false).caller(from.parse().unwrap(), &headers(values)).ip().to_string()
        };
        assert_eq!(caller("10.0.0.1:1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(caller("10.0.0.1:1", &["1.2.3.4, 192.0.2.7:80", "10.0.0.9"]), "192.0.2.7");
        assert_eq!(caller("[2001:db8::1]:1", &["[2001:db9::5]:80"]), "2001:db9::5");
        assert_eq!(caller("[::ffff:10.0.0.1]:1", &["2001:db9::5"]), "2001:db9::5");
        assert_eq!(caller("10.0.0.1:1", &[]), "10.0.0.1");
        // Anything before an entry that is no address may be forged.
        assert_eq!(caller("10.0.0.1:1", &["1.2.3.4, unknown, 10.0.0.9"]), "10.0.0.9");
        // The header counts only if it comes from a trusted proxy, and only if that proxy speaks HTTP.
        assert_eq!(caller("192.0.2.1:1", &["1.2.3.4"]), "192.0.2.1");
        let tcp = proxies(true).caller("10.0.0.1:1".parse().unwrap(), &headers(&["1.2.3.4"]));
        assert_eq!(tcp.ip().to_string(), "10.0.0.1");
    }

    async fn introduced(words: &[u8]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let (ours, mut theirs) = tokio::io::duplex(3);
        let words = words.to_vec();
        let writing = tokio::spawn(async move { theirs.write_all(&words).await });
        let mut stream = Introduced::new(ours, true);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        writing.await.unwrap().unwrap();
        Ok((stream.caller.get().copied(), rest))
    }

    #[tokio::test]
    async fn a_header_names_the_caller_and_the_rest_is_untouched() {
        let (caller, rest) = introduced(b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\nhello").await.unwrap();
        assert_eq!((caller.unwrap().to_string().as_str(), rest.as_slice()), ("192.0.2.7:4711", &b"hello"[..]));
        let (caller, rest) = introduced(b"PROXY UNKNOWN\r\nhello").await.unwrap();
        assert_eq!((caller, rest.as_slice()), (None, &b"hello"[..]));
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let v2 = |command: u8| {
            [&signature[..], &[0x20 | command, 0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187], b"hello"]
                .concat()
        };
        let (caller, rest) = introduced(&v2(1)).await.unwrap();
        assert_eq!((caller.unwrap().to_string().as_str(), rest.as_slice()), ("192.0.2.7:4711", &b"hello"[..]));
        // A health check of the proxy.
        assert_eq!(introduced(&v2(0)).await.unwrap(), (None, b"hello".to_vec()));
    }

    #[tokio::test]
    async fn without_a_header_the_connection_ends() {
        let ends = async |words: &[u8]| introduced(words).await.unwrap_err().kind();
        assert_eq!(ends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, io::ErrorKind::InvalidData);
        assert_eq!(ends(b"PROXY TCP4 192.0").await, io::ErrorKind::UnexpectedEof);
        assert_eq!(ends(&[b'P'; 5000]).await, io::ErrorKind::InvalidData);
    }
}
