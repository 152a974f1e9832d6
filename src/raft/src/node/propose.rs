//! Commands: the attempts to get one into the log, and the outcome of all of them.
//!
//! Invariant: after any error except [`ProposeError::OutcomeUnknown`], the command was not applied.
//!
//! Does not cover: batches and forwarding (`proposer`), and the commands that a follower forwards to this node
//! (`transport::forwarded`).

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::Node;
use crate::{
    admission::Refusal,
    error::ProposeError,
    proposer::{AttemptError, Claim, Job, Proposals},
};
use chat::{AccountId, Command, Outcome, Rejection};
use proto::log::v1 as pb;
use storage::{codec, intake};
use trace::{Kind, TraceContext};

/// Reason for an unknown outcome when the node stops while a command is being replicated.
const STOPPING: &str = "this node is stopping";

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
        let give_up_on_leader = self.leader_limit(deadline);
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
                Attempt::NotAppended if unknown.is_none() => give_up_on_leader,
                Attempt::NotAppended => deadline,
                Attempt::Unknown(reason) => {
                    unknown = Some(reason);
                    deadline
                }
            };
            if !self.pause_before_retry().await {
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

    /// Makes one attempt. The command was `forwarded` by a follower, or comes from a caller of this node. Account 0
    /// stands for the cluster itself.
    pub(crate) async fn attempt(
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
            Ok(Ok(Err(AttemptError::NotAppended))) => Err(Attempt::NotAppended),
            Ok(Ok(Err(AttemptError::Unfit(reason)))) => Err(Attempt::Unfit(reason)),
            Ok(Ok(Err(AttemptError::Refused(refusal)))) => Err(Attempt::Refused(refusal)),
            Ok(Ok(Err(AttemptError::Unknown(reason)))) => Err(Attempt::Unknown(reason)),
            Ok(Err(_)) => Err(Attempt::Unknown(STOPPING.into())),
            Err(_) if claim.give_up() => Err(Attempt::NotAppended),
            Err(_) => Err(Attempt::Unknown("the deadline passed while it was being replicated".into())),
        }
    }

    /// Number of commands in the proposal queue.
    pub fn waiting_proposals(&self) -> usize {
        self.inner.jobs.max_capacity() - self.inner.jobs.capacity()
    }

    /// Proposal attempts on this node by outcome.
    pub fn proposals(&self) -> Proposals {
        self.inner.counts.get()
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Attempt {
    /// Not appended: the proposer's queue is full.
    #[error("the queue is full")]
    Overloaded,
    /// Not appended, because of a rate or of the space.
    #[error(transparent)]
    Refused(Refusal),
    /// Not appended: the node is stopping.
    #[error("this node is stopping")]
    Stopped,
    /// See [`AttemptError::NotAppended`]. Also a command whose deadline passed in the queue.
    #[error("not appended")]
    NotAppended,
    /// Not appended: such a command must not be in a log.
    #[error("{0}")]
    Unfit(String),
    /// Possibly appended.
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
