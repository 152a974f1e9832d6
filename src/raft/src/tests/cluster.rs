//! A cluster in one process, with real peer ports on loopback and real files. Its parts can be cut off, stalled and
//! crashed.

use std::{
    collections::BTreeMap,
    net::{self, Shutdown, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{net::TcpListener, runtime::Runtime, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;

use crate::{
    LogKept, Node, NodeRecord, Observer, Parts, PeerService, Settings,
    bootstrap::{Advertised, Bootstrap},
    start,
    transport::peers::{Credentials, Peers},
};
use chat::{Command, Event, Outcome, Revision, SessionId, TimeMs};
use storage::{FirstFailure, Identity, LogDb, Readers, SharedState, StateMachine};
use trace::Tracer;

pub(crate) const CLUSTER: &str = "test-cluster";
/// Long enough for a loaded machine, short enough to notice a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Ignores all events.
pub(crate) struct Silent;

impl Observer for Silent {
    fn applied(&self, _: Vec<Arc<Event>>, _: &[SessionId], _: Revision, _: TimeMs) {}
    fn replaced(&self, _: Revision, _: TimeMs) {}
    fn compared(&self, _: bool) {}
    fn malformed(&self, _: u64) {}
    fn measured(&self, _: usize, _: Duration) {}
    fn snapshot_built(&self, _: Duration) {}
    fn answered(&self, _: &str, _: Duration) {}
}

/// Stops a log's writer after the group that it is writing.
#[derive(Clone, Default)]
pub(crate) struct Stall(Arc<(Mutex<bool>, Condvar)>);

impl Stall {
    pub(crate) fn set(&self, stalled: bool) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = stalled;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(guard, |stalled| *stalled).unwrap_or_else(PoisonError::into_inner));
    }
}

pub(crate) struct Member {
    pub id: u64,
    pub dir: PathBuf,
    pub address: SocketAddr,
    pub node: Node,
    pub log: LogDb,
    pub readers: Arc<Readers>,
    pub stall: Stall,
    pub service: PeerService,
    pub peers: Arc<Peers>,
    /// The connections that others have made.
    accepted: Arc<Mutex<Vec<net::TcpStream>>>,
    /// A separate runtime. Shutting it down closes every connection, as the end of a process does.
    server: Option<Runtime>,
}

fn client_address(id: u64) -> String {
    format!("client-{id}:1")
}

impl Member {
    /// Starts a node on the files in `dir`.
    pub(crate) async fn start(id: u64, dir: PathBuf, listener: TcpListener, settings: &Settings) -> Self {
        let stall = Stall::default();
        let gate = stall.clone();
        let log = LogDb::open(&dir, Box::new(move |_| gate.pass())).expect("opens");
        let identity = Identity { cluster_id: CLUSTER.into(), node_id: id, name: format!("n{id}") };
        let credentials = Credentials::new(CLUSTER, id, &format!("n{id}"), "").expect("plain text");
        let address = listener.local_addr().expect("bound");
        let advertised = Advertised {
            name: format!("n{id}"),
            peer_address: address.to_string(),
            client_address: client_address(id),
            web_address: String::new(),
        };
        let bootstrap = Bootstrap::new(log.clone(), advertised, credentials.clone());
        let service = PeerService::new(bootstrap.clone());
        let state = StateMachine::open(&dir).expect("opens");
        let state = SharedState::new(state, Box::new(())).expect("starts");
        let readers = Arc::new(Readers::of(state.clone(), 2).expect("opens"));
        let peers = Arc::new(Peers::default());
        let parts = Parts {
            identity,
            bootstrap,
            settings: settings.clone(),
            log: log.clone(),
            state,
            readers: Arc::clone(&readers),
            data_dir: dir.clone(),
            sink: Arc::new(Silent),
            peers: Arc::clone(&peers),
            credentials,
            seed_addresses: Vec::new(),
            failure: FirstFailure::default(),
            tracer: Tracer::off(),
        };
        let node = start(parts).await.expect("starts");
        service.run(node.clone());
        let accepted = Arc::default();
        let mut member = Self { id, dir, address, node, log, readers, stall, service, peers, accepted, server: None };
        member.serve(listener);
        member
    }

    fn serve(&mut self, listener: TcpListener) {
        let (service, accepted) = (self.service.clone(), Arc::clone(&self.accepted));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = listener.into_std().expect("a listener");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let server = tonic::transport::Server::builder().add_service(service.into_server());
            let incoming = TcpListenerStream::new(listener).inspect(move |connection| {
                let copy = connection.as_ref().ok().and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
                accepted.lock().expect("not poisoned").extend(copy.map(net::TcpStream::from));
            });
            let _ = server.serve_with_incoming(incoming).await;
        });
        self.server = Some(runtime);
    }

    /// Breaks the connections that others have made to this node. They can make new ones.
    pub(crate) fn reset(&self) {
        for connection in self.accepted.lock().expect("not poisoned").drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Makes this node unreachable for the others. It still reaches them.
    pub(crate) fn unplug(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        self.reset();
    }

    /// Undoes [`Member::unplug`].
    pub(crate) async fn plug(&mut self) {
        let listener = rebind(self.address).await;
        self.serve(listener);
    }

    /// Ends the node, as far as a process can end a part of itself. A successor can bind the address again.
    pub(crate) async fn stop(mut self) {
        self.unplug();
        self.stall.set(false);
        self.node.shutdown().await;
    }

    pub(crate) fn leads(&self) -> bool {
        self.node.view().borrow().is_leader()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.readers.read(|query| query.revision()).expect("readable").0
    }

    pub(crate) fn has_account(&self, name: &str) -> bool {
        self.readers.read(|query| query.account_by_name(name)).expect("readable").is_some()
    }
}

/// Binds a port that was in use a moment ago. It is free again as soon as the old socket is closed.
pub(crate) async fn rebind(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

impl Drop for Member {
    // A runtime must not be dropped where it would wait for its tasks.
    fn drop(&mut self) {
        self.unplug();
        self.stall.set(false);
    }
}

pub(crate) struct Cluster {
    pub members: BTreeMap<u64, Member>,
    pub settings: Settings,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `size` nodes and waits for a leader.
    pub(crate) async fn start(size: u64, settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut members = BTreeMap::new();
        let mut records = BTreeMap::new();
        for id in 1..=size {
            let home = dir.path().join(format!("n{id}"));
            std::fs::create_dir(&home).expect("created");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let member = Member::start(id, home, listener, &settings).await;
            let record = NodeRecord {
                name: format!("n{id}"),
                peer_address: member.address.to_string(),
                client_address: client_address(id),
                ..NodeRecord::default()
            };
            records.insert(id, record);
            members.insert(id, member);
        }
        members[&1].node.initialize(records).await.expect("initialized");
        let cluster = Self { members, settings, _dir: dir };
        cluster.leader().await;
        cluster
    }

    /// Waits for a leader that a majority confirms.
    pub(crate) async fn leader(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no leader");
            for member in self.members.values().filter(|member| member.leads()) {
                if member.node.read_index_here().await.is_ok() {
                    return member.id;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("a member")
    }

    /// Waits until all members have the same revision, at least `at_least`, and returns it.
    pub(crate) async fn caught_up(&self, at_least: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let revisions: Vec<u64> = self.members.values().map(Member::revision).collect();
            if revisions.iter().all(|revision| *revision == revisions[0] && *revision >= at_least) {
                return revisions[0];
            }
            assert!(Instant::now() < deadline, "not caught up: {revisions:?}, wanted {at_least}");
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) fn settings(heartbeat: u64, election_min: u64, election_max: u64) -> Settings {
    Settings {
        heartbeat: Duration::from_millis(heartbeat),
        election_min: Duration::from_millis(election_min),
        election_max: Duration::from_millis(election_max),
        snapshot_log_bytes: 1 << 30,
        rates: Default::default(),
        quota: (0, 0),
        space_reserve_bytes: 0,
        log_kept: LogKept::default(),
        erase_after: Duration::from_secs(86_400),
        expected_nodes: vec!["n*".to_owned()],
        digest_interval: Duration::from_secs(3600),
    }
}

pub(crate) fn create(name: &str) -> Command {
    Command::CreateAccount { username: name.into(), password_hash: "hash".into(), request_id: None, invitation: None }
}

/// Proposes an account and expects it to be created.
pub(crate) async fn make(node: &Node, name: &str) -> Revision {
    match node.propose(create(name), None, Instant::now() + PATIENCE).await {
        Ok(Outcome::AccountCreated { revision, .. }) => revision,
        other => panic!("{name}: {other:?}"),
    }
}

/// Copies the files of a node as a crash at this moment would leave them.
pub(crate) fn crash_image(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for name in ["log.db", "log.db-wal", "log.db-end", "chat.db", "chat.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).expect("copied");
        }
    }
}
