//! Puts a node's Raft together, and keeps its log short.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use openraft::{Config, SnapshotPolicy, async_runtime::WatchReceiver as _};
use tokio::sync::{Mutex, mpsc, watch};

use super::{
    admission::{Admission, Rates},
    auditor::{self, Auditor},
    bootstrap::Founding,
    convert, eraser,
    error::StartError,
    freshness::{Freshness, QuorumAge},
    lease::{self, Lapses},
    log_store::LogStore,
    members,
    network::{NetworkFactory, Told},
    node::{Inner, Node},
    peers::{Credentials, Peers},
    promises::{self, Held, Promises},
    proposer::{self, ProposalCounts, Proposer},
    read_gate::{self, ReadIndex},
    retention::Retention,
    slow_disk::{self, Disk},
    snapshots::SnapshotStore,
    space::{self, Space},
    state_machine::{Observer, StateMachineAdapter},
    traced::Traced,
    types::Raft,
    view,
};
use crate::{
    blocking, planted,
    storage::{FirstFailure, Identity, LogDb, Readers, SharedState},
    trace::Tracer,
};

/// Entries that a follower may be behind before it is sent a snapshot instead of them.
const LAG_MAX: u64 = 200_000;
/// Entries after which a snapshot is due, whatever their size: a restart replays them.
const SNAPSHOT_ENTRIES: u64 = 200_000;
/// How often it is looked whether a snapshot is due.
const SNAPSHOT_CHECK: Duration = Duration::from_secs(5);
/// A snapshot has this long to be sent and installed.
const SNAPSHOT_TIMEOUT_MS: u64 = 10 * 60 * 1000;

/// Timing and sizes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// Shortest silence of the leader before an election.
    pub election_min: Duration,
    /// Longest such silence; also the leader's lease.
    pub election_max: Duration,
    /// Bytes of log after which a snapshot is made.
    pub snapshot_log_bytes: u64,
    /// Log entries kept behind a snapshot, so that a follower that was away for a while needs no snapshot.
    pub log_entries_kept: u64,
    /// How long the files may hold what was deleted.
    pub erase_after: Duration,
    /// Names of nodes that may join without a token, beside the members; a `*` at the end stands for any rest.
    pub expected_nodes: Vec<String>,
    /// How often the nodes compare the digests of their states, when something changed.
    pub digest_interval: Duration,
    /// What an account may do in a second.
    pub rates: Rates,
    /// Most messages and bytes of bodies that an account may store; 0: any number.
    pub quota: (u64, u64),
    /// Free bytes of the volume below which growth is refused.
    pub space_reserve_bytes: u64,
}

/// What a node is made of.
pub struct Parts {
    /// Who it is.
    pub identity: Identity,
    /// How it presents itself.
    pub founding: Founding,
    /// Timing and sizes.
    pub settings: Settings,
    /// Its log.
    pub log: LogDb,
    /// Its state.
    pub state: SharedState,
    /// Connections that read the state.
    pub readers: Arc<Readers>,
    /// Where its files are.
    pub data_dir: PathBuf,
    /// Who is told what was applied.
    pub sink: Arc<dyn Observer>,
    /// Connections to the others.
    pub peers: Arc<Peers>,
    /// How it identifies itself to the others.
    pub credentials: Credentials,
    /// Peer addresses of nodes that may know this one, beside the members that its state names.
    pub acquaintances: Vec<String>,
    /// Where the first failure of its files is noted.
    pub failure: FirstFailure,
    /// Records what is done for messages.
    pub tracer: Tracer,
}

/// openraft's configuration. Two of these settings keep data safe; see the module's invariants.
pub(super) fn config(settings: &Settings) -> Result<Config, StartError> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "quorum-chat".into(),
        heartbeat_interval: ms(settings.heartbeat),
        election_timeout_min: ms(settings.election_min),
        election_timeout_max: ms(settings.election_max),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(planted::is(planted::LEADER_RESTORED)),
        allow_log_reversion: Some(false),
        max_payload_entries: 1024,
        max_append_entries: Some(4096),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: settings.log_entries_kept,
        // A follower that is further behind is sent a snapshot although the log still reaches back to it.
        replication_lag_threshold: LAG_MAX,
        // Rather than some entries after every snapshot; but whoever keeps few means it.
        purge_batch_size: (settings.log_entries_kept / 16).clamp(1, 1024),
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        backoff: "50ms 100ms ...500ms".into(),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Config(error.to_string()))
}

/// Cuts the log by its size, and by the age of what was deleted.
fn keep_files_small(
    (raft, log, state, snapshots): (Raft, LogDb, SharedState, Arc<SnapshotStore>),
    node_id: u64,
    settings: &Settings,
    space: Space,
) {
    let bytes = settings.snapshot_log_bytes;
    tokio::spawn(keep_log_short(raft.clone(), log.clone(), node_id, bytes, space.clone()));
    let delay = settings.erase_after;
    tokio::spawn(Retention { raft, log, state, snapshots, node_id, delay, space }.run());
}

/// Starts Raft. The node takes part at once, if it is a member.
///
/// # Errors
/// See [`StartError`].
pub async fn start(parts: Parts) -> Result<(Node, Arc<SnapshotStore>), StartError> {
    let config = Arc::new(config(&parts.settings)?);
    let data_dir = parts.data_dir.clone();
    let opened = blocking::io(move || SnapshotStore::open(&data_dir)).await;
    let snapshots = Arc::new(opened.map_err(StartError::Snapshots)?);
    let disk = Disk { log: parts.log.clone(), state: parts.state.clone() };
    let state = parts.state.applied().map_err(StartError::Storage)?;
    let held = Held::now(&parts.log, state.log_id.map(convert::log_id));
    let recalled = promises::recall(&parts, &state.membership, &held).await;
    recalled.inspect_err(|error| parts.failure.note("", error)).map_err(StartError::Storage)?;
    let (applied_sender, applied) = watch::channel(state.log_id.map(convert::log_id));
    let auditor = Arc::new(Auditor::new(parts.identity.node_id, &state, Arc::clone(&parts.sink)));
    let (observer, traced) = (Arc::clone(&parts.sink), Traced::new(parts.tracer));
    let (readers, retained, rates) = (Arc::clone(&parts.readers), parts.state.clone(), parts.settings.rates);
    let adapter = StateMachineAdapter::new(
        parts.state,
        Arc::new(parts.log.clone()),
        parts.readers,
        Arc::clone(&snapshots),
        parts.sink,
        Arc::clone(&auditor),
        applied_sender,
        parts.failure.clone(),
        Arc::clone(&traced),
    );
    let (quorum_age, promises, refusals) = (QuorumAge::default(), Promises::default(), Arc::default());
    let space = Space::at_start(&parts.data_dir, parts.settings.space_reserve_bytes);
    let tracer = traced.tracer().clone();
    let told = Told {
        quorum_age: quorum_age.clone(),
        promises: promises.clone(),
        log: parts.log.clone(),
        space: space.clone(),
        observer,
        traced: traced.clone(),
    };
    let network = NetworkFactory::new(Arc::clone(&parts.peers), parts.credentials.clone(), told);
    let log_store = LogStore::new(parts.log.clone(), parts.failure.clone(), Arc::clone(&traced));
    let started = Raft::new(parts.identity.node_id, config, network, log_store, adapter).await;
    let raft = started.map_err(|fatal| StartError::Fatal(fatal.to_string()))?;
    quorum_age.follow(&raft);
    let (heard, hearing) = watch::channel(None);
    let view = view::follow(&raft, hearing);
    let read_index = ReadIndex::new(&raft, &view, &parts.peers, &parts.credentials);
    let (jobs, job_queue) = mpsc::channel(proposer::QUEUE_MAX);
    let (reads, read_queue) = mpsc::channel(read_gate::QUEUE_MAX);
    let counts = Arc::new(ProposalCounts::new(Lapses::new(parts.settings.election_max * lease::ELECTIONS)));
    let proposer = Proposer {
        counts: Arc::clone(&counts),
        raft: raft.clone(),
        view: view.clone(),
        peers: Arc::clone(&parts.peers),
        credentials: parts.credentials.clone(),
        tracer: tracer.clone(),
        queue: job_queue,
        admission: Admission::new(rates),
        refusals: Arc::clone(&refusals),
        space: space.clone(),
        quota: parts.settings.quota,
        stamped_ms: state.clock.0,
    };
    tokio::spawn(proposer.run());
    tokio::spawn(read_gate::run(read_index.clone(), applied.clone(), read_queue));
    let kept = (raft.clone(), parts.log.clone(), retained, Arc::clone(&snapshots));
    keep_files_small(kept, parts.identity.node_id, &parts.settings, space.clone());
    let inner = Arc::new(Inner {
        raft,
        log: parts.log,
        identity: parts.identity,
        view,
        heard,
        applied,
        auditor: Arc::clone(&auditor),
        jobs,
        counts,
        reads,
        read_index,
        freshness: Arc::new(Freshness::default()),
        quorum_age,
        promises,
        peers: parts.peers,
        credentials: parts.credentials,
        leader_wait: parts.settings.election_max * 3,
        election_max: parts.settings.election_max,
        transfer: Mutex::new(()),
        membership: Mutex::new(()),
        expected_nodes: parts.settings.expected_nodes.clone(),
        failure: parts.failure,
        tracer,
        disk,
        attempts: OnceLock::new(),
        space,
        charges: std::sync::Mutex::new(Admission::new(rates)),
        refusals,
        handovers: AtomicU64::new(0),
    });
    let node = Node { inner };
    spawn_keepers(&node, (auditor, readers, parts.data_dir), &parts.settings, (&parts.founding, parts.acquaintances));
    Ok((node, snapshots))
}

/// Starts the tasks that run beside Raft for as long as the node does.
fn spawn_keepers(
    node: &Node,
    (auditor, readers, dir): (Arc<Auditor>, Arc<Readers>, PathBuf),
    settings: &Settings,
    (founding, acquaintances): (&Founding, Vec<String>),
) {
    members::moves::follow(node, founding, acquaintances);
    tokio::spawn(space::watch(node.clone(), dir, settings.space_reserve_bytes));
    tokio::spawn(auditor::run(Arc::downgrade(&node.inner), auditor, settings.digest_interval));
    tokio::spawn(eraser::run(Arc::downgrade(&node.inner), readers));
    tokio::spawn(members::keep(node.clone()));
    tokio::spawn(slow_disk::watch(node.clone(), settings.election_max * slow_disk::ELECTIONS));
    tokio::spawn(lease::watch(node.clone()));
}

impl Node {
    /// Makes this node the founder of a cluster of `members`. Does nothing when it was initialized before.
    ///
    /// # Errors
    /// Raft refused, or stopped.
    pub async fn initialize(
        &self,
        members: std::collections::BTreeMap<u64, super::NodeRecord>,
    ) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        if raft.is_initialized().await.map_err(|fatal| StartError::Fatal(fatal.to_string()))? {
            return Ok(());
        }
        raft.initialize(members).await.map_err(|error| StartError::Fatal(error.to_string()))
    }
}

/// Makes a snapshot whenever the log has grown enough, after which openraft purges the log. The nodes differ in when
/// they do it, so that never all of them copy their database at the same moment.
async fn keep_log_short(raft: Raft, log: LogDb, node_id: u64, bytes: u64, space: Space) {
    let stagger = 10 + node_id % 10;
    let (bytes_due, entries_due) = (bytes / 10 * stagger, SNAPSHOT_ENTRIES / 10 * stagger);
    let mut bytes_done = 0;
    let mut metrics = raft.data_metrics();
    loop {
        tokio::time::sleep(SNAPSHOT_CHECK).await;
        let (applied, snapshot) = {
            let metrics = metrics.borrow_watched();
            (metrics.last_applied.map_or(0, |id| id.index), metrics.snapshot.map_or(0, |id| id.index))
        };
        let appended = log.appended_bytes();
        if appended - bytes_done < bytes_due && applied.saturating_sub(snapshot) < entries_due {
            continue;
        }
        // It takes the space of the whole state, and a failed one would end the node.
        if !space.has_room(None) {
            continue;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        bytes_done = appended;
        // Until it is done: a large database takes longer to copy than the next look.
        while metrics.borrow_watched().snapshot.map_or(0, |id| id.index) <= snapshot {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}
