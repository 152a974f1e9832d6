//! A `chatd` process: started on ports of its own, killed at the end of the test.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use proto::chat::v1::{ListNodesRequest, cluster_service_client::ClusterServiceClient};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// Time limit that only a fault reaches.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The secret that the nodes of a cluster share, if there were others.
pub const PEER_SECRET: &str = "the-secret-of-a-node-in-tests";
/// Exit code of `chatd` when a port was taken between picking it and listening on it.
const PORT_TAKEN: i32 = 71;
/// The ports to pick from, below the range for outgoing connections.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

pub struct Node {
    child: Child,
    pub name: String,
    pub grpc: SocketAddr,
    pub peer: SocketAddr,
    pub metrics: SocketAddr,
    pub web: SocketAddr,
    dir: TempDir,
}

impl Node {
    /// Starts a node as a cluster of one, and waits until it serves.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a node like [`Node::start`], with additional settings.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        loop {
            let dir = tempfile::tempdir().expect("a directory for the node");
            let [grpc, peer, web, metrics] = ports();
            // A unique name, so that a test cannot mistake another test's node for its own.
            let name = format!("api-{}-{}", std::process::id(), grpc.port());
            let own = [
                ("CHAT_NAME", name.clone()),
                ("CHAT_LISTEN", grpc.to_string()),
                ("CHAT_PEER_LISTEN", peer.to_string()),
                ("CHAT_WEB_LISTEN", web.to_string()),
                ("CHAT_METRICS_LISTEN", metrics.to_string()),
                ("CHAT_DATA_DIR", dir.path().join("data").to_string_lossy().into_owned()),
                ("CHAT_INITIAL_NODES", String::new()),
                ("CHAT_PEER_SECRET", PEER_SECRET.to_owned()),
                ("CHAT_LOG_LEVEL", "warn".to_owned()),
                ("CHAT_EXIT_WITH_PARENT", "1".to_owned()),
            ];
            let log = fs::File::create(dir.path().join("log")).expect("a file for the node's log");
            // The usual soft limit in every environment, because the node has to raise it.
            let child = Command::new("sh")
                .args(["-c", "ulimit -S -n 1024; exec \"$0\""])
                .arg(support::chatd())
                .envs(own)
                .envs(settings.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("chatd starts");
            let mut node = Self { child, name, grpc, peer, metrics, web, dir };
            match node.serving().await {
                Ok(()) => return node,
                Err(status) if status.code() == Some(PORT_TAKEN) => {}
                Err(status) => panic!("chatd ended with {status}:\n{}", node.log()),
            }
        }
    }

    /// Waits until the node answers under its own name and leads. The error is its exit status.
    async fn serving(&mut self) -> Result<(), ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be asked") {
                return Err(status);
            }
            if let Ok(channel) = self.endpoint().connect().await
                && let Ok(nodes) = ClusterServiceClient::new(channel).list_nodes(ListNodesRequest {}).await
            {
                let nodes = nodes.into_inner();
                if nodes.answered_by == self.name && nodes.failures_tolerated.is_some() {
                    return Ok(());
                }
            }
            assert!(Instant::now() < deadline, "the node does not serve:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).expect("an address");
        endpoint.connect_timeout(PATIENCE).timeout(PATIENCE)
    }

    /// Opens a new connection.
    pub async fn channel(&self) -> Channel {
        self.endpoint().connect().await.expect("the node takes connections")
    }

    /// The address of the admin socket, for a channel.
    pub fn admin(&self) -> String {
        format!("unix:{}", self.dir.path().join("data/admin.sock").display())
    }

    /// Resident memory of the process.
    pub fn resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process lives");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
        kib * 1024
    }

    /// Sends a signal, and waits until the process has ended.
    pub async fn end_with(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process lives");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be asked") {
                return status;
            }
            assert!(Instant::now() < deadline, "the node does not stop:\n{}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Number of open file descriptors of the process.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the process lives").count()
    }

    /// The value of the metric `name` without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    }

    /// All metrics of the node, as text.
    pub fn metrics(&self) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(self.metrics).expect("the metrics port takes connections");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        text
    }

    /// The node's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Four different free ports.
fn ports() -> [SocketAddr; 4] {
    let random = || uuid::Uuid::new_v4().as_u128() as u32;
    let listeners: [TcpListener; 4] = std::array::from_fn(|_| {
        loop {
            let port = PORTS.start + random() % (PORTS.end - PORTS.start);
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port as u16)) {
                return listener;
            }
        }
    });
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the output of `future`, with a time limit.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}
