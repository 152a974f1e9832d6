//! Serves a router until a stop is requested.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
};

use net::{
    Listener,
    bounded::{Bounded, IdlePolicy},
    gate::{Gate, Ticket},
    proxies::Proxies,
    serve::{Http, Spoken, no_proof, serve as serve_http},
};

/// Longest time without a write by this side on a connection.
const WRITES_WITHIN: Duration = Duration::from_secs(30);
/// Requests in flight on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// Flow-control windows in bytes, for a stream and for a connection.
const WINDOWS: (u32, u32) = (64 * 1024, 256 * 1024);
/// Bytes of the head of a request: cookies of all accounts, and the headers of proxies.
const HEADER_BYTES_MAX: u32 = 32 * 1024;

/// Serves `router` on `listener` until `shutdown` completes, then waits for the answers in flight. The caller bounds
/// that wait.
///
/// `gate` decides which connections are kept. A connection is closed if it is idle for 30 s, or if a request on it is
/// not answered within that time.
pub async fn serve(
    listener: impl Listener,
    gate: Gate,
    router: Router,
    proxies: Arc<Proxies>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let listener = Bounded::new(listener, gate, IdlePolicy::Writes { within: WRITES_WITHIN });
    serve_http(listener, pages(), router, proxies, no_proof, shutdown).await;
}

/// Like [`serve`], for probes and Prometheus, which use HTTP/1. A connection is proven by its first request, as its
/// caller cannot present anything else.
pub async fn serve_probes(
    listener: impl Listener,
    gate: Gate,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let listener = Bounded::new(listener, gate, IdlePolicy::Writes { within: WRITES_WITHIN });
    let router = router.layer(from_fn(|request: Request, next: Next| {
        if let Some(ticket) = request.extensions().get::<Arc<Ticket>>() {
            ticket.prove(ticket.owner());
        }
        next.run(request)
    }));
    let http = Http { spoken: Spoken::Http1, ..Http::default() };
    serve_http(listener, http, router, Arc::default(), no_proof, shutdown).await;
}

/// The HTTP settings for browsers.
fn pages() -> Http {
    Http {
        streams_max: Some(STREAMS_MAX),
        windows: Some(WINDOWS),
        header_bytes_max: Some(HEADER_BYTES_MAX),
        ..Http::default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::{oneshot, watch},
        task::JoinHandle,
    };

    use super::*;
    use crate::web::{Origins, PageFacts, Readiness, WebAccess, metrics_router, web_router};

    struct Server {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        running: JoinHandle<()>,
    }

    async fn start(router: Router, connections: usize, timeout: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Bounded::new(listener, Gate::uncounted(connections), IdlePolicy::Writes { within: timeout });
        let running = tokio::spawn(serve_http(listener, pages(), router, Arc::default(), no_proof, async {
            let _ = stopped.await;
        }));
        Server { address, stop, running }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn page() -> Router {
        let facts = || PageFacts {
            name: "n1".into(),
            role: "follower".into(),
            leader: None,
            revision: 42,
            grpc_address: "127.0.0.1:50051".into(),
        };
        web_router(facts, Origins::new(|| vec!["n2:8080".into()], WebAccess::default()))
    }

    #[tokio::test]
    async fn probes_and_metrics_answer() {
        let (set, readiness) = watch::channel(Readiness::NotReady("no leader".into()));
        let router = metrics_router("text/plain; version=0.0.4", || "chat_x 1\n".into(), readiness);
        let server = start(router, 8, WRITES_WITHIN).await;
        let answer = get(server.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no leader"), "{answer}");
        set.send_replace(Readiness::Ready);
        let answer = get(server.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        let answer = get(server.address, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        let answer = get(server.address, "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
        assert!(answer.ends_with("chat_x 1\n"));
        assert!(get(server.address, "/other").await.starts_with("HTTP/1.1 404"));
        server.stop.send(()).unwrap();
        server.running.await.unwrap();
    }

    #[tokio::test]
    async fn the_status_tells_what_the_node_is() {
        let server = start(page(), 8, WRITES_WITHIN).await;
        let answer = get(server.address, "/status").await;
        for part in ["node n1", "follower", "none at the moment", "42", "127.0.0.1:50051"] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
    }

    #[tokio::test]
    async fn the_page_and_its_files_have_the_headers_that_guard_them() {
        let server = start(page(), 8, WRITES_WITHIN).await;
        let answer = get(server.address, "/").await;
        assert!(answer.contains("cache-control: no-cache\r\n"), "{answer}");
        for part in
            ["content-security-policy: default-src 'none'; script-src 'self';", "connect-src 'self' n2:8080\r\n"]
        {
            assert!(answer.contains(part), "{part} in {answer}");
        }
        assert!(!answer.contains("unsafe"), "{answer}");
        let script = answer.split('"').find(|part| part.ends_with("/main.js")).expect("a script");
        let file = get(server.address, script).await;
        assert!(file.contains("cache-control: public, max-age=31536000, immutable\r\n"), "{file}");
        assert!(file.contains("content-type: text/javascript; charset=utf-8\r\n"), "{file}");
        for answer in [answer.as_str(), &file] {
            assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        }
        for part in ["frame-src 'self';", "trusted-types 'none'", "frame-ancestors 'none'"] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
        // The worker is requested each time, and only the frame of the page may name it.
        for path in ["/worker.html", "/register.js", "/worker.js"] {
            let answer = get(server.address, path).await;
            for part in ["cache-control: no-cache\r\n", "worker-src 'self';", "frame-ancestors 'self'", "nosniff\r\n"] {
                assert!(answer.contains(part), "{part} in {answer}");
            }
        }
        // A file that fits every version is available under the address of each, but is immutable only under its own.
        let boot = get(server.address, "/assets/0123456789abcdef/boot.js").await;
        assert!(boot.starts_with("HTTP/1.1 200") && boot.contains("cache-control: no-cache\r\n"), "{boot}");
        assert!(boot.contains("await import(\"./main.js\")"), "{boot}");
        // A file of another version is absent, because it does not fit the rest.
        for missing in ["/assets/0123456789abcdef/main.js", "/main.js", &script.replace("main.js", "index.html")] {
            assert!(get(server.address, missing).await.starts_with("HTTP/1.1 404"), "{missing}");
        }
        for other in ["/assets/0123456789abcdef/main.js", "/assets/0123456789abcdef/style.css"] {
            assert!(get(server.address, other).await.contains("cache-control: no-cache\r\n"), "{other}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_gets_nothing_done_is_cut_off() {
        let server = start(page(), 1, Duration::from_millis(50)).await;
        let mut half_open = TcpStream::connect(server.address).await.unwrap();
        half_open.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        // The only permit is taken. This request is answered once the other connection was closed.
        assert!(get(server.address, "/livez").await.starts_with("HTTP/1.1 200"));
        let mut rest = Vec::new();
        // The connection is closed or reset, but not open.
        let _ = half_open.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_half_open_connection() {
        let server = start(page(), 8, Duration::from_secs(3600)).await;
        let mut half_open = TcpStream::connect(server.address).await.unwrap();
        half_open.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        assert!(get(server.address, "/livez").await.starts_with("HTTP/1.1 200"));
        server.stop.send(()).unwrap();
        server.running.await.unwrap();
    }
}
