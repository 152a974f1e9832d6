//! Assembles a node's Raft, in steps: its files ([`Opened`]), what openraft's callbacks share with the node
//! ([`Shared`]), Raft itself, and what runs beside it.
//!
//! Does not cover: bootstrapping a cluster (`bootstrap`), and serving the peer port (`transport::server`).

use std::{path::PathBuf, sync::Arc, time::Duration};

use openraft::{Config, SnapshotPolicy};
use storage::{AppliedState, FirstFailure, Identity, LogDb, Readers, SharedState};
use tokio::sync::{mpsc, watch};
use trace::Tracer;

use crate::{
    admission::{Admission, Rates, RefusalCounts},
    audit::Auditor,
    bootstrap::Bootstrap,
    commitments::{self, Commitments, Held, Inquiry},
    disk::Disk,
    error::StartError,
    freshness::{Clocks, QuorumAge},
    lapses::Lapses,
    node::{Node, NodeParts, failover::PROBE_SHARE},
    observer::Observer,
    proposer::{self, ProposalCounts, Proposer},
    read_index::{self, ReadIndex},
    space::Space,
    store::{
        log::LogStore,
        state_machine::{Raft, StateMachineAdapter},
    },
    tasks::{
        self,
        retention::Retention,
        snapshot::{LogKept, Sending},
    },
    traced::Traced,
    transfer::Transfers,
    transport::{
        client::{AppendContext, NetworkFactory},
        convert,
        leader_client::LeaderClient,
        peers::{Credentials, Peers},
    },
    types::LogId,
    view,
};

/// Lag in entries above which a follower is sent a snapshot instead.
const LAG_MAX: u64 = 200_000;
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
    /// What is kept of the log behind a snapshot, so that a follower that was away for a while needs no snapshot.
    pub log_kept: LogKept,
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
/// are off. See also the invariants of the crate.
pub(crate) fn config(settings: &Settings) -> Result<Config, StartError> {
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
        max_in_snapshot_log_to_keep: settings.log_kept.entries,
        // A follower that is further behind is sent a snapshot although the log still reaches back to it.
        replication_lag_threshold: LAG_MAX,
        // Purges many entries at once rather than some after every snapshot. Few are purged at once if few are to be
        // kept.
        purge_batch_size: (settings.log_kept.entries / 16).clamp(1, 1024),
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        backoff: "50ms 100ms ...500ms".into(),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Config(error.to_string()))
}

/// Starts Raft. The node takes part at once if it is a member.
///
/// # Errors
/// See [`StartError`].
pub async fn start(parts: Parts) -> Result<Node, StartError> {
    let config = Arc::new(config(&parts.settings)?);
    let opened = Opened::new(parts).await?;
    let shared = Shared::new(&opened);
    let (applied_sender, applied) = watch::channel(opened.state.log_id.map(convert::log_id));
    let raft = opened.start_raft(config, &shared, applied_sender).await?;
    shared.quorum_age.follow(&raft);
    let sending = shared.sending.clone();
    let node = opened.node(raft, shared, applied);
    opened.spawn_tasks(&node, sending);
    Ok(node)
}

/// The files of a node, and what they contain. They agree with what the node owes to others (see [`commitments`]).
struct Opened {
    parts: Parts,
    state: AppliedState,
}

/// What openraft's callbacks and the node share.
struct Shared {
    auditor: Arc<Auditor>,
    traced: Arc<Traced>,
    quorum_age: QuorumAge,
    commitments: Commitments,
    transfers: Transfers,
    space: Space,
    sending: Sending,
    refusals: Arc<RefusalCounts>,
    counts: Arc<ProposalCounts>,
}

impl Shared {
    fn new(opened: &Opened) -> Self {
        let Opened { parts, state, .. } = opened;
        let lapses = Lapses::new(parts.settings.election_max * tasks::lease::ELECTIONS);
        Self {
            auditor: Arc::new(Auditor::new(parts.identity.node_id, state, Arc::clone(&parts.sink))),
            traced: Traced::new(parts.tracer.clone()),
            quorum_age: QuorumAge::default(),
            commitments: Commitments::default(),
            transfers: Transfers::default(),
            space: Space::at_start(&parts.data_dir, parts.settings.space_reserve_bytes),
            sending: Sending::default(),
            refusals: Arc::default(),
            counts: Arc::new(ProposalCounts::new(lapses)),
        }
    }
}

impl Opened {
    async fn new(parts: Parts) -> Result<Self, StartError> {
        let state = parts.state.applied().map_err(StartError::Storage)?;
        let held = Held::now(&parts.log, state.log_id.map(convert::log_id));
        let inquiry = Inquiry {
            identity: &parts.identity,
            peers: &parts.peers,
            credentials: &parts.credentials,
            members: &state.membership,
            seed_addresses: &parts.seed_addresses,
        };
        let checked = commitments::check(&inquiry, &held).await;
        checked.inspect_err(|error| parts.failure.note("", error)).map_err(StartError::Storage)?;
        Ok(Self { parts, state })
    }

    /// Starts Raft itself. `applied` is closed when its state machine has ended.
    async fn start_raft(
        &self,
        config: Arc<Config>,
        shared: &Shared,
        applied: watch::Sender<Option<LogId>>,
    ) -> Result<Raft, StartError> {
        let parts = &self.parts;
        let context = self.append_context(shared);
        let network = NetworkFactory::new(Arc::clone(&parts.peers), parts.credentials.clone(), context);
        let log = LogStore::new(parts.log.clone(), parts.failure.clone(), Arc::clone(&shared.traced));
        let state_machine = self.state_machine(shared, applied);
        let raft = Raft::new(parts.identity.node_id, config, network, log, state_machine).await;
        raft.map_err(|fatal| StartError::Fatal(fatal.to_string()))
    }

    fn append_context(&self, shared: &Shared) -> AppendContext {
        AppendContext {
            clocks: Clocks::default(),
            declined: shared.transfers.declined().clone(),
            quorum_age: shared.quorum_age.clone(),
            commitments: shared.commitments.clone(),
            log: self.parts.log.clone(),
            space: shared.space.clone(),
            sending: shared.sending.clone(),
            observer: Arc::clone(&self.parts.sink),
            traced: Arc::clone(&shared.traced),
        }
    }

    fn state_machine(&self, shared: &Shared, applied: watch::Sender<Option<LogId>>) -> StateMachineAdapter {
        let parts = &self.parts;
        StateMachineAdapter {
            state: parts.state.clone(),
            durability: Arc::new(parts.log.clone()),
            readers: Arc::clone(&parts.readers),
            sink: Arc::clone(&parts.sink),
            auditor: Arc::clone(&shared.auditor),
            applied,
            failure: parts.failure.clone(),
            traced: Arc::clone(&shared.traced),
        }
    }

    /// Returns the handle of the node, with the tasks that answer it.
    fn node(&self, raft: Raft, shared: Shared, applied: watch::Receiver<Option<LogId>>) -> Node {
        let Parts { settings, peers, credentials, .. } = &self.parts;
        let (heard, hearing) = watch::channel(None);
        let view = view::follow(&raft, hearing);
        let leader = LeaderClient::new(view.clone(), Arc::clone(peers), credentials.clone());
        let read_index = ReadIndex::new(raft.clone(), leader.clone());
        let (reads, read_queue) = mpsc::channel(read_index::QUEUE_MAX);
        tokio::spawn(tasks::read_index::run(read_index.clone(), applied.clone(), read_queue));
        let (jobs, queue) = mpsc::channel(proposer::QUEUE_MAX);
        let proposer = Proposer {
            counts: Arc::clone(&shared.counts),
            raft: raft.clone(),
            view: view.clone(),
            leader: leader.clone(),
            tracer: shared.traced.tracer().clone(),
            queue,
            admission: Admission::new(settings.rates),
            refusals: Arc::clone(&shared.refusals),
            space: shared.space.clone(),
            quota: settings.quota,
            stamped_ms: self.state.clock.0,
        };
        tokio::spawn(proposer.run());
        Node::new(NodeParts {
            raft,
            identity: self.parts.identity.clone(),
            disk: Disk { log: self.parts.log.clone(), state: self.parts.state.clone() },
            view,
            heard,
            applied,
            auditor: shared.auditor,
            jobs,
            counts: shared.counts,
            reads,
            read_index,
            quorum_age: shared.quorum_age,
            commitments: shared.commitments,
            leader,
            peers: Arc::clone(peers),
            credentials: credentials.clone(),
            election_max: settings.election_max,
            probe_max: settings.election_min / PROBE_SHARE,
            heartbeat: settings.heartbeat,
            transfers: shared.transfers,
            expected_nodes: settings.expected_nodes.clone(),
            failure: self.parts.failure.clone(),
            tracer: shared.traced.tracer().clone(),
            space: shared.space,
            rates: settings.rates,
            refusals: shared.refusals,
        })
    }

    /// Starts the tasks that run alongside Raft for as long as the node does.
    fn spawn_tasks(&self, node: &Node, sending: Sending) {
        let Parts { settings, readers, data_dir, bootstrap, seed_addresses, .. } = &self.parts;
        self.keep_files_small(node.raft(), sending);
        tasks::moves::follow(node, bootstrap, seed_addresses.clone());
        tokio::spawn(tasks::disk_space::watch(node.clone(), data_dir.clone(), settings.space_reserve_bytes));
        let auditor = Arc::clone(node.auditor());
        tokio::spawn(tasks::audit::run(node.downgrade(), auditor, settings.digest_interval));
        tokio::spawn(tasks::erase::run(node.downgrade(), Arc::clone(readers)));
        tokio::spawn(tasks::membership::keep(node.clone()));
        tokio::spawn(tasks::slow_disk::watch(node.clone(), settings.election_max * tasks::slow_disk::ELECTIONS));
        tokio::spawn(tasks::lease::watch(node.clone()));
        tokio::spawn(tasks::failover::watch(node.clone()));
    }

    /// Starts the tasks that cut the log by its size and by the age of deleted content.
    fn keep_files_small(&self, raft: &Raft, sending: Sending) {
        let Parts { settings, log, state, .. } = &self.parts;
        let sizes = (settings.snapshot_log_bytes, settings.log_kept);
        tokio::spawn(tasks::snapshot::keep_log_short(raft.clone(), log.clone(), sizes, sending));
        let retention =
            Retention { raft: raft.clone(), log: log.clone(), state: state.clone(), delay: settings.erase_after };
        tokio::spawn(retention.run());
    }
}
