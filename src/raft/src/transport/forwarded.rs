//! Commands that a follower forwards to this node, which it takes for the leader.
//!
//! Does not cover: forwarding them (`proposer`).

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    admission::Refusal,
    node::{Node, propose::Attempt},
    proposer::{BATCH_MAX, NOT_APPENDED, UNFIT},
};
use chat::{AccountId, Outcome};
use proto::{log::v1 as pb, raft::v1 as wire};
use storage::{codec, intake};

/// Longest wait for the outcomes of forwarded commands. The follower's own timeout began earlier.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Proposes all commands, and waits for their outcomes. Commands that this node refused have an empty outcome, and an
/// entry in `refusals`.
///
/// # Errors
/// A command is unfit, no command was taken, or the outcome of one is unknown.
pub(super) async fn propose(
    node: &Node,
    commands: Vec<wire::ForwardedCommand>,
) -> Result<wire::ProposeResponse, Status> {
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    if !failpoints::is_active(failpoints::UNFIT_FORWARDED) {
        check(&commands)?;
    }
    let attempts = commands.into_iter().map(|item| {
        let command = item.command.unwrap_or_default();
        node.attempt((AccountId(item.account_id), command), codec::trace(&item.traceparent), true, deadline)
    });
    answer(join_all(attempts).await)
}

/// The answer to the follower, from the result of each command.
fn answer(results: Vec<Result<Outcome, Attempt>>) -> Result<wire::ProposeResponse, Status> {
    let mut outcomes = Vec::new();
    let (mut refused, mut refusals) = (0, Vec::new());
    let total = results.len();
    let mut unknown = None;
    for result in results {
        match result {
            Ok(outcome) => outcomes.push(codec::encode_outcome(&outcome)),
            Err(Attempt::Refused(refusal)) => {
                refusals.push(refusal_pb(outcomes.len(), refusal));
                outcomes.push(pb::Outcome::default());
            }
            Err(Attempt::NotAppended | Attempt::Overloaded | Attempt::Stopped) => {
                refused += 1;
                refusals.push(not_appended_pb(outcomes.len()));
                outcomes.push(pb::Outcome::default());
            }
            Err(Attempt::Unfit(reason) | Attempt::Unknown(reason)) => unknown = Some(reason),
        }
    }
    if refused == total {
        return Err(Status::failed_precondition("this node is not the leader, or takes no more commands"));
    }
    if let Some(reason) = unknown {
        return Err(Status::aborted(reason));
    }
    Ok(wire::ProposeResponse { outcomes, refusals })
}

/// Checks forwarded commands before any of them is queued. An unfit command must not reach a log, and the others of its
/// batch must not be appended with an outcome that the follower does not receive.
fn check(commands: &[wire::ForwardedCommand]) -> Result<(), Status> {
    if commands.is_empty() || commands.len() > BATCH_MAX {
        return Err(Status::invalid_argument(format!("there must be 1-{BATCH_MAX} commands, not {}", commands.len())));
    }
    let problem = |item: &wire::ForwardedCommand| match &item.command {
        Some(command) => intake::check(command).err().map(|problem| problem.to_string()),
        None => Some("it is missing".to_owned()),
    };
    let refused: Vec<(usize, String)> =
        commands.iter().enumerate().filter_map(|(position, item)| Some((position, problem(item)?))).collect();
    let Some((position, problem)) = refused.first() else { return Ok(()) };
    tracing::warn!(position, problem, refused = refused.len(), "Rejected commands that a member forwarded");
    let mut status = Status::invalid_argument(format!("command {position}: {problem}"));
    let positions: Vec<String> = refused.iter().map(|(position, _)| position.to_string()).collect();
    if let Ok(value) = positions.join(",").parse() {
        status.metadata_mut().insert(UNFIT, value);
    }
    Err(status)
}

fn refusal_pb(index: usize, refusal: Refusal) -> wire::Refusal {
    let (limit, retry) = match refusal {
        Refusal::RateLimited { rate, retry } => (rate.name(), retry),
        Refusal::StorageLow => ("storage", Duration::ZERO),
    };
    wire::Refusal { index: index as u32, limit: limit.into(), retry_ms: retry.as_millis() as u64 }
}

/// The refusal of a command that was not appended, for which a retry may find a leader that accepts it.
fn not_appended_pb(index: usize) -> wire::Refusal {
    wire::Refusal { index: index as u32, limit: NOT_APPENDED.into(), retry_ms: 0 }
}
