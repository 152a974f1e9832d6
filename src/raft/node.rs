//! A running cluster member: the interface of Raft for the layers above.

use std::{
    sync::{Arc, Mutex as StdMutex, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use openraft::{Instant as _, async_runtime::WatchReceiver as _};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{
    admission::{Admission, RefusalCounts},
    attempts::AttemptLimiter,
    auditor::Auditor,
    commitments::Commitments,
    convert,
    error::{ProposeError, ReadError, Refusal},
    freshness::{Freshness, QuorumAge},
    peers::{Credentials, Lane, Peers},
    proposer::{AttemptError, Claim, Job, ProposalCounts, Proposals},
    read_gate::{ReadIndex, Waiter},
    slow_disk::Disk,
    space::{Space, SpaceStatus},
    transfer::Transfers,
    types::{LogId, Raft},
    view::{self, Heard, Peer, Role, View},
};
use crate::{
    blocking,
    chat::{AccountId, Command, Outcome, Rejection},
    failpoints,
    proto::{log::v1 as pb, raft::v1 as wire},
    storage::{FirstFailure, Identity, LogDb, SharedState, codec, intake},
    trace::{Kind, TraceContext, Tracer},
};

/// Longest pause between two attempts. A change of the view ends it early.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// Reason for an unknown outcome when the node stops while a command is being replicated.
const STOPPING: &str = "this node is stopping";

/// A leader without a quorum for this many election timeouts is no longer reported as leader. Long enough to ride out a
/// slow disk or an election.
const LEADERLESS_ELECTIONS: u32 = 5;

/// Health of a member, as seen by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHealth {
    /// Raft id of the member.
    pub node_id: u64,
    /// Time since the member last answered the leader; `None`: no answer since the leader was elected.
    pub silent: Option<Duration>,
    /// Log entries that are not yet acknowledged by the member; `None`: unknown.
    pub lag_entries: Option<u64>,
}

/// Health of all members, as seen by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterHealth {
    /// The leader's term.
    pub term: u64,
    /// All members, the leader included.
    pub peers: Vec<PeerHealth>,
}

impl ClusterHealth {
    /// How many more of the voters among `members` may fail before the quorum is lost. A voter that has been silent for
    /// longer than `silence_max` counts as failed.
    pub fn failures_tolerated(&self, members: &[Peer], silence_max: Duration) -> u32 {
        let heard = |id: u64| {
            let health = self.peers.iter().find(|health| health.node_id == id);
            health.and_then(|health| health.silent).is_some_and(|silent| silent <= silence_max)
        };
        let voters = members.iter().filter(|member| member.voter);
        let healthy = voters.clone().filter(|member| heard(member.node_id)).count();
        u32::try_from(healthy.saturating_sub(voters.count() / 2 + 1)).unwrap_or(u32::MAX)
    }
}

/// State that exists only on a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leading {
    /// Time since the leader last had a quorum.
    pub quorum_age: Duration,
    /// Health of all members.
    pub cluster_health: ClusterHealth,
}

/// Status of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Raft id of the node.
    pub node_id: u64,
    /// Name that the operator gave the node.
    pub name: String,
    /// UUID of the cluster.
    pub cluster_id: String,
    /// The newest term that the node has seen.
    pub term: u64,
    /// Role of the node.
    pub role: Role,
    /// The leader, if the node has one that recently had a quorum. (Raft itself keeps the last leader until another one
    /// is elected.)
    pub leader: Option<Peer>,
    /// All members.
    pub members: Vec<Peer>,
    /// Index of the last entry in the node's log.
    pub last_log_index: u64,
    /// Commit index, as far as the node has learned it.
    pub committed_index: u64,
    /// Index of the last entry that is applied to the node's state.
    pub applied_index: u64,
}

/// A handle of a running member. All clones refer to the same member.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub raft: Raft,
    pub log: LogDb,
    pub identity: Identity,
    pub view: watch::Receiver<View>,
    pub heard: watch::Sender<Heard>,
    pub applied: watch::Receiver<Option<LogId>>,
    pub auditor: Arc<Auditor>,
    pub jobs: mpsc::Sender<Job>,
    pub counts: Arc<ProposalCounts>,
    pub reads: mpsc::Sender<Waiter>,
    pub read_index: ReadIndex,
    pub freshness: Arc<Freshness>,
    pub quorum_age: QuorumAge,
    pub commitments: Commitments,
    pub peers: Arc<Peers>,
    pub credentials: Credentials,
    /// How long a command or a read waits for a leader before it fails with `NoLeader`.
    pub leader_wait: Duration,
    /// Longest silence of a follower that still counts as healthy.
    pub election_max: Duration,
    /// Leadership transfers.
    pub transfers: Transfers,
    /// Held during a membership change, so that only one runs at a time.
    pub membership: Mutex<()>,
    /// See [`super::Settings::expected_nodes`].
    pub expected_nodes: Vec<String>,
    pub failure: FirstFailure,
    pub tracer: Tracer,
    pub disk: Disk,
    pub space: Space,
    /// Rates of the changes that are charged on this node rather than on the leader.
    pub charges: StdMutex<Admission>,
    pub refusals: Arc<RefusalCounts>,
    /// Limiter of login and registration attempts, used while this node leads.
    pub attempts: OnceLock<Arc<dyn AttemptLimiter>>,
    /// Number of leadership transfers because of a slow disk.
    pub slow_disk_transfers: AtomicU64,
}

impl Node {
    /// Replicates and applies a command, from any node, and returns its outcome.
    ///
    /// Every command can safely be applied twice: it carries an id or is idempotent. So an attempt with an unknown
    /// outcome is repeated until `deadline`, at a new leader if necessary.
    ///
    /// # Errors
    /// See [`ProposeError`]. After any error except [`ProposeError::OutcomeUnknown`], the command was not applied.
    pub async fn propose(
        &self,
        command: Command,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        self.propose_for(AccountId(0), command, trace, deadline).await
    }

    /// Like [`Node::propose`], for a command of an account. The command counts against the account's rates.
    ///
    /// # Errors
    /// See [`ProposeError`]. [`ProposeError::Refused`] if the account exceeds its rates, or if the volumes are low on
    /// space.
    pub async fn propose_for(
        &self,
        account: AccountId,
        command: Command,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        let command = codec::encode_command(&command);
        intake::check(&command).map_err(|problem| ProposeError::Unfit(problem.to_string()))?;
        let give_up_on_leader = deadline.min(Instant::now() + self.inner.leader_wait);
        let mut unknown: Option<String> = None;
        loop {
            let error = match self.attempt((account, command.clone()), trace, false, deadline).await {
                Ok(outcome) => return resolve(outcome, unknown),
                Err(error) => error,
            };
            let limit = match error {
                // An earlier attempt with an unknown outcome may have been applied.
                Attempt::Refused(refusal) => {
                    return Err(unknown.map_or(ProposeError::Refused(refusal), ProposeError::OutcomeUnknown));
                }
                Attempt::Overloaded => {
                    return Err(unknown.map_or(ProposeError::Overloaded, ProposeError::OutcomeUnknown));
                }
                Attempt::Unfit(reason) => {
                    return Err(unknown.map_or(ProposeError::Unfit(reason), ProposeError::OutcomeUnknown));
                }
                Attempt::Stopped => return Err(unknown.map_or(ProposeError::Stopped, ProposeError::OutcomeUnknown)),
                Attempt::NotLeader if unknown.is_none() => give_up_on_leader,
                Attempt::NotLeader => deadline,
                Attempt::Unknown(reason) => {
                    unknown = Some(reason);
                    deadline
                }
            };
            if !view::wait_for_change(&self.inner.view, RETRY_DELAY).await {
                return Err(unknown.map_or(ProposeError::Stopped, ProposeError::OutcomeUnknown));
            }
            let has_leader = self.has_leader(limit).await;
            if self.inner.transfers.waits_are_over() {
                return Err(unknown.map_or(ProposeError::Stopped, ProposeError::OutcomeUnknown));
            }
            if !has_leader || Instant::now() >= limit {
                return Err(unknown.map_or(ProposeError::NoLeader, ProposeError::OutcomeUnknown));
            }
        }
    }

    /// Waits for a leader until `limit`, or until this node ends all waits because it is stopping.
    async fn has_leader(&self, limit: Instant) -> bool {
        let has_leader = view::wait(&self.inner.view, limit, |view| view.leader.is_some());
        self.unless_waits_end(has_leader).await.unwrap_or(false)
    }

    /// Makes one attempt. The command was `forwarded` by a follower, or comes from a caller of this node. Account 0
    /// stands for the cluster itself.
    pub(super) async fn attempt(
        &self,
        (account, command): (AccountId, pb::Command),
        trace: Option<TraceContext>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Outcome, Attempt> {
        let kind = if forwarded { Kind::Server } else { Kind::Internal };
        let mut step = self.inner.tracer.begin("raft.propose", kind, trace);
        let result = self.queued((account, command), step.context(), forwarded, deadline).await;
        if let Err(error) = &result {
            step.fail(|| error.to_string());
        }
        result
    }

    async fn queued(
        &self,
        (account, command): (AccountId, pb::Command),
        trace: Option<TraceContext>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Outcome, Attempt> {
        let (reply, answer) = oneshot::channel();
        let claim = Claim::default();
        let waiting = self.inner.tracer.begin("raft.queue", Kind::Internal, trace);
        let job = Job { account, command, trace, waiting, forwarded, reply, claim: claim.clone() };
        self.inner.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Attempt::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Attempt::Stopped,
        })?;
        let Some(answered) = self.unless_waits_end(timeout_at(deadline, answer)).await else {
            return Err(if claim.give_up() { Attempt::Stopped } else { Attempt::Unknown(STOPPING.into()) });
        };
        match answered {
            Ok(Ok(Ok(outcome))) => Ok(outcome),
            Ok(Ok(Err(AttemptError::NotLeader))) => Err(Attempt::NotLeader),
            Ok(Ok(Err(AttemptError::Unfit(reason)))) => Err(Attempt::Unfit(reason)),
            Ok(Ok(Err(AttemptError::Refused(refusal)))) => Err(Attempt::Refused(refusal)),
            Ok(Ok(Err(AttemptError::Unknown(reason)))) => Err(Attempt::Unknown(reason)),
            Ok(Err(_)) => Err(Attempt::Unknown(STOPPING.into())),
            Err(_) if claim.give_up() => Err(Attempt::NotLeader),
            Err(_) => Err(Attempt::Unknown("the deadline passed while it was being replicated".into())),
        }
    }

    /// Returns once this node's state includes everything that any node had acknowledged before the call.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] after a bounded wait for a leader, [`ReadError::Deadline`] or [`ReadError::Stopped`].
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), ReadError> {
        if failpoints::is_active(failpoints::NO_READ_INDEX) {
            return Ok(());
        }
        let give_up_on_leader = deadline.min(Instant::now() + self.inner.leader_wait);
        loop {
            let (waiter, released) = oneshot::channel();
            self.inner.reads.try_send(waiter).map_err(|error| match error {
                // The queue fills up only while read index requests get no answer.
                mpsc::error::TrySendError::Full(_) => ReadError::NoLeader,
                mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
            })?;
            let Some(released) = self.unless_waits_end(timeout_at(deadline, released)).await else {
                return Err(ReadError::Stopped);
            };
            match released {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(ReadError::NoLeader))) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(_)) => return Err(ReadError::Stopped),
                Err(_) => return Err(self.missed_deadline()),
            }
            if !view::wait_for_change(&self.inner.view, RETRY_DELAY).await {
                return Err(ReadError::Stopped);
            }
            let has_leader = self.has_leader(give_up_on_leader).await;
            if self.inner.transfers.waits_are_over() {
                return Err(ReadError::Stopped);
            }
            if !has_leader || Instant::now() >= give_up_on_leader {
                return Err(ReadError::NoLeader);
            }
        }
    }

    fn missed_deadline(&self) -> ReadError {
        if self.inner.view.borrow().leader.is_some() { ReadError::Deadline } else { ReadError::NoLeader }
    }

    /// Upper bound of the age of this node's state: the time since it was known to include every committed entry.
    /// `None` if that was never the case since the node started.
    pub fn age(&self) -> Option<Duration> {
        let now = Instant::now();
        if self.inner.view.borrow().is_leader()
            && let Some(age) = self.inner.quorum_age.get()
        {
            return Some(age);
        }
        self.inner.freshness.age(*self.inner.applied.borrow(), now)
    }

    /// Status of this node.
    pub fn status(&self) -> NodeStatus {
        let view = self.inner.view.borrow().clone();
        let metrics = self.inner.raft.data_metrics();
        let data = metrics.borrow_watched().clone();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        NodeStatus {
            node_id: self.inner.identity.node_id,
            name: self.inner.identity.name.clone(),
            cluster_id: self.inner.identity.cluster_id.clone(),
            term: view.term,
            role: view.role,
            leader: view.leader().filter(|_| self.is_led()).cloned(),
            members: view.members.to_vec(),
            last_log_index: index(data.last_log),
            committed_index: index(data.local_committed),
            applied_index: index(*self.inner.applied.borrow()),
        }
    }

    /// Whether the leader recently had a quorum. The leader is the node that this one follows, or this node itself.
    pub(super) fn is_led(&self) -> bool {
        let own = self.inner.view.borrow().is_leader().then(|| self.inner.quorum_age.get()).flatten();
        let age = own.or_else(|| self.inner.freshness.leaderless(Instant::now()));
        age.is_some_and(|age| age <= self.majority_missed_max())
    }

    /// A leader without a quorum for longer than this is no longer reported as leader.
    pub(super) fn majority_missed_max(&self) -> Duration {
        self.inner.election_max * LEADERLESS_ELECTIONS
    }

    /// The log and the state of this node, for tests that check the node from inside its process.
    pub fn files(&self) -> (&LogDb, &SharedState) {
        (&self.inner.log, &self.inner.disk.state)
    }

    /// A watch on this node's view of the cluster.
    pub fn view(&self) -> watch::Receiver<View> {
        self.inner.view.clone()
    }

    /// Whether this node has a leader and a small apply lag.
    pub fn is_ready(&self) -> bool {
        const LAG_MAX: u64 = 1000;
        self.status().leader.is_some() && self.behind() <= LAG_MAX
    }

    /// Apply lag: entries that this node has learned to be committed and that are not applied yet.
    pub fn behind(&self) -> u64 {
        let status = self.status();
        let known = self.inner.freshness.committed().map_or(0, |id| id.index);
        status.committed_index.max(known).saturating_sub(status.applied_index)
    }

    /// The space on this node's volume.
    pub fn space(&self) -> SpaceStatus {
        self.inner.space.status(self.inner.view.borrow().is_leader())
    }

    /// Number of commands in the proposal queue.
    pub fn waiting_proposals(&self) -> usize {
        self.inner.jobs.max_capacity() - self.inner.jobs.capacity()
    }

    /// Proposal attempts on this node by outcome.
    pub fn proposals(&self) -> Proposals {
        self.inner.counts.get()
    }

    /// State that exists only on a leader. `None` unless this node leads and recently had a quorum.
    pub fn leading(&self) -> Option<Leading> {
        if !self.inner.view.borrow().is_leader() || !self.is_led() {
            return None;
        }
        Some(Leading { quorum_age: self.inner.quorum_age.get()?, cluster_health: self.cluster_health_here() })
    }

    /// Health of all members, requested from the leader.
    ///
    /// # Errors
    /// There is no leader, or it does not answer before `deadline`.
    pub async fn cluster_health(&self, deadline: Instant) -> Result<ClusterHealth, ReadError> {
        let view = self.inner.view.borrow().clone();
        if !self.is_led() {
            return Err(ReadError::NoLeader);
        }
        if view.is_leader() {
            return Ok(self.cluster_health_here());
        }
        let leader = view.leader().ok_or(ReadError::NoLeader)?;
        let mut client = self
            .inner
            .peers
            .member(leader.node_id, &leader.peer_address, Lane::Control)
            .map_err(|_| ReadError::NoLeader)?;
        let request = self.inner.credentials.sign(leader.node_id, wire::ClusterHealthRequest {});
        let response = match timeout_at(deadline, client.cluster_health(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(_)) => return Err(ReadError::NoLeader),
            Err(_) => return Err(ReadError::Deadline),
        };
        let peers = response.peers.into_iter().map(|peer| PeerHealth {
            node_id: peer.node_id,
            silent: peer.silent_ms.map(Duration::from_millis),
            lag_entries: peer.lag_entries,
        });
        Ok(ClusterHealth { term: response.term, peers: peers.collect() })
    }

    /// The longest silence of a follower that still counts as healthy.
    pub fn healthy_silence_max(&self) -> Duration {
        self.inner.election_max
    }

    /// Health of all members as seen by this node. Meaningful only on the leader.
    pub(super) fn cluster_health_here(&self) -> ClusterHealth {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let own = self.inner.identity.node_id;
        let last = metrics.last_log_index;
        let peers = metrics.membership_config.nodes().map(|(id, _)| {
            if *id == own {
                return PeerHealth { node_id: own, silent: Some(Duration::ZERO), lag_entries: Some(0) };
            }
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id)).and_then(|at| *at);
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id)).and_then(|id| *id);
            PeerHealth {
                node_id: *id,
                silent: heard.map(|at| at.elapsed()),
                lag_entries: matched.and_then(|matched| Some(last?.saturating_sub(matched.index))),
            }
        });
        ClusterHealth { term: metrics.current_term, peers: peers.collect() }
    }

    /// Builds a snapshot on this node and waits for it. Returns the index of the last entry in it.
    ///
    /// # Errors
    /// The deadline passed, or the node is stopping.
    pub async fn snapshot(&self, deadline: Instant) -> Result<u64, ReadError> {
        let wanted = self.inner.applied.borrow().map_or(0, |id| id.index);
        self.inner.raft.trigger().snapshot().await.map_err(|_| ReadError::Stopped)?;
        let limit = deadline.saturating_duration_since(Instant::now());
        let wait = self.inner.raft.wait(Some(limit));
        match wait.metrics(|metrics| metrics.snapshot.is_some_and(|id| id.index >= wanted), "snapshot").await {
            Ok(metrics) => Ok(metrics.snapshot.map_or(0, |id| id.index)),
            Err(_) => Err(ReadError::Deadline),
        }
    }

    /// Stops Raft, then flushes the rest of the log. Proposals in flight end with an unknown outcome.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "Raft did not stop cleanly");
        }
        let log = self.inner.log.clone();
        if let Err(error) = blocking::run(move || log.close()).await {
            tracing::error!(%error, "The log was not closed cleanly");
        }
    }

    /// Waits until Raft stops by itself, which is always a failure, and returns the reason.
    pub async fn failed(&self) -> String {
        // The server metrics change least often of all openraft metrics, so that waiting for them does not cost a
        // wake-up per write. Their sender is dropped when the core has stopped.
        let mut alive = self.inner.raft.server_metrics();
        while alive.changed().await.is_ok() {}
        if let Some(failure) = self.inner.failure.get() {
            return failure.reason.clone();
        }
        match &self.inner.raft.metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "Raft stopped".into(),
        }
    }

    /// The log position that a linearizable read must wait for. Fails unless this node is the leader.
    pub(super) async fn read_index_here(&self) -> Result<pb::LogId, ReadError> {
        self.inner.read_index.ask_here().await.map(|id| convert::log_id_pb(&id))
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Attempt {
    #[error("the queue is full")]
    Overloaded,
    #[error(transparent)]
    Refused(Refusal),
    #[error("this node is stopping")]
    Stopped,
    #[error("not the leader")]
    NotLeader,
    #[error("{0}")]
    Unfit(String),
    #[error("{0}")]
    Unknown(String),
}

/// After an attempt with an unknown outcome, a missing session may have been closed by that very attempt.
fn resolve(outcome: Outcome, unknown: Option<String>) -> Result<Outcome, ProposeError> {
    match (outcome, unknown) {
        (Outcome::Rejected(Rejection::SessionUnknown), Some(reason)) => Err(ProposeError::OutcomeUnknown(reason)),
        (outcome, _) => Ok(outcome),
    }
}
