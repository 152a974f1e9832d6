//! Serving a router until told to stop.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
};

use crate::net::{
    Listener,
    bounded::{Bounded, Demand},
    gate::{Gate, Ticket},
    proxies::Proxies,
    serve::{Http, Spoken, no_proof, serve as serve_http},
};

/// How long a connection may go without anything written by this side.
const WRITES_WITHIN: Duration = Duration::from_secs(30);
/// Requests of one HTTP/2 connection that may be under way.
const STREAMS_MAX: u32 = 64;
/// What a browser may send ahead of being read: for a request, and for a connection.
const WINDOWS: (u32, u32) = (64 * 1024, 256 * 1024);
/// Bytes of the head of a request: cookies of all accounts, and what proxies add.
const HEADER_BYTES_MAX: u32 = 32 * 1024;

/// Serves `router` on `listener` until `shutdown` completes, then waits for the answers under way. How long is the caller's to
/// bound.
///
/// `gate` decides which connections are kept. One is cut off that is idle for 30 s, or has a request that is not answered within
/// that time.
pub async fn serve(
    listener: impl Listener,
    gate: Gate,
    router: Router,
    proxies: Arc<Proxies>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let listener = Bounded::new(listener, gate, Demand::Writes { within: WRITES_WITHIN });
    serve_http(listener, pages(), router, proxies, no_proof, shutdown).await;
}

/// The same for probes and Prometheus, which speak HTTP/1. A connection is proven by its first request: there is nothing else that its
/// caller could show.
pub async fn serve_probes(
    listener: impl Listener,
    gate: Gate,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let listener = Bounded::new(listener, gate, Demand::Writes { within: WRITES_WITHIN });
    let router = router.layer(from_fn(|request: Request, next: Next| {
        if let Some(ticket) = request.extensions().get::<Arc<Ticket>>() {
            ticket.prove(ticket.owner());
        }
        next.run(request)
    }));
    let http = Http { spoken: Spoken::Http1, ..Http::default() };
    serve_http(listener, http, router, Arc::default(), no_proof, shutdown).await;
}

/// How HTTP is spoken with browsers.
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

    async fn start(router: Router, connections: usize, patience: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Bounded::new(listener, Gate::uncounted(connections), Demand::Writes { within: patience });
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
        // What fits every version is there under the address of each, but not for good under another's.
        let boot = get(server.address, "/assets/0123456789abcdef/boot.js").await;
        assert!(boot.starts_with("HTTP/1.1 200") && boot.contains("cache-control: no-cache\r\n"), "{boot}");
        assert!(boot.ends_with(include_str!("page/www/boot.js")), "{boot}");
        // Another version's file is not there: it does not fit to the rest.
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
        // The only place is taken: this one is answered once the other was cut off.
        assert!(get(server.address, "/livez").await.starts_with("HTTP/1.1 200"));
        let mut rest = Vec::new();
        // Closed or reset, whichever comes first; but not open.
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
