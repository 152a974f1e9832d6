//! Serves HTTP on a port, with one accept loop for gRPC, pages and probes.
//!
//! Each request carries the ticket of its connection (`Arc<Ticket>`) and the caller's address (`TcpConnectInfo`).
//! Answers pass through [`Answer`].
//!
//! Does not cover: time limits of requests and their bodies, which the layers of the router enforce.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt as _;

use super::{
    Listener,
    answer::{Answer, Held, PART_BYTES_MAX},
    bounded::Bounded,
    gate::Ticket,
    in_flight::{Call, Coming, unused},
    proxies::Proxies,
};

/// Time limit for the head of an HTTP/1 request, and for a connection without one. It differs from the intervals of the
/// page's requests (15 and 30 s), because a request fails if its connection ends at the same moment.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// Default limit for the bytes of such a head.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Interval between two checks for answers that are not taken.
const SWEEP: Duration = Duration::from_secs(1);

/// Versions of HTTP.
#[derive(Debug, Clone, Copy, Default)]
pub enum Spoken {
    /// HTTP/1 and HTTP/2.
    #[default]
    Both,
    /// HTTP/2 alone.
    Grpc,
    /// HTTP/1 alone.
    Http1,
}

/// HTTP settings of a port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Http {
    /// The accepted versions.
    pub spoken: Spoken,
    /// Keepalive interval of HTTP/2, and the timeout for the answer to a ping.
    pub keep_alive: Option<(Duration, Duration)>,
    /// Most requests in flight on a connection.
    pub streams_max: Option<u32>,
    /// Flow-control windows in bytes, for a stream and for a connection.
    pub windows: Option<(u32, u32)>,
    /// Most bytes of the head of a request.
    pub header_bytes_max: Option<u32>,
    /// Whether answers are large and their receivers trusted, so that send buffers need not be small.
    pub is_bulk: bool,
}

impl Http {
    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        let head_bytes = self.header_bytes_max.map_or(HEAD_BYTES_MAX, |bytes| bytes as usize);
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_MAX).max_buf_size(head_bytes);
        let mut http2 = builder.http2();
        http2.timer(TokioTimer::new()).max_concurrent_streams(self.streams_max);
        if let Some((every, timeout)) = self.keep_alive {
            http2.keep_alive_interval(every).keep_alive_timeout(timeout);
        }
        if let Some((stream, connection)) = self.windows {
            http2.initial_stream_window_size(stream).initial_connection_window_size(connection);
        }
        if let Some(bytes) = self.header_bytes_max {
            http2.max_header_list_size(bytes);
        }
        if !self.is_bulk {
            http2.max_send_buf_size(PART_BYTES_MAX);
        }
        match self.spoken {
            Spoken::Both => builder,
            Spoken::Grpc => builder.http2_only(),
            Spoken::Http1 => builder.http1_only(),
        }
    }
}

/// The `proof` of ports whose callers prove nothing before their requests.
pub fn no_proof<S>(_: &S) -> Option<()> {
    None
}

/// Serves `router` behind `proxies` until `shutdown`, then waits until the requests in flight are answered. Idle
/// connections are closed at once, or within half a second if their callers do not close them. Connections whose
/// answers are not taken are closed after three seconds. The result of `proof` for a connection travels with each of
/// its requests, as an extension.
pub async fn serve<L: Listener, P: Clone + Send + Sync + 'static>(
    mut listener: Bounded<L>,
    http: Http,
    router: Router,
    proxies: Arc<Proxies>,
    proof: impl Fn(&L::Stream) -> Option<P>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let builder = Arc::new(http.builder());
    let graceful = GracefulShutdown::new();
    let (stop, stopping) = watch::channel(false);
    let gate = listener.gate().clone();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    loop {
        let connection = tokio::select! {
            biased;
            () = &mut shutdown => break,
            _ = sweep.tick() => {
                gate.sweep();
                continue;
            }
            connection = listener.accept() => connection,
        };
        let (router, ticket, proxies) = (router.clone(), Arc::clone(connection.ticket()), Arc::clone(&proxies));
        let proof = proof(connection.get_ref());
        if proxies.forwards_requests(ticket.peer().ip()) {
            ticket.forward();
        }
        let (unused_ticket, stopping) = (Arc::clone(&ticket), stopping.clone());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            if let Some(proof) = proof.clone() {
                request.extensions_mut().insert(proof);
            }
            let caller = proxies.caller(ticket.from(), request.headers());
            request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr: Some(caller) });
            answer(router.clone(), Arc::clone(&ticket), request)
        });
        let serving = builder.serve_connection(TokioIo::new(connection), service).into_owned();
        let serving = graceful.watch(serving);
        tokio::spawn(async move {
            tokio::select! {
                ended = serving => if let Err(error) = ended {
                    tracing::debug!(error, "A connection ended");
                },
                () = unused(stopping, &unused_ticket) => {}
            }
        });
    }
    drop(listener);
    stop.send_replace(true);
    graceful.shutdown().await;
}

async fn answer(
    router: Router,
    ticket: Arc<Ticket>,
    request: Request<Incoming>,
) -> Result<axum::http::Response<Answer>, Infallible> {
    let call = Call::new(Arc::clone(&ticket));
    let mut request = request.map(|body| Body::new(Coming::new(body, Arc::clone(&call))));
    request.extensions_mut().insert(Arc::clone(&ticket));
    let mut response = router.oneshot(request).await?;
    let held = response.extensions_mut().remove::<Held>();
    Ok(response.map(|body| Answer::new(body, ticket, held, call)))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{body::Bytes, routing::post};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::Notify,
        time::timeout,
    };

    use super::*;
    use crate::{bounded::IdlePolicy, gate::Gate};

    /// Only a fault takes this long.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// Longer than a stop waits for connections without requests.
    const LONG: Duration = Duration::from_secs(3);

    async fn ask(address: SocketAddr, words: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        stream
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        // The connection may be closed or reset.
        let _ = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it ends");
        answer
    }

    #[tokio::test]
    async fn a_stop_waits_for_calls_and_for_nobody_who_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Bounded::new(listener, Gate::uncounted(8), IdlePolicy::Writes { within: PATIENCE });
        let (stop, called) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let begun = Arc::clone(&called);
        let router = Router::new().route(
            "/",
            post(async move |body: Bytes| {
                begun.notify_one();
                tokio::time::sleep(LONG).await;
                body
            }),
        );
        let stopped = Arc::clone(&stop);
        let serving = tokio::spawn(serve(listener, Http::default(), router, Arc::default(), no_proof, async move {
            stopped.notified().await;
        }));
        let nothing = ask(address, "").await;
        let half_a_head = ask(address, "POST / HTTP/1.1\r\nHo").await;
        let half_a_body = ask(address, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await;
        let preface = ask(address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        let whole = ask(address, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ndone").await;
        timeout(PATIENCE, called.notified()).await.expect("it is called");
        stop.notify_one();
        let silent = async {
            let all = [nothing, half_a_head, half_a_body, preface].map(rest);
            futures_util::future::join_all(all).await;
        };
        let answered = rest(whole);
        tokio::pin!(silent, answered);
        tokio::select! {
            () = &mut silent => {}
            answer = &mut answered => panic!("those who say nothing wait longer than those who ask: {answer}"),
        }
        let answer = answered.await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        timeout(PATIENCE, serving).await.expect("it ends").unwrap();
    }
}
