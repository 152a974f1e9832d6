//! Low-overhead calls, for load generators that share their processors with the system under test.
//!
//! A [`Connection`] makes gRPC calls directly on HTTP/2. Request headers and message leave in one write. A general
//! client needs two, because it cannot know that the message is complete, and the server's kernel then sends an
//! additional acknowledgement. Does not cover: retries, deadlines, and everything else that [`client::Client`]
//! provides.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};
use tonic::{
    Code, Status,
    codegen::http::{HeaderMap, HeaderValue, Method, Request, Uri, header},
};

use net::Dialer;
use proto::{PREFIX_BYTES, framed, make_readable};

/// Maximum size of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A connection to one server. Clones share it, and the last one closes it.
#[derive(Clone)]
pub struct Connection {
    requests: h2::client::SendRequest<Bytes>,
    authority: Arc<str>,
    _driver: Arc<Driver>,
}

/// The task that reads and writes. It ends with this.
struct Driver(JoinHandle<()>);

/// The answers to one call.
pub struct Answers {
    body: h2::RecvStream,
    /// What has arrived of the next answer, and what arrived with it.
    bytes: BytesMut,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// `UNAVAILABLE`: no HTTP/2 server answers at the address within `limit`.
    pub async fn connect(address: &str, dialer: &Dialer, limit: Duration) -> Result<Self, Status> {
        let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(format!("{address}: {error}"));
        let stream = dialer.open(address, limit).await.map_err(|error| unavailable(&error))?;
        Self::over(stream, address).await.map_err(|error| unavailable(&error))
    }

    /// Starts HTTP/2 on a connection that is open.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn over<T>(stream: T, authority: &str) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::handshake(stream).await?;
        let driver = tokio::spawn(async move {
            // The pending calls get the same error.
            let _ = connection.await;
        });
        Ok(Self { requests, authority: authority.into(), _driver: Arc::new(Driver(driver)) })
    }

    /// Calls a method (`/package.Service/Method`) with one message, and waits for its only answer. After an error of
    /// the connection (`UNAVAILABLE`), open a new one.
    ///
    /// # Errors
    /// The status that the server returns; `UNAVAILABLE`: the connection broke; `INTERNAL`: the answer is not valid
    /// gRPC.
    pub async fn call<Q: Message, A: Message + Default>(
        &mut self,
        path: &str,
        authorization: Option<&HeaderValue>,
        message: &Q,
    ) -> Result<A, Status> {
        let mut answers = self.open(path, authorization, message).await?;
        let answer = answers.next().await?.ok_or_else(|| Status::internal("there is no answer"))?;
        match answers.next::<A>().await? {
            None => Ok(answer),
            Some(_) => Err(Status::internal("there is more than one answer")),
        }
    }

    /// Calls a method with one message. Returns when the answers begin.
    ///
    /// # Errors
    /// As those of [`Self::call`].
    pub async fn open<Q: Message>(
        &mut self,
        path: &str,
        authorization: Option<&HeaderValue>,
        message: &Q,
    ) -> Result<Answers, Status> {
        let uri = Uri::builder().scheme("http").authority(&*self.authority).path_and_query(path).build();
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.map_err(|error| Status::invalid_argument(format!("{path}: {error}")))?;
        let headers = request.headers_mut();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(token) = authorization {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        futures_util::future::poll_fn(|context| self.requests.poll_ready(context)).await.map_err(broken)?;
        let (answer, mut body) = self.requests.send_request(request, false).map_err(broken)?;
        body.send_data(framed(message)?, true).map_err(broken)?;
        let (head, body) = answer.await.map_err(broken)?.into_parts();
        refused(&head.headers)?;
        Ok(Answers { body, bytes: BytesMut::new() })
    }
}

impl Answers {
    /// Waits for the next answer. `None` after the last one.
    ///
    /// # Errors
    /// As those of [`Connection::call`].
    pub async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, Status> {
        loop {
            if let Some(message) = self.complete()? {
                return A::decode(message).map(Some).map_err(|error| Status::internal(error.to_string()));
            }
            let Some(part) = self.body.data().await else { break };
            let part = part.map_err(broken)?;
            self.body.flow_control().release_capacity(part.len()).map_err(broken)?;
            self.bytes.extend_from_slice(&part);
        }
        let trailers = self.body.trailers().await.map_err(broken)?;
        refused(&trailers.ok_or_else(|| Status::internal("the answer has no status"))?)?;
        if self.bytes.is_empty() { Ok(None) } else { Err(Status::internal("the answer is cut off")) }
    }

    /// The next answer, if all of it has arrived.
    fn complete(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(&[compressed, a, b, c, d]) = self.bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if compressed != 0 {
            return Err(Status::internal("the answer is compressed"));
        }
        if length > ANSWER_BYTES_MAX {
            return Err(Status::internal("the answer is too long"));
        }
        if self.bytes.len() - PREFIX_BYTES < length {
            return Ok(None);
        }
        self.bytes.advance(PREFIX_BYTES);
        Ok(Some(self.bytes.split_to(length).freeze()))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Fails with the status in the headers, unless there is none or it is OK.
fn refused(headers: &HeaderMap) -> Result<(), Status> {
    let mut headers = headers.clone();
    make_readable(&mut headers);
    match Status::from_header_map(&headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(format!("the connection broke: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll},
    };

    use tokio::io::{DuplexStream, ReadBuf};
    use tonic::codegen::http::Response;

    use super::*;
    use client::fake::{Fake, OnSend, failure};
    use proto::chat::v1::{SendMessageRequest, SendMessageResponse};

    const PATIENCE: Duration = Duration::from_secs(10);
    const SEND: &str = "/chat.v1.ChatService/SendMessage";

    #[tokio::test]
    async fn answers_and_refusals_are_those_of_the_server() {
        let nodes = Fake::cluster(1).await;
        nodes[0].next_send(OnSend::Fail(failure(Code::ResourceExhausted, "OVERLOADED")));
        let mut connection =
            Connection::connect(&nodes[0].address, &Dialer::default(), PATIENCE).await.expect("connected");
        let request = SendMessageRequest { client_message_id: "an id".into(), ..Default::default() };
        let refused = connection.call::<_, SendMessageResponse>(SEND, None, &request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let refused = client::ClientError::from(refused);
        assert_eq!(refused.reason.as_deref(), Some("OVERLOADED"));
        let unknown = connection.call::<_, SendMessageResponse>("/chat.v1.ChatService/Nothing", None, &request).await;
        assert_eq!(unknown.expect_err("unknown").code(), Code::Unimplemented);
        let SendMessageResponse { .. } = connection.call(SEND, None, &request).await.expect("sent");
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert!(sends.len() == 2 && sends.iter().all(|(_, id)| id == "an id"), "{sends:?}");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_unavailable() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        let dialer = Dialer::default();
        let (connection, accepted) = tokio::join!(Connection::connect(&address, &dialer, PATIENCE), listener.accept());
        let mut connection = connection.expect("connected");
        drop(accepted);
        drop(listener);
        let request = SendMessageRequest::default();
        let error = connection.call::<_, SendMessageResponse>(SEND, None, &request).await.expect_err("closed");
        assert_eq!(error.code(), Code::Unavailable);
        let error = Connection::connect(&address, &dialer, PATIENCE).await.err().expect("nobody listens");
        assert_eq!(error.code(), Code::Unavailable);
    }

    /// A stream that counts its writes.
    struct Counting(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    /// A server that answers successive calls with the given bodies and `grpc-status` trailers.
    async fn answer(stream: DuplexStream, answers: Vec<(Vec<u8>, Option<&'static str>)>) {
        let mut server = h2::server::handshake(stream).await.expect("HTTP/2");
        for (body, status) in answers {
            let (_request, mut respond) = server.accept().await.expect("a call").expect("a call");
            let mut stream = respond.send_response(Response::new(()), false).expect("open");
            stream.send_data(body.into(), status.is_none()).expect("open");
            if let Some(status) = status {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(status));
                stream.send_trailers(trailers).expect("open");
            }
        }
        while server.accept().await.is_some() {}
    }

    #[tokio::test]
    async fn a_request_is_one_write() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(answer(far, vec![(vec![0; 5], Some("0")); 3]));
        let writes = Arc::new(AtomicUsize::new(0));
        let mut connection = Connection::over(Counting(near, writes.clone()), "test").await.expect("HTTP/2");
        let request = SendMessageRequest { body: "x".repeat(1000), ..Default::default() };
        // The first request leaves with the settings, whose acknowledgement arrives at any time.
        let SendMessageResponse { .. } = connection.call(SEND, None, &request).await.expect("sent");
        for _ in 0..2 {
            let before = writes.load(Ordering::Relaxed);
            let SendMessageResponse { .. } = connection.call(SEND, None, &request).await.expect("sent");
            assert_eq!(writes.load(Ordering::Relaxed) - before, 1);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let answers = vec![
            (vec![0, 0, 0, 0, 1], Some("0")),       // the message is missing
            (vec![1, 0, 0, 0, 0], Some("0")),       // compressed
            (vec![0; 4], Some("0")),                // cut off
            (vec![0, 0, 0, 0, 1, 0xff], Some("0")), // not a message
            (vec![0, 0, 1, 0, 1], Some("0")),       // too long
            (vec![], Some("0")),                    // nothing
            (vec![0; 10], Some("0")),               // two
            (vec![0; 5], None),                     // no status
        ];
        let count = answers.len();
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(answer(far, answers));
        let mut connection = Connection::over(near, "test").await.expect("HTTP/2");
        for _ in 0..count {
            let answer = connection.call::<_, SendMessageResponse>(SEND, None, &SendMessageRequest::default()).await;
            assert_eq!(answer.expect_err("no answer").code(), Code::Internal);
        }
    }
}
