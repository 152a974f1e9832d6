//! Serving a router until told to stop.

use std::{io, net::SocketAddr, time::Duration};

use axum::Router;

use super::json::Caller;
use crate::net::{
    Listener,
    bounded::{Bounded, Connection, Demand},
};

/// How long a connection may go without anything written by this side.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the answers under way after `shutdown`. They are small; whoever takes longer is not reading.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves `router` on `listener` until `shutdown` completes, then waits a moment for the answers under way.
///
/// At most `connections` are open at a time, and one on which nothing was answered for 30 s is cut off: a handler
/// has to begin its answer within that time.
pub async fn serve(
    listener: impl Listener,
    connections: usize,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_bounded(Bounded::new(listener, connections, Demand::Writes { within: PATIENCE }), router, shutdown).await
}

impl<L: Listener> axum::serve::Listener for Bounded<L> {
    type Io = Connection<L::Stream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<L::Stream>, SocketAddr) {
        let connection = Bounded::accept(self).await;
        let from = connection.from();
        (connection, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Bounded::local_addr(self)
    }
}

async fn serve_bounded(
    listener: Bounded<impl Listener>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (told, mut stopping) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        shutdown.await;
        let _ = told.send(());
    };
    let router = router.into_make_service_with_connect_info::<Caller>();
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown).into_future();
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result,
        _ = &mut stopping => {}
    }
    // A connection that never ends its request must not hold up the stop of the node.
    tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
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
    use crate::web::{Origins, PageFacts, Readiness, metrics_router, web_router};

    struct Server {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        running: JoinHandle<io::Result<()>>,
    }

    async fn start(router: Router, connections: usize, patience: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Bounded::new(listener, connections, Demand::Writes { within: patience });
        let running = tokio::spawn(serve_bounded(listener, router, async {
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
        web_router(facts, Origins::new(|| vec!["n2:8080".into()], false))
    }

    #[tokio::test]
    async fn probes_and_metrics_answer() {
        let (set, readiness) = watch::channel(Readiness::NotReady("no leader".into()));
        let router = metrics_router("text/plain; version=0.0.4", || "chat_x 1\n".into(), readiness);
        let server = start(router, 8, PATIENCE).await;
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
        server.running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_status_tells_what_the_node_is() {
        let server = start(page(), 8, PATIENCE).await;
        let answer = get(server.address, "/status").await;
        for part in ["node n1", "follower", "none at the moment", "42", "127.0.0.1:50051"] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
    }

    #[tokio::test]
    async fn the_page_and_its_files_have_the_headers_that_guard_them() {
        let server = start(page(), 8, PATIENCE).await;
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
        server.running.await.unwrap().unwrap();
    }
}
