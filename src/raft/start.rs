//! Assembles a node's Raft, and keeps its log short.

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
    bootstrap::Bootstrap,
    commitments::{self, Commitments, Held},
    convert, eraser,
    error::StartError,
    freshness::{Clocks, Freshness, QuorumAge},
    lease::{self, Lapses},
    log_store::LogStore,
    members,
    network::{AppendContext, NetworkFactory},
    node::{Inner, Node},
    peers::{Credentials, Peers},
    proposer::{self, ProposalCounts, Proposer},
    read_gate::{self, ReadIndex},
    retention::Retention,
    slow_disk::{self, Disk},
    snapshots::SnapshotStore,
    space::{self, Space},
    state_machine::{Observer, StateMachineAdapter},
    traced::Traced,
    transfer::Transfers,
    types::Raft,
    view,
};
use crate::{
    blocking, failpoints,
    storage::{FirstFailure, Identity, LogDb, Readers, SharedState},
    trace::Tracer,
};

/// Lag in entries above which a follower is sent a snapshot instead.
const LAG_MAX: u64 = 200_000;
/// Entries after which a snapshot is due, whatever their size, since a restart replays them.
const SNAPSHOT_ENTRIES: u64 = 200_000;
/// Interval between checks whether a snapshot is due.
const SNAPSHOT_CHECK: Duration = Duration::from_secs(5);
/// Time limit for sending and installing a snapshot, in ms.
const SNAPSHOT_TIMEOUT_MS: u64 = 10 * 60 * 1000;

/// Timing and sizes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Interval between heartbeats of the leader.
    pub heartbeat: Duration,
    /// Shortest silence of the leader before an election.
    pub election_min: Duration,
    /// Longest such silence; also the leader's lease.
    pub election_max: Duration,
    /// Bytes appended to the log after which a snapshot is made.
    pub snapshot_log_bytes: u64,
    /// Log entries kept behind a snapshot, so that a follower that was away for a while needs no snapshot.
    pub log_entries_kept: u64,
    /// Longest time that the files may hold deleted content.
    pub erase_after: Duration,
    /// Names of nodes that may join without a token, in addition to the members. A `*` at the end stands for any rest.
    pub expected_nodes: Vec<String>,
    /// Interval at which the nodes compare the digests of their states, when something changed.
    pub digest_interval: Duration,
    /// Rates of each account.
    pub rates: Rates,
    /// Most messages and bytes of bodies that an account may store; 0: unlimited.
    pub quota: (u64, u64),
    /// Free bytes of the volume below which growth is refused.
    pub space_reserve_bytes: u64,
}

/// The parts of a node.
pub struct Parts {
    /// Identity of the node.
    pub identity: Identity,
    /// Advertised name and addresses of the node, and the state of its bootstrap.
    pub bootstrap: Bootstrap,
    /// Timing and sizes.
    pub settings: Settings,
    /// The node's log.
    pub log: LogDb,
    /// The node's state.
    pub state: SharedState,
    /// Connections that read the state.
    pub readers: Arc<Readers>,
    /// Directory of the node's files.
    pub data_dir: PathBuf,
    /// Observer of what the node applies.
    pub sink: Arc<dyn Observer>,
    /// Connections to the other nodes.
    pub peers: Arc<Peers>,
    /// Credentials that the node presents to the others.
    pub credentials: Credentials,
    /// Seed addresses: peer addresses of nodes that may have this one as a member, in addition to the members in its
    /// state.
    pub seed_addresses: Vec<String>,
    /// Record of the first failure of the node's files.
    pub failure: FirstFailure,
    /// Recorder of the spans of traced messages.
    pub tracer: Tracer,
}

/// The openraft configuration. Two of these settings keep data safe: `enable_leader_restore` and `allow_log_reversion`
/// are off. See also the module's invariants.
pub(super) fn config(settings: &Settings) -> Result<Config, StartError> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "quorum-chat".into(),
        heartbeat_interval: ms(settings.heartbeat),
        election_timeout_min: ms(settings.election_min),
        election_timeout_max: ms(settings.election_max),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(failpoints::is_active(failpoints::LEADER_RESTORED)),
        allow_log_reversion: Some(false),
        max_payload_entries: 1024,
        max_append_entries: Some(4096),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: settings.log_entries_kept,
        // A follower that is further behind is sent a snapshot although the log still reaches back to it.
        replication_lag_threshold: LAG_MAX,
        // Purges many entries at once rather than some after every snapshot. Few are purged at once if few are to be
        // kept.
        purge_batch_size: (settings.log_entries_kept / 16).clamp(1, 1024),
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        backoff: "50ms 100ms ...500ms".into(),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Config(error.to_string()))
}

/// Starts the tasks that cut the log by its size and by the age of deleted content.
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

/// Starts Raft. The node takes part at once if it is a member.
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
    commitments::check(&parts, &state.membership, &held).await.map_err(StartError::Storage)?;
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
    let (quorum_age, commitments, refusals, transfers) = <(QuorumAge, Commitments, Arc<_>, Transfers)>::default();
    let space = Space::at_start(&parts.data_dir, parts.settings.space_reserve_bytes);
    let context = AppendContext {
        clocks: Clocks::default(),
        declined: transfers.declined(),
        quorum_age: quorum_age.clone(),
        commitments: commitments.clone(),
        log: parts.log.clone(),
        space: space.clone(),
        observer,
        traced: traced.clone(),
    };
    let network = NetworkFactory::new(Arc::clone(&parts.peers), parts.credentials.clone(), context);
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
        tracer: traced.tracer().clone(),
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
        commitments,
        peers: parts.peers,
        credentials: parts.credentials,
        leader_wait: parts.settings.election_max * 3,
        election_max: parts.settings.election_max,
        transfers,
        membership: Mutex::new(()),
        expected_nodes: parts.settings.expected_nodes.clone(),
        failure: parts.failure,
        tracer: traced.tracer().clone(),
        disk,
        attempts: OnceLock::new(),
        space,
        charges: std::sync::Mutex::new(Admission::new(rates)),
        refusals,
        slow_disk_transfers: AtomicU64::new(0),
    });
    let node = Node { inner };
    spawn_keepers(&node, (auditor, readers, parts.data_dir), &parts.settings, (&parts.bootstrap, parts.seed_addresses));
    Ok((node, snapshots))
}

/// Starts the tasks that run alongside Raft for as long as the node does.
fn spawn_keepers(
    node: &Node,
    (auditor, readers, dir): (Arc<Auditor>, Arc<Readers>, PathBuf),
    settings: &Settings,
    (bootstrap, seed_addresses): (&Bootstrap, Vec<String>),
) {
    members::moves::follow(node, bootstrap, seed_addresses);
    tokio::spawn(space::watch(node.clone(), dir, settings.space_reserve_bytes));
    tokio::spawn(auditor::run(Arc::downgrade(&node.inner), auditor, settings.digest_interval));
    tokio::spawn(eraser::run(Arc::downgrade(&node.inner), readers));
    tokio::spawn(members::keep(node.clone()));
    tokio::spawn(slow_disk::watch(node.clone(), settings.election_max * slow_disk::ELECTIONS));
    tokio::spawn(lease::watch(node.clone()));
}

impl Node {
    /// Bootstraps a cluster of `members` from this node. Does nothing if the node was initialized before.
    ///
    /// # Errors
    /// Raft rejected the members, or has stopped.
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

/// Makes a snapshot whenever the log has grown enough, after which openraft purges the log. Each node has its own
/// threshold, so that the nodes do not all copy their database at the same moment.
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
        // A snapshot takes the space of the whole state, and a failed one would end the node.
        if !space.has_room(None) {
            continue;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        bytes_done = appended;
        // Waits until the snapshot is done. Copying a large database takes longer than the interval between checks.
        while metrics.borrow_watched().snapshot.map_or(0, |id| id.index) <= snapshot {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}
