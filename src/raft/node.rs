//! A running member of the cluster: what the layers above see of Raft.

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
    convert,
    error::{ProposeError, ReadError, Refusal, TransferError},
    freshness::{Freshness, QuorumAge},
    peers::{Credentials, Lane, Peers},
    promises::Promises,
    proposer::{AttemptError, Claim, Job, ProposalCounts, Proposals},
    read_gate::{ReadIndex, Waiter},
    slow_disk::Disk,
    space::{Space, SpaceStatus},
    types::{LogId, Raft},
    view::{self, Heard, Peer, Role, View},
};
use crate::{
    blocking,
    chat::{AccountId, Command, Outcome, Rejection},
    planted,
    proto::{log::v1 as pb, raft::v1 as wire},
    storage::{FirstFailure, Identity, LogDb, SharedState, codec, intake},
    trace::{Kind, TraceContext, Tracer},
};

/// Between two attempts, when nothing else says that another could go better.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// After so many election timeouts without a majority behind it, a leader is called one no more. Long enough for a
/// slow disk or an election to pass unnoticed.
const LEADERLESS_ELECTIONS: u32 = 5;

/// Health of a member, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHealth {
    /// Which member.
    pub node_id: u64,
    /// Time since it last answered the leader; `None`: not since the leader leads.
    pub silent: Option<Duration>,
    /// Log entries that it has yet to acknowledge; `None`: not known.
    pub lag_entries: Option<u64>,
}

/// Health of all members, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The leader's term.
    pub term: u64,
    /// All members, the leader included.
    pub peers: Vec<PeerHealth>,
}

impl Overview {
    /// How many more of the voters among `members` may fail before there is no majority. One that was silent for longer than
    /// `silence_max` has failed already.
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

/// What only a leader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leading {
    /// Time since it knew that a majority follows it.
    pub quorum_age: Duration,
    /// Health of all members.
    pub overview: Overview,
}

/// Where this node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Raft's name for this node.
    pub node_id: u64,
    /// The operator's name for this node.
    pub name: String,
    /// The cluster's UUID.
    pub cluster_id: String,
    /// The newest term it has seen.
    pub term: u64,
    /// What it is.
    pub role: Role,
    /// The leader, when it knows one that a majority followed lately. (Raft itself remembers the last one for as long
    /// as nobody is elected in its place.)
    pub leader: Option<Peer>,
    /// All members.
    pub members: Vec<Peer>,
    /// Index of the last entry in its log.
    pub last_log_index: u64,
    /// Index up to which it knows the log to be committed.
    pub committed_index: u64,
    /// Index up to which its state has the log.
    pub applied_index: u64,
}

/// A running member. Clones share it.
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
    pub promises: Promises,
    pub peers: Arc<Peers>,
    pub credentials: Credentials,
    /// How long a command waits for a leader before it is refused.
    pub leader_wait: Duration,
    /// Longest silence of a follower that still counts as healthy.
    pub election_max: Duration,
    /// One hand-over at a time.
    pub transfer: Mutex<()>,
    /// One change of the membership at a time.
    pub membership: Mutex<()>,
    /// See [`super::Settings::expected_nodes`].
    pub expected_nodes: Vec<String>,
    pub failure: FirstFailure,
    pub tracer: Tracer,
    pub disk: Disk,
    pub space: Space,
    /// For what is charged here and not at the leader.
    pub charges: StdMutex<Admission>,
    pub refusals: Arc<RefusalCounts>,
    /// Counts attempts while this node leads.
    pub attempts: OnceLock<Arc<dyn AttemptLimiter>>,
    /// Hand-overs because of a slow disk.
    pub handovers: AtomicU64,
}

impl Node {
    /// Gets a command into the log and applied, from any node, and returns its outcome.
    ///
    /// Every command can be applied twice without harm (it carries an id, or is idempotent), so an attempt whose fate is
    /// unknown is repeated, at a new leader if need be, until `deadline`.
    ///
    /// # Errors
    /// See [`ProposeError`]; only [`ProposeError::OutcomeUnknown`] leaves it open whether the command is applied.
    pub async fn propose(
        &self,
        command: Command,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        self.propose_for(AccountId(0), command, trace, deadline).await
    }

    /// The same for a command of an account, which counts for its rates.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Refused`] when the account exceeds its rates.
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
        let mut doubt: Option<String> = None;
        loop {
            let error = match self.attempt((account, command.clone()), trace, false, deadline).await {
                Ok(outcome) => return settle(outcome, doubt),
                Err(error) => error,
            };
            let limit = match error {
                // An earlier attempt may have got through.
                Attempt::Refused(refusal) => {
                    return Err(doubt.map_or(ProposeError::Refused(refusal), ProposeError::OutcomeUnknown));
                }
                Attempt::Overloaded => return Err(doubt.map_or(ProposeError::Overloaded, ProposeError::OutcomeUnknown)),
                Attempt::Unfit(reason) => {
                    return Err(doubt.map_or(ProposeError::Unfit(reason), ProposeError::OutcomeUnknown));
                }
                Attempt::Stopped => return Err(doubt.map_or(ProposeError::Stopped, ProposeError::OutcomeUnknown)),
                Attempt::NotLeader if doubt.is_none() => give_up_on_leader,
                Attempt::NotLeader => deadline,
                Attempt::Unknown(reason) => {
                    doubt = Some(reason);
                    deadline
                }
            };
            if !view::wait_for_change(&self.inner.view, RETRY_DELAY).await {
                return Err(doubt.map_or(ProposeError::Stopped, ProposeError::OutcomeUnknown));
            }
            let has_leader = view::wait(&self.inner.view, limit, |view| view.leader.is_some()).await;
            if !has_leader || Instant::now() >= limit {
                return Err(doubt.map_or(ProposeError::NoLeader, ProposeError::OutcomeUnknown));
            }
        }
    }

    /// One attempt; `forwarded` by a follower, or of this node's own caller. Account 0: the cluster's own command.
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
        match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(outcome))) => Ok(outcome),
            Ok(Ok(Err(AttemptError::NotLeader))) => Err(Attempt::NotLeader),
            Ok(Ok(Err(AttemptError::Unfit(reason)))) => Err(Attempt::Unfit(reason)),
            Ok(Ok(Err(AttemptError::Refused(refusal)))) => Err(Attempt::Refused(refusal)),
            Ok(Ok(Err(AttemptError::Unknown(reason)))) => Err(Attempt::Unknown(reason)),
            Ok(Err(_)) => Err(Attempt::Unknown("this node is stopping".into())),
            Err(_) if claim.give_up() => Err(Attempt::NotLeader),
            Err(_) => Err(Attempt::Unknown("the deadline passed while it was being replicated".into())),
        }
    }

    /// Returns when this node's state has everything that was acknowledged, anywhere, before the call.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] after a bounded wait for one; [`ReadError::Deadline`].
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), ReadError> {
        if planted::is(planted::NO_READ_INDEX) {
            return Ok(());
        }
        let give_up_on_leader = deadline.min(Instant::now() + self.inner.leader_wait);
        loop {
            let (waiter, released) = oneshot::channel();
            self.inner.reads.try_send(waiter).map_err(|error| match error {
                // So many readers wait only when no question is answered.
                mpsc::error::TrySendError::Full(_) => ReadError::NoLeader,
                mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
            })?;
            match timeout_at(deadline, released).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(ReadError::NoLeader))) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(_)) => return Err(ReadError::Stopped),
                Err(_) => return Err(self.missed_deadline()),
            }
            if !view::wait_for_change(&self.inner.view, RETRY_DELAY).await {
                return Err(ReadError::Stopped);
            }
            let has_leader = view::wait(&self.inner.view, give_up_on_leader, |view| view.leader.is_some()).await;
            if !has_leader || Instant::now() >= give_up_on_leader {
                return Err(ReadError::NoLeader);
            }
        }
    }

    fn missed_deadline(&self) -> ReadError {
        if self.inner.view.borrow().leader.is_some() { ReadError::Deadline } else { ReadError::NoLeader }
    }

    /// How old this node's state may be: time since it last knew that it had everything committed. `None` when it has
    /// not known since it started.
    pub fn age(&self) -> Option<Duration> {
        let now = Instant::now();
        if self.inner.view.borrow().is_leader()
            && let Some(age) = self.inner.quorum_age.get()
        {
            return Some(age);
        }
        self.inner.freshness.age(*self.inner.applied.borrow(), now)
    }

    /// Where this node stands.
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

    /// Whether the leader that this node follows, or is, was followed by a majority lately.
    pub(super) fn is_led(&self) -> bool {
        let own = self.inner.view.borrow().is_leader().then(|| self.inner.quorum_age.get()).flatten();
        let age = own.or_else(|| self.inner.freshness.leaderless(Instant::now()));
        age.is_some_and(|age| age <= self.majority_missed_max())
    }

    /// After so long without a majority behind it, a leader is called one no more.
    pub(super) fn majority_missed_max(&self) -> Duration {
        self.inner.election_max * LEADERLESS_ELECTIONS
    }

    /// Its log and its state, for whoever checks a node from inside of its process.
    pub fn files(&self) -> (&LogDb, &SharedState) {
        (&self.inner.log, &self.inner.disk.state)
    }

    /// What this node knows of the cluster, as it changes.
    pub fn view(&self) -> watch::Receiver<View> {
        self.inner.view.clone()
    }

    /// Whether this node knows a leader, and its state is near what is committed.
    pub fn is_ready(&self) -> bool {
        const LAG_MAX: u64 = 1000;
        self.status().leader.is_some() && self.behind() <= LAG_MAX
    }

    /// Entries that are committed, as far as this node was told, and not in its state.
    pub fn behind(&self) -> u64 {
        let status = self.status();
        let told = self.inner.freshness.committed().map_or(0, |id| id.index);
        status.committed_index.max(told).saturating_sub(status.applied_index)
    }

    /// The space on this node's volume.
    pub fn space(&self) -> SpaceStatus {
        self.inner.space.status(self.inner.view.borrow().is_leader())
    }

    /// Commands that wait to be put into the log.
    pub fn waiting_proposals(&self) -> usize {
        self.inner.jobs.max_capacity() - self.inner.jobs.capacity()
    }

    /// What became of the commands that went through this node.
    pub fn proposals(&self) -> Proposals {
        self.inner.counts.get()
    }

    /// What only a leader knows; `None` unless this node leads and a majority followed it lately.
    pub fn leading(&self) -> Option<Leading> {
        if !self.inner.view.borrow().is_leader() || !self.is_led() {
            return None;
        }
        Some(Leading { quorum_age: self.inner.quorum_age.get()?, overview: self.overview_here() })
    }

    /// Health of all members, asked of the leader.
    ///
    /// # Errors
    /// There is no leader, or it does not answer before `deadline`.
    pub async fn overview(&self, deadline: Instant) -> Result<Overview, ReadError> {
        let view = self.inner.view.borrow().clone();
        if !self.is_led() {
            return Err(ReadError::NoLeader);
        }
        if view.is_leader() {
            return Ok(self.overview_here());
        }
        let leader = view.leader().ok_or(ReadError::NoLeader)?;
        let mut client = self
            .inner
            .peers
            .member(leader.node_id, &leader.peer_address, Lane::Control)
            .map_err(|_| ReadError::NoLeader)?;
        let request = self.inner.credentials.sign(leader.node_id, wire::OverviewRequest {});
        let response = match timeout_at(deadline, client.overview(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(_)) => return Err(ReadError::NoLeader),
            Err(_) => return Err(ReadError::Deadline),
        };
        let peers = response.peers.into_iter().map(|peer| PeerHealth {
            node_id: peer.node_id,
            silent: peer.silent_ms.map(Duration::from_millis),
            lag_entries: peer.lag_entries,
        });
        Ok(Overview { term: response.term, peers: peers.collect() })
    }

    /// The longest silence of a follower that still counts as healthy.
    pub fn healthy_silence_max(&self) -> Duration {
        self.inner.election_max
    }

    /// This node's own sight of the members; only the leader's means anything.
    pub(super) fn overview_here(&self) -> Overview {
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
        Overview { term: metrics.current_term, peers: peers.collect() }
    }

    /// Hands leadership to `to`, or to the voter that is furthest, and waits until it leads. Forwarded to the leader.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leadership(&self, to: Option<u64>, deadline: Instant) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let leader = view.leader().ok_or(TransferError::NoLeader)?;
        let target = if view.is_leader() {
            self.hand_over(to).await?
        } else {
            let mut client = self
                .inner
                .peers
                .member(leader.node_id, &leader.peer_address, Lane::Control)
                .map_err(|_| TransferError::NoLeader)?;
            let request = self.inner.credentials.sign(leader.node_id, wire::HandOverRequest { to: to.unwrap_or(0) });
            match timeout_at(deadline, client.hand_over(request)).await {
                Ok(Ok(response)) => response.into_inner().to,
                Ok(Err(status)) if status.code() == tonic::Code::NotFound => return Err(TransferError::NotAVoter),
                Ok(Err(_)) => return Err(TransferError::NoLeader),
                Err(_) => return Err(TransferError::Unknown("the leader does not answer".into())),
            }
        };
        if view::wait(&self.inner.view, deadline, |view| view.leader == Some(target)).await {
            Ok(target)
        } else {
            Err(TransferError::Unknown("the target did not take over in time".into()))
        }
    }

    /// Starts a hand-over on the leader.
    pub(super) async fn hand_over(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let _one = self.inner.transfer.lock().await;
        let view = self.inner.view.borrow().clone();
        if !view.is_leader() {
            return Err(TransferError::NoLeader);
        }
        let target = match to {
            Some(id) => {
                view.member(id).filter(|peer| peer.voter).ok_or(TransferError::NotAVoter)?;
                id
            }
            None => self.best_successor(&view, self.inner.election_max, |_| true).ok_or(TransferError::NotAVoter)?,
        };
        if target != self.inner.identity.node_id {
            let started = self.inner.raft.trigger().transfer_leader(target).await;
            started.map_err(|fatal| TransferError::Unknown(fatal.to_string()))?;
        }
        Ok(target)
    }

    /// The voter that was heard of within `silence_max` and has the most of the log, among those that `may` lead.
    pub(super) fn best_successor(&self, view: &View, silence_max: Duration, may: impl Fn(u64) -> bool) -> Option<u64> {
        let overview = self.overview_here();
        let is_voter = |id: u64| view.member(id).is_some_and(|peer| peer.voter);
        overview
            .peers
            .iter()
            .filter(|peer| peer.node_id != self.inner.identity.node_id && is_voter(peer.node_id) && may(peer.node_id))
            .filter(|peer| peer.silent.is_some_and(|silent| silent <= silence_max))
            .min_by_key(|peer| peer.lag_entries.unwrap_or(u64::MAX))
            .map(|peer| peer.node_id)
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

    /// Hands over leadership if this node has it and there is another voter, so that the others need no election.
    /// Bounded by `deadline`.
    pub async fn step_aside(&self, deadline: Instant) {
        let view = self.inner.view.borrow().clone();
        if !view.is_leader() || view.members.iter().filter(|peer| peer.voter).count() < 2 {
            return;
        }
        match self.transfer_leadership(None, deadline).await {
            Ok(to) => tracing::info!(to, "Leadership was handed over"),
            Err(error) => tracing::warn!(%error, "Leadership could not be handed over: the others will elect a leader"),
        }
    }

    /// Stops Raft, then writes what is left of the log. Proposals under way end with an unknown outcome.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "Raft did not stop cleanly");
        }
        let log = self.inner.log.clone();
        if let Err(error) = blocking::run(move || log.close()).await {
            tracing::error!(%error, "The log was not closed cleanly");
        }
    }

    /// Waits until Raft stops by itself, which is always a failure, and says why.
    pub async fn failed(&self) -> String {
        // Of all of openraft's metrics these change least: to wait for them does not cost a wake-up for each write. Their
        // sender is gone when the core has stopped.
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

    /// The position that a linearizable read has to wait for; only on the leader.
    pub(super) async fn read_index_here(&self) -> Result<pb::LogId, ReadError> {
        self.inner.read_index.ask_here().await.map(|id| convert::log_id_pb(&id))
    }
}

/// Why an attempt came to nothing.
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

/// After an attempt of unknown fate, a session that is gone may have been closed by that very attempt.
fn settle(outcome: Outcome, doubt: Option<String>) -> Result<Outcome, ProposeError> {
    match (outcome, doubt) {
        (Outcome::Rejected(Rejection::SessionUnknown), Some(reason)) => Err(ProposeError::OutcomeUnknown(reason)),
        (outcome, _) => Ok(outcome),
    }
}
