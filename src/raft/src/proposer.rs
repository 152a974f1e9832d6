//! Batches single commands into log entries.
//!
//! One task takes all queued commands and makes one entry of them, so that they share the costs of an entry (an append,
//! a replication message, a row, a transaction). A few entries are in flight at a time. A batch therefore grows while
//! earlier ones wait for their fsync, and a lone command does not wait for others.
//!
//! The leader appends an entry to its log; any other node forwards the batch to the leader in one call. Each job is one
//! attempt, and [`crate::Node::propose`] retries.
//!
//! Does not cover: what a command may contain (`storage::intake`), and answering the batches of followers
//! (`transport::forwarded`).

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{Future, StreamExt as _, stream::FuturesUnordered};
use openraft::{
    errors::{ClientWriteError, ForwardReason},
    impls::ProgressResponder,
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Code;

use crate::{
    admission::{self, Admission, Rate, Refusal, RefusalCounts, grows},
    lapses::Lapses,
    space::{Growth, Space},
    store::state_machine::Raft,
    transport::{
        leader_client::{CallError, LeaderClient},
        peers::Lane,
    },
    types::{Payload, TypeConfig},
    view::{Peer, View},
};
use chat::{AccountId, Outcome};
use net::dial::never_connected;
use proto::{log::v1 as pb, raft::v1 as wire};
use storage::codec;
use trace::{Kind, Step, TraceContext, Tracer};

/// Capacity of the command queue. A full queue rejects commands.
pub(crate) const QUEUE_MAX: usize = 8192;
/// Most commands in one entry.
pub(crate) const BATCH_MAX: usize = 512;
/// Size in bytes at which an entry is closed.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// No commands are taken from the queue while this many batches are in flight.
const IN_FLIGHT_MAX: usize = 2;
/// Timeout of a forwarded batch. `Node::propose` then tries again with the same command. It begins before that of the
/// leader (`transport::forwarded`), so the verdict of a leader that waits this long comes too late and does not count.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an attempt failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AttemptError {
    /// Not appended, and another attempt may succeed: no leader was reached, it gives up leadership, its volume is
    /// full, or another command of the same batch is unfit.
    #[error("not appended")]
    NotAppended,
    /// Not appended: such a command must not be in a log.
    #[error("{0}")]
    Unfit(String),
    /// Not appended, because of a limit.
    #[error(transparent)]
    Refused(Refusal),
    /// Possibly appended.
    #[error("{0}")]
    Unknown(String),
}

/// Channel for the outcome of an attempt.
type Reply = oneshot::Sender<Result<Outcome, AttemptError>>;

/// One attempt to get a command into the log.
pub(crate) struct Job {
    /// Account whose rates the command counts against; 0: the cluster itself.
    pub account: AccountId,
    pub command: pb::Command,
    /// Parent of the spans of this command.
    pub trace: Option<TraceContext>,
    /// Span of the wait for a batch.
    pub waiting: Step,
    /// Whether a follower forwarded the command. Such a command is never forwarded again.
    pub forwarded: bool,
    pub reply: Reply,
    pub claim: Claim,
}

/// Decides whether the caller gives a job up or the proposer takes it. Exactly one of them wins.
#[derive(Clone, Default)]
pub(crate) struct Claim(Arc<AtomicU8>);

impl Claim {
    const TAKEN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// Gives the job up on behalf of its caller. True: the proposer will not touch the job, so nothing is applied.
    pub(crate) fn give_up(&self) -> bool {
        self.0.compare_exchange(0, Self::GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn take(&self) -> bool {
        self.0.compare_exchange(0, Self::TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Proposal attempts by outcome, counted in commands.
pub(crate) struct ProposalCounts {
    /// Committed and applied; this node proposed them as the leader.
    committed: AtomicU64,
    /// Forwarded by this node, and answered by the leader.
    forwarded: AtomicU64,
    /// Failed: no leader, a limit, or an unknown outcome. Most are retried.
    failed: AtomicU64,
    /// Times at which this node rejected commands as the leader because its lease had expired.
    lapses: Lapses,
}

impl ProposalCounts {
    pub(crate) fn new(lapses: Lapses) -> Self {
        let [committed, forwarded, failed] = std::array::from_fn(|_| AtomicU64::new(0));
        Self { committed, forwarded, failed, lapses }
    }

    /// Times at which this node rejected commands as the leader because its lease had expired.
    pub(crate) fn lapses(&self) -> &Lapses {
        &self.lapses
    }

    pub(crate) fn get(&self) -> Proposals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Proposals { committed: read(&self.committed), forwarded: read(&self.forwarded), failed: read(&self.failed) }
    }

    fn fail(&self, replies: impl IntoIterator<Item = Reply>, error: &AttemptError) {
        for reply in replies {
            self.failed.fetch_add(1, Ordering::Relaxed);
            // The receiver is gone if the caller has given up.
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// Commands that were proposed through this node since it started, by the outcome of the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proposals {
    /// Committed and applied; this node proposed them as the leader.
    pub committed: u64,
    /// Forwarded by this node, and answered by the leader.
    pub forwarded: u64,
    /// Failed: no leader, a limit, or an unknown outcome. Most are retried.
    pub failed: u64,
}

/// A batch in flight. It resolves to the senders of rejected messages, one entry for each message.
type InFlight = Pin<Box<dyn Future<Output = Vec<AccountId>> + Send>>;

pub(crate) struct Proposer {
    pub counts: Arc<ProposalCounts>,
    pub raft: Raft,
    pub view: watch::Receiver<View>,
    /// Forwards the commands while another node leads.
    pub leader: LeaderClient,
    pub tracer: Tracer,
    pub queue: mpsc::Receiver<Job>,
    pub admission: Admission,
    pub refusals: Arc<RefusalCounts>,
    pub space: Space,
    /// Most messages and bytes that an account may store; 0: unlimited.
    pub quota: (u64, u64),
    /// The newest timestamp in ms that this node has assigned. It keeps timestamps from running back when the clock is
    /// set back.
    pub stamped_ms: u64,
}

impl Proposer {
    /// Runs until all senders of the queue are gone.
    pub(crate) async fn run(mut self) {
        let mut in_flight: FuturesUnordered<InFlight> = FuturesUnordered::new();
        let mut jobs = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                count = self.queue.recv_many(&mut jobs, BATCH_MAX), if in_flight.len() < IN_FLIGHT_MAX => {
                    if count == 0 {
                        break;
                    }
                    jobs.retain(|job| job.claim.take());
                    jobs.iter_mut().for_each(|job| job.waiting = Step::default());
                    in_flight.extend(self.start(&mut jobs).await);
                }
                Some(rejected) = in_flight.next(), if !in_flight.is_empty() => {
                    rejected.into_iter().for_each(|account| self.admission.slow_down(account));
                }
            }
        }
        while in_flight.next().await.is_some() {}
    }

    async fn start(&mut self, jobs: &mut Vec<Job>) -> Vec<InFlight> {
        let mut started = Vec::new();
        if jobs.is_empty() {
            return started;
        }
        let view = self.view.borrow().clone();
        if view.is_leader() {
            let mut bytes = 0;
            let mut batch = Vec::with_capacity(jobs.len());
            let growth = self.space.growth();
            for job in jobs.drain(..) {
                if growth == Growth::Elsewhere && grows(&job.command) {
                    self.counts.fail([job.reply], &AttemptError::NotAppended);
                    continue;
                }
                let space_low = growth == Growth::Refused;
                let admitted = self.admission.admit(job.account.0, &job.command, space_low, &self.refusals);
                if let Err(refusal) = admitted {
                    self.counts.fail([job.reply], &AttemptError::Refused(refusal));
                    continue;
                }
                bytes += job.command.encoded_len();
                batch.push(job);
                if bytes >= BATCH_BYTES_MAX {
                    started.extend(self.append_if_it_fits(std::mem::take(&mut batch), bytes).await);
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                started.extend(self.append_if_it_fits(batch, bytes).await);
            }
            return started;
        }
        let (refused, forwarded): (Vec<Job>, Vec<Job>) =
            jobs.drain(..).partition(|job| job.forwarded || view.leader().is_none());
        self.counts.fail(refused.into_iter().map(|job| job.reply), &AttemptError::NotAppended);
        if let (Some(leader), false) = (view.leader(), forwarded.is_empty()) {
            started.push(self.forward(leader, forwarded));
        }
        started
    }

    /// Appends a batch unless the volume is full. If it is full, this leader transfers leadership (see
    /// `space`), and the callers retry as with a node that does not lead.
    async fn append_if_it_fits(&mut self, batch: Vec<Job>, bytes: usize) -> Option<InFlight> {
        if self.space.takes(bytes as u64) {
            return Some(self.append(batch).await);
        }
        self.counts.fail(batch.into_iter().map(|job| job.reply), &AttemptError::NotAppended);
        None
    }

    /// Appends a batch to this node's log. The order of calls is the order in the log.
    async fn append(&mut self, batch: Vec<Job>) -> InFlight {
        let time_ms = self.stamp();
        let mut replies = Vec::with_capacity(batch.len());
        let mut proposals = Vec::with_capacity(batch.len());
        let mut senders = Vec::with_capacity(batch.len());
        for job in batch {
            let traceparent = codec::traceparent(job.trace);
            senders.push(admission::message_of(&job.command).map(|_| job.account));
            proposals.push(pb::Proposal { time_ms, traceparent, command: Some(job.command) });
            replies.push(job.reply);
        }
        let (quota_messages, quota_bytes) = self.quota;
        let payload = Payload(pb::Batch { proposals, quota_messages, quota_bytes }.encode_to_vec().into());
        let (responder, response) = ProgressResponder::<TypeConfig, _>::complete_only();
        if let Err(fatal) = self.raft.client_write_ff(payload, Some(responder)).await {
            self.counts.fail(replies, &AttemptError::Unknown(fatal.to_string()));
            return Box::pin(async { Vec::new() });
        }
        let (mut view, counts) = (self.view.clone(), Arc::clone(&self.counts));
        Box::pin(async move {
            // A replaced leader may have a committed entry and a disk that is too slow to apply it. The new leader has
            // the outcome.
            let deposed = view.wait_for(|view| !view.is_leader() && view.leader.is_some());
            let response = tokio::select! {
                biased;
                response = response => response,
                Ok(_) = deposed => {
                    counts.fail(replies, &AttemptError::Unknown("the leader was replaced".into()));
                    return Vec::new();
                }
            };
            let mut rejected = Vec::new();
            match response {
                Ok(Ok(written)) => {
                    counts.committed.fetch_add(replies.len() as u64, Ordering::Relaxed);
                    for ((reply, sender), outcome) in replies.into_iter().zip(senders).zip(written.data.0) {
                        if matches!(outcome, Outcome::Rejected(_)) {
                            rejected.extend(sender);
                        }
                        let _ = reply.send(Ok(outcome));
                    }
                }
                // openraft returns this only before it appends. An entry that was appended and replaced by another
                // leader gives `LogEntryDiscarded`, whose outcome is unknown: that leader may have had it, too.
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                    if forward.reason == ForwardReason::LeaseExpired {
                        counts.lapses.note(Instant::now());
                    }
                    counts.fail(replies, &AttemptError::NotAppended);
                }
                Ok(Err(error)) => counts.fail(replies, &AttemptError::Unknown(error.to_string())),
                Err(_) => counts.fail(replies, &AttemptError::Unknown("Raft stopped".into())),
            }
            rejected
        })
    }

    fn forward(&self, leader: &Peer, batch: Vec<Job>) -> InFlight {
        let connection = self.leader.connect(leader, Lane::Forward);
        let (leader, name) = (leader.node_id, &leader.name);
        let mut commands = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        let mut steps = Vec::new();
        let count = batch.len();
        for job in batch {
            let mut step = self.tracer.begin("raft.forward", Kind::Client, job.trace);
            let traceparent = codec::traceparent(step.context());
            commands.push(wire::ForwardedCommand {
                traceparent,
                command: Some(job.command),
                account_id: job.account.0,
            });
            replies.push(job.reply);
            if step.is_recording() {
                step.set("chat.peer", name.to_owned());
                step.set("raft.commands", count);
                steps.push(step);
            }
        }
        let request = wire::ProposeRequest { commands };
        let (mut view, counts) = (self.view.clone(), Arc::clone(&self.counts));
        Box::pin(async move {
            let call = async {
                let connection = connection.map_err(|_| AttemptError::NotAppended)?;
                let deadline = Some(tokio::time::Instant::now() + FORWARD_TIMEOUT);
                // The other nodes replace a leader that hangs. As soon as there is a new leader, the callers retry
                // there.
                let deposed = view.wait_for(|view| view.leader.is_some_and(|id| id != leader));
                let result = tokio::select! {
                    result = connection.call(deadline, request, async |mut client, request| {
                        client.propose(request).await
                    }) => result,
                    Ok(_) = deposed => return Err(AttemptError::Unknown("the leader was replaced".into())),
                };
                match result {
                    Ok(response) => outcomes(response, replies.len()),
                    Err(error) => not_proposed(error, replies.len()),
                }
            };
            match call.await {
                Ok(outcomes) => {
                    counts.forwarded.fetch_add(replies.len() as u64, Ordering::Relaxed);
                    for (reply, outcome) in replies.into_iter().zip(outcomes) {
                        let _ = reply.send(outcome);
                    }
                }
                Err(error) => {
                    steps.iter_mut().for_each(|step| step.fail(|| error.to_string()));
                    counts.fail(replies, &error);
                }
            }
            // The leader itself slows down the senders.
            Vec::new()
        })
    }

    fn stamp(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64);
        self.stamped_ms = self.stamped_ms.max(now);
        self.stamped_ms
    }
}

/// The results of a batch of `count` commands without a response, or the error of all of them.
fn not_proposed(error: CallError, count: usize) -> Result<Vec<Result<Outcome, AttemptError>>, AttemptError> {
    let status = match error {
        CallError::NotSent => return Err(AttemptError::NotAppended),
        CallError::Late => return Err(AttemptError::Unknown("the leader does not answer".into())),
        CallError::Failed(status) => status,
    };
    match status.code() {
        Code::InvalidArgument => Ok(unfit(&status, count)),
        // Rejected before any command was processed: not the leader, another cluster, or another node's certificate.
        Code::FailedPrecondition | Code::PermissionDenied => Err(AttemptError::NotAppended),
        _ if never_connected(&status) => Err(AttemptError::NotAppended),
        _ => Err(AttemptError::Unknown(status.message().to_owned())),
    }
}

fn outcomes(
    response: wire::ProposeResponse,
    expected: usize,
) -> Result<Vec<Result<Outcome, AttemptError>>, AttemptError> {
    if response.outcomes.len() != expected {
        return Err(AttemptError::Unknown("the leader answered with another number of outcomes".into()));
    }
    let decode = |outcome| codec::decode_outcome(outcome).map_err(|error| AttemptError::Unknown(error.to_string()));
    let refusals = response.refusals;
    let refused: HashMap<usize, &wire::Refusal> =
        refusals.iter().map(|refusal| (refusal.index as usize, refusal)).collect();
    let results = response.outcomes.into_iter().enumerate().map(|(index, outcome)| match refused.get(&index) {
        Some(refusal) => Err(refused_by_leader(refusal)),
        None => decode(outcome),
    });
    Ok(results.collect())
}

fn refused_by_leader(refusal: &wire::Refusal) -> AttemptError {
    if refusal.limit == NOT_APPENDED {
        return AttemptError::NotAppended;
    }
    let retry = Duration::from_millis(refusal.retry_ms);
    AttemptError::Refused(match Rate::of_name(&refusal.limit) {
        Some(rate) => Refusal::RateLimited { rate, retry },
        None => Refusal::StorageLow,
    })
}

/// Name of the limit in a refusal without a limit: the command was not appended, and a retry may succeed.
pub(crate) const NOT_APPENDED: &str = "leader";
/// Metadata key of a rejected `Propose`. The value lists the positions of the unfit commands, separated by commas.
pub(crate) const UNFIT: &str = "quorum-unfit";

/// Results for the commands of a batch of which the leader found some unfit. Nothing of the batch was appended, so the
/// callers of the others retry.
fn unfit(status: &tonic::Status, count: usize) -> Vec<Result<Outcome, AttemptError>> {
    let named = status.metadata().get(UNFIT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut refused: Vec<usize> = named.split(',').filter_map(|position| position.parse().ok()).collect();
    refused.retain(|position| *position < count);
    if refused.is_empty() {
        // The leader rejects the batch as a whole, and will never accept any of it.
        refused = (0..count).collect();
    }
    let error = |position: usize| match refused.contains(&position) {
        true => AttemptError::Unfit(status.message().to_owned()),
        false => AttemptError::NotAppended,
    };
    (0..count).map(|position| Err(error(position))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_found_no_leader_leaves_the_outcome_of_others_known() {
        let refusal = |index, limit: &str| wire::Refusal { index, limit: limit.to_owned(), retry_ms: 0 };
        let answer = wire::ProposeResponse {
            outcomes: vec![
                codec::encode_outcome(&Outcome::DigestNoted),
                pb::Outcome::default(),
                pb::Outcome::default(),
            ],
            refusals: vec![refusal(1, NOT_APPENDED), refusal(2, "storage")],
        };
        let results = outcomes(answer, 3).unwrap();
        assert!(results[0].is_ok());
        assert!(matches!(results[1], Err(AttemptError::NotAppended)));
        assert!(matches!(results[2], Err(AttemptError::Refused(Refusal::StorageLow))));
    }

    #[test]
    fn an_unfit_command_does_not_fail_the_others_of_its_batch() {
        let status = |named: Option<&str>| {
            let mut status = tonic::Status::invalid_argument("command 1: body: must not be empty");
            if let Some(named) = named {
                status.metadata_mut().insert(UNFIT, named.parse().expect("plain text"));
            }
            let of = |result| match result {
                Err(AttemptError::Unfit(_)) => 'u',
                Err(AttemptError::NotAppended) => 'n',
                _ => '?',
            };
            unfit(&status, 4).into_iter().map(of).collect::<String>()
        };
        assert_eq!(status(Some("1,3")), "nunu");
        assert_eq!(status(Some("2,9")), "nnun");
        assert_eq!((status(None), status(Some("x"))), ("uuuu".into(), "uuuu".into()));
    }
}
