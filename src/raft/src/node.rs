//! A running cluster member: the interface of Raft for the layers above.
//!
//! The state of a node is private to this module and its children. Each child has the methods of one topic:
//!
//! - `propose` for commands, `read` for linearizable reads, `status` for the node and its cluster;
//! - `attempts` and `charges` for what is counted against an account;
//! - `transfer` and `failover` for leadership, `waits` for the waits that end with a stop, `lifecycle` for start and
//!   stop;
//! - `membership`, `joining` and `moves` for the members;
//! - `messages` and `commitments` for what a node checks and records when a peer calls;
//! - `unchecked` for tests.
//!
//! Invariant: a node uses nothing above it. The tasks, the peer service and the start use a node only through its
//! methods.
//!
//! Does not cover: what runs beside Raft (`tasks`), the peer port (`transport::server`), and assembling the parts
//! (`start`).

mod attempts;
mod charges;
mod commitments;
pub(crate) mod failover;
mod joining;
mod lifecycle;
mod membership;
mod messages;
mod moves;
pub(crate) mod propose;
mod read;
mod status;
mod transfer;
mod unchecked;
mod waits;

use std::{
    sync::{Arc, Mutex as StdMutex, OnceLock, Weak, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::{Mutex, mpsc, watch};

use failover::Failover;

use crate::{
    admission::{Admission, Rates, RefusalCounts},
    attempts::AttemptLimiter,
    audit::Auditor,
    commitments::Commitments,
    disk::Disk,
    freshness::{Freshness, QuorumAge},
    lapses::Lapses,
    proposer::{Job, ProposalCounts},
    read_index::{ReadIndex, Waiter},
    space::Space,
    store::state_machine::Raft,
    transfer::Transfers,
    transport::{
        leader_client::LeaderClient,
        peers::{Credentials, Peers},
    },
    types::LogId,
    view::{Heard, View},
};
use storage::{FirstFailure, Identity};
use trace::Tracer;

/// A handle of a running member. All clones refer to the same member.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// A handle that does not keep the member alive.
pub(crate) struct WeakNode(Weak<Inner>);

impl WeakNode {
    /// The member, unless all its handles are gone.
    pub(crate) fn upgrade(&self) -> Option<Node> {
        self.0.upgrade().map(|inner| Node { inner })
    }
}

/// The parts of a node that exist before it does.
pub(crate) struct NodeParts {
    pub raft: Raft,
    pub identity: Identity,
    /// The node's log and its state.
    pub disk: Disk,
    pub view: watch::Receiver<View>,
    /// Leaders whose appends this node received, for `view`.
    pub heard: watch::Sender<Heard>,
    /// Position of the node's state.
    pub applied: watch::Receiver<Option<LogId>>,
    pub auditor: Arc<Auditor>,
    /// Queue of the proposer.
    pub jobs: mpsc::Sender<Job>,
    pub counts: Arc<ProposalCounts>,
    /// Queue of the reads that wait for a read index.
    pub reads: mpsc::Sender<Waiter>,
    pub read_index: ReadIndex,
    pub quorum_age: QuorumAge,
    pub commitments: Commitments,
    pub leader: LeaderClient,
    pub peers: Arc<Peers>,
    pub credentials: Credentials,
    /// Longest silence of a follower that still counts as healthy.
    pub election_max: Duration,
    /// Longest probe of a leader on a network without delay.
    pub probe_max: Duration,
    /// Interval between heartbeats of a leader.
    pub heartbeat: Duration,
    pub transfers: Transfers,
    /// See [`crate::Settings::expected_nodes`].
    pub expected_nodes: Vec<String>,
    pub failure: FirstFailure,
    pub tracer: Tracer,
    pub space: Space,
    pub rates: Rates,
    pub refusals: Arc<RefusalCounts>,
}

struct Inner {
    raft: Raft,
    identity: Identity,
    disk: Disk,
    view: watch::Receiver<View>,
    heard: watch::Sender<Heard>,
    applied: watch::Receiver<Option<LogId>>,
    auditor: Arc<Auditor>,
    jobs: mpsc::Sender<Job>,
    counts: Arc<ProposalCounts>,
    reads: mpsc::Sender<Waiter>,
    read_index: ReadIndex,
    freshness: Freshness,
    quorum_age: QuorumAge,
    commitments: Commitments,
    leader: LeaderClient,
    peers: Arc<Peers>,
    credentials: Credentials,
    /// How long a command or a read waits for a leader before it fails with `NoLeader`.
    leader_wait: Duration,
    /// Longest silence of a follower that still counts as healthy.
    election_max: Duration,
    transfers: Transfers,
    failover: Failover,
    /// Held during a membership change, so that only one runs at a time.
    membership: Mutex<()>,
    expected_nodes: Vec<String>,
    failure: FirstFailure,
    tracer: Tracer,
    space: Space,
    /// Rates of the changes that are charged on this node rather than on the leader.
    charges: StdMutex<Admission>,
    refusals: Arc<RefusalCounts>,
    /// Limiter of login and registration attempts, used while this node leads.
    attempts: OnceLock<Arc<dyn AttemptLimiter>>,
    /// Number of leadership transfers because of a slow disk.
    slow_disk_transfers: AtomicU64,
}

impl Node {
    /// A node of these parts, whose Raft runs already.
    pub(crate) fn new(parts: NodeParts) -> Self {
        let inner = Inner {
            raft: parts.raft,
            identity: parts.identity,
            disk: parts.disk,
            view: parts.view,
            heard: parts.heard,
            applied: parts.applied,
            auditor: parts.auditor,
            jobs: parts.jobs,
            counts: parts.counts,
            reads: parts.reads,
            read_index: parts.read_index,
            freshness: Freshness::default(),
            quorum_age: parts.quorum_age,
            commitments: parts.commitments,
            leader: parts.leader,
            peers: parts.peers,
            credentials: parts.credentials,
            leader_wait: parts.election_max * 3,
            election_max: parts.election_max,
            transfers: parts.transfers,
            failover: Failover::new(parts.probe_max, parts.heartbeat),
            membership: Mutex::new(()),
            expected_nodes: parts.expected_nodes,
            failure: parts.failure,
            tracer: parts.tracer,
            space: parts.space,
            charges: StdMutex::new(Admission::new(parts.rates)),
            refusals: parts.refusals,
            attempts: OnceLock::new(),
            slow_disk_transfers: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A handle that does not keep this node alive.
    pub(crate) fn downgrade(&self) -> WeakNode {
        WeakNode(Arc::downgrade(&self.inner))
    }

    /// A watch on this node's view of the cluster.
    pub fn view(&self) -> watch::Receiver<View> {
        self.inner.view.clone()
    }

    /// openraft, for the calls of peers that go to it.
    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    /// The node's identity.
    pub(crate) fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The credentials that this node presents to the others, and that name the calls meant for it.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// The files whose writes this node waits for.
    pub(crate) fn written_files(&self) -> &Disk {
        &self.inner.disk
    }

    /// The space on this node's volume and on those of the others.
    pub(crate) fn volumes(&self) -> &Space {
        &self.inner.space
    }

    /// The age of this node's state, and its clock.
    pub(crate) fn freshness(&self) -> &Freshness {
        &self.inner.freshness
    }

    /// Time since this node last had a quorum as the leader.
    pub(crate) fn quorum_age(&self) -> Option<Duration> {
        self.inner.quorum_age.get()
    }

    /// The comparisons of this node's state with those of the others.
    pub(crate) fn auditor(&self) -> &Arc<Auditor> {
        &self.inner.auditor
    }

    /// The times at which this node refused commands as the leader because its lease had expired.
    pub(crate) fn lapses(&self) -> &Lapses {
        self.inner.counts.lapses()
    }
}
