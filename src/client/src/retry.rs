//! Retries: how long to wait, which node to try next, when to stop, and which error to report.
//!
//! Every call made through this module is idempotent: a repeated change returns its first outcome. The caller's
//! deadline bounds all attempts. Each attempt has its own, shorter timeout, which includes the round trip to its node,
//! so that a hung node costs little. The timeout doubles after the second unanswered attempt and after each further
//! one, because an overloaded cluster is slow and not dead. No attempt starts shortly before the deadline: it would be
//! cut off, and make an outcome unknown that is still known.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};

use super::{
    ClientError, Options,
    error::{Blame, Verdict, classify},
    nodes::{Nodes, Target},
    random,
};

/// Maximum pause that a service can ask for, so that a wrong answer does not silence a client forever.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// No further attempt starts when less than this fraction of an attempt's timeout is left.
const LATE_FRACTION: u32 = 4;

/// Exponential backoff with full jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    retries: u32,
    random: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, retries: 0, random: random::generator() }
    }

    /// Returns the pause before the next attempt: up to `min`, then up to twice that, and so on up to `max`. Never less
    /// than the service asked for, within [`ASKED_MAX`].
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = self.min.saturating_mul(1 << self.retries.min(16)).min(self.max);
        self.retries = self.retries.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.u64(..=nanos));
        // Jitter is added to the requested pause, so that clients that got the same one do not return all at once.
        asked.map_or(jitter, |asked| asked.min(ASKED_MAX).saturating_add(jitter / 4))
    }

    /// Restarts the schedule after a success.
    pub(crate) fn reset(&mut self) {
        self.retries = 0;
    }
}

/// The requirements of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Time limit for all attempts.
    pub(crate) deadline: Duration,
    /// Timeout of the first attempt.
    pub(crate) attempt: Duration,
    /// Whether the call changes something, so that an unanswered attempt leaves its outcome unknown.
    pub(crate) changes: bool,
    /// Whether the leader has to take part in the answer, so that it pays to look for it.
    pub(crate) leader: bool,
}

impl Plan {
    /// The plan of a change.
    pub(crate) fn change(options: &Options) -> Self {
        Self { deadline: options.deadline, attempt: options.attempt_timeout, changes: true, leader: true }
    }

    /// The plan of a read.
    pub(crate) fn read(options: &Options) -> Self {
        Self { changes: false, ..Self::change(options) }
    }

    /// Returns the plan with at least this timeout for an attempt.
    pub(crate) fn attempt_at_least(self, attempt: Duration) -> Self {
        Self { attempt: self.attempt.max(attempt), ..self }
    }
}

/// Retries until there is an answer or the deadline has passed. `attempt` gets the node and the attempt's timeout.
pub(crate) async fn run<T, F, A>(
    nodes: &Arc<Nodes>,
    options: &Options,
    plan: Plan,
    mut attempt: F,
) -> Result<T, ClientError>
where
    F: FnMut(Target, Duration) -> A,
    A: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + plan.deadline;
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    let mut attempt_timeout = plan.attempt;
    let mut silences = 0;
    let mut unknown = false;
    let mut last: Option<ClientError> = None;
    loop {
        let target = nodes.target();
        let end = deadline.min(Instant::now() + target.time_for(attempt_timeout));
        let outcome = timeout_at(end, attempt(target.clone(), end.duration_since(Instant::now()))).await;
        let (verdict, error) = match outcome {
            Ok(Ok(answer)) => {
                nodes.worked(&target);
                return Ok(answer);
            }
            Ok(Err(status)) => (classify(&status), Some(ClientError::from(status))),
            Err(_) => (Verdict::SILENCE, None),
        };
        let Verdict::Retry { unknown: maybe, silent, blame } = verdict else {
            // The service decided. For a change with an id, that resolves the outcome of earlier attempts too.
            let error = error.unwrap_or_else(|| target.silence());
            return Err(if unknown { with_unknown_outcome(error) } else { error });
        };
        unknown |= maybe && plan.changes;
        if silent {
            silences += 1;
            // Not after the first timeout: one hung node says nothing about the next.
            attempt_timeout = plan.attempt.saturating_mul(1 << (silences - 1_u32).min(8));
        }
        match blame {
            Blame::Node => nodes.failed(&target.address),
            Blame::Leader => nodes.suspect_leader(&target.address),
            Blame::Nobody => nodes.worked(&target),
        }
        let pause = backoff.next(error.as_ref().and_then(|error| error.retry_after));
        last = Some(more_telling(last, error, &target));
        let latest = deadline - plan.attempt.min(plan.deadline) / LATE_FRACTION;
        if Instant::now() + pause >= latest {
            break;
        }
        sleep(pause).await;
        if plan.leader && nodes.leader().is_none() {
            nodes.find_leader(latest).await;
        }
        if Instant::now() >= latest {
            break;
        }
    }
    let error = last.unwrap_or_else(|| ClientError::local(Code::DeadlineExceeded, "no time was left to ask any node"));
    Err(ClientError { outcome_unknown: unknown, ..error })
}

/// Converts a rejection after an attempt with unknown outcome. The rejection resolves that outcome, except for two
/// reasons. UNAUTHENTICATED: the change itself may have ended the session (logout, deletion of the account).
/// STORAGE_LOW: the service rejects new changes before it checks whether the change is new.
fn with_unknown_outcome(error: ClientError) -> ClientError {
    let is_unresolved = error.code == Code::Unauthenticated || error.has_reason("STORAGE_LOW");
    ClientError { outcome_unknown: is_unresolved, ..error }
}

/// Selects the error to report at the deadline: an answer with a reason takes precedence over an unreachable node.
fn more_telling(last: Option<ClientError>, now: Option<ClientError>, target: &Target) -> ClientError {
    match (last, now) {
        (_, Some(now)) if now.reason.is_some() => now,
        (Some(last), _) if last.reason.is_some() => last,
        (_, Some(now)) => ClientError { message: format!("{}: {}", target.address, now.message), ..now },
        (_, None) => target.silence(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ceilings(asked: Option<Duration>) -> Vec<Duration> {
        // The maximum of many draws is close to the ceiling of each step of the schedule.
        let mut most = vec![Duration::ZERO; 6];
        for _ in 0..2_000 {
            let mut backoff = Backoff::new(20 * MS, 250 * MS);
            for most in &mut most {
                *most = (*most).max(backoff.next(asked));
            }
        }
        most
    }

    #[test]
    fn pauses_double_up_to_the_maximum_and_are_jittered() {
        for (most, ceiling) in ceilings(None).into_iter().zip([20, 40, 80, 160, 250, 250]) {
            assert!(most <= ceiling * MS && most > ceiling * MS * 9 / 10, "{most:?} for {ceiling} ms");
        }
        let mut backoff = Backoff::new(20 * MS, 250 * MS);
        let all: Vec<_> = (0..200).map(|_| backoff.next(None)).collect();
        assert!(all.iter().any(|pause| *pause < 50 * MS), "full jitter also waits short");
        backoff.reset();
        assert!(backoff.next(None) <= 20 * MS);
    }

    #[test]
    fn what_the_service_asks_for_is_honoured() {
        let mut backoff = Backoff::new(20 * MS, 250 * MS);
        for _ in 0..20 {
            let pause = backoff.next(Some(400 * MS));
            assert!((400 * MS..=463 * MS).contains(&pause), "{pause:?}");
        }
        for absurd in [Duration::from_secs(1 << 40), Duration::MAX] {
            // The sum with the current time must not overflow.
            assert!(backoff.next(Some(absurd)) <= ASKED_MAX + 63 * MS);
        }
    }

    fn two_nodes() -> (Arc<Nodes>, Options) {
        let options = Options { deadline: 200 * MS, ..Options::default() };
        // Port 1 refuses connections, so the search for a leader fails quickly.
        let addresses = ["127.0.0.1:1".to_owned(), "localhost:1".to_owned()];
        (Arc::new(Nodes::new(addresses, options.clone()).expect("good addresses")), options)
    }

    #[tokio::test]
    async fn a_refusal_is_not_retried() {
        let (nodes, options) = two_nodes();
        let mut attempts = 0;
        let result: Result<(), _> = run(&nodes, &options, Plan::change(&options), |_, _| {
            attempts += 1;
            async { Err(Status::not_found("nobody")) }
        })
        .await;
        let error = result.expect_err("refused");
        assert_eq!((attempts, error.code, error.outcome_unknown), (1, Code::NotFound, false));
    }

    #[tokio::test]
    async fn an_outcome_stays_unknown_until_an_answer_resolves_it() {
        let (nodes, options) = two_nodes();
        for (last, unknown) in [(Code::NotFound, false), (Code::Unauthenticated, true)] {
            let mut attempts = 0;
            let result: Result<(), _> = run(&nodes, &options, Plan::change(&options), |_, _| {
                attempts += 1;
                let code = if attempts == 1 { Code::Unavailable } else { last };
                async move { Err(Status::new(code, "")) }
            })
            .await;
            assert_eq!(result.expect_err("refused").outcome_unknown, unknown, "{last:?}");
        }
    }

    #[tokio::test]
    async fn the_deadline_ends_it_and_only_changes_are_left_unknown() {
        let (nodes, options) = two_nodes();
        for (plan, unknown) in [(Plan::change(&options), true), (Plan::read(&options), false)] {
            let began = Instant::now();
            let plan = Plan { leader: false, ..plan };
            let result: Result<(), _> = run(&nodes, &options, plan, |_, _| std::future::pending()).await;
            let error = result.expect_err("nobody answers");
            assert_eq!((error.code, error.outcome_unknown), (Code::DeadlineExceeded, unknown));
            // Generous, because the machine may be busy. The limit only has to show that no second attempt runs to its
            // end.
            assert!(began.elapsed() < 2_000 * MS, "{:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn each_attempt_goes_to_another_node_than_the_one_that_failed() {
        let (nodes, options) = two_nodes();
        let mut asked = Vec::new();
        let plan = Plan { leader: false, ..Plan::read(&options) };
        let result = run(&nodes, &options, plan, |target, _| {
            asked.push(target.address.to_string());
            let first = asked.len() == 1;
            async move { if first { Err(Status::unavailable("")) } else { Ok(()) } }
        })
        .await;
        assert!(result.is_ok());
        assert_ne!(asked[0], asked[1]);
    }
}
