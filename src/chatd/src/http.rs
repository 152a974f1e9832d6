//! One HTTP/1.1 exchange on a connection of its own: for the probes of nodes, and for the Kubernetes API.
//!
//! Invariant: an answer has at most [`ANSWER_BYTES_MAX`] bytes. Does not cover: the time limit of [`exchange`], which
//! is the caller's, redirects, and connections that serve several requests.

use std::{future::pending, io, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

/// Maximum size of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Maximum length of a reason that is shown.
const REASON_CHARS_MAX: usize = 500;

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: String,
}

impl Answer {
    /// The body in one line of bounded length, or the status if there is no body.
    pub fn reason(&self) -> String {
        let line = self.body.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() { format!("status {}", self.status) } else { line.chars().take(REASON_CHARS_MAX).collect() }
    }
}

/// Asks a node on this machine. `limit` is for connecting and for the answer together.
///
/// # Errors
/// `TimedOut` after `limit`, `InvalidData` if what answers there does not speak HTTP, and those of the network.
pub(super) async fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<Answer> {
    let request = Request::get(path).header(HOST, address.to_string()).header(CONNECTION, "close");
    let request = request.body(String::new()).map_err(io::Error::other)?;
    let asked = async { exchange(TcpStream::connect(address).await?, request).await };
    match timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// Sends `request` on `stream`, and returns the answer. The caller bounds the time.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<String>,
) -> io::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let answered = async {
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return io::Error::new(io::ErrorKind::InvalidData, "the answer is too long");
            }
            error.downcast().map_or_else(io::Error::other, |error| failed(*error))
        })?;
        Ok(Answer { status: head.status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    };
    let driven = async {
        // The exchange itself reports how the connection failed.
        let _ = connection.await;
        pending().await
    };
    tokio::select! {
        answer = answered => answer,
        answer = driven => answer,
    }
}

fn failed(error: hyper::Error) -> io::Error {
    if error.is_parse() {
        return io::Error::new(io::ErrorKind::InvalidData, format!("what answers there does not speak HTTP ({error})"));
    }
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::{Instant, sleep},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    /// What is made of `answer`.
    async fn asked(answer: &'static str) -> io::Result<Answer> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        get(address, "/livez", Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_from_one() {
        let answer = asked("HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nstopping,\n soon").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "stopping, soon"));
        let empty = asked("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(empty.reason(), "status 404 Not Found");
        for other in [
            "",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
            "HTTP/1.1 \u{e9}\u{e9}\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        ] {
            assert!(asked(other).await.is_err(), "{other:?}");
        }
        let error = asked("SSH-2.0-OpenSSH_9.2\r\n\r\n").await.unwrap_err().to_string();
        assert!(error.contains("does not speak HTTP"), "{error}");
        let endless = "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"x".repeat(ANSWER_BYTES_MAX + 1);
        let error = asked(endless.leak()).await.unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }

    #[tokio::test]
    async fn neither_silence_nor_drops_prolong_the_wait() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let began = Instant::now();
        let error = get(silent.local_addr().unwrap(), "/livez", LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 200 ms");
        assert!(began.elapsed() >= LIMIT);
        let dripping = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = dripping.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = dripping.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(b"x").await.is_ok() {
                sleep(LIMIT / 10).await;
            }
        });
        let error = get(address, "/livez", LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 200 ms");
    }
}
