//! Batches receipts: those that arrive while a command is in flight go into the next one.
//!
//! One task proposes, with at most one command in flight. There is no timer: if nothing is in flight, a receipt is
//! proposed at once, and under load the commands grow. The queue is bounded, and each caller waits for the results of
//! its own items.

use std::{future::Future, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use chat::{Command, Outcome, ReceiptItem, ReceiptResult};
use raft::ProposeError;
use trace::TraceContext;

/// Items in one command.
const ITEMS_PER_COMMAND_MAX: usize = 256;
/// Parts of callers that may wait for the next command.
const QUEUE_PARTS_MAX: usize = 4096;

/// The target of commands: the node, or a test's.
pub(super) trait Proposer: Send + Sync + 'static {
    fn propose(
        &self,
        command: Command,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Outcome, ProposeError>> + Send;
}

impl Proposer for raft::Node {
    async fn propose(
        &self,
        command: Command,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        raft::Node::propose(self, command, trace, deadline).await
    }
}

/// Why receipts have no result.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ReceiptsError {
    /// The queue is full; nothing was applied.
    #[error("the queue is full")]
    Overloaded,
    /// The caller's deadline passed while it waited.
    #[error("the deadline passed")]
    Deadline,
    /// The task has ended because the node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// One of several parts failed. The others may be applied.
    #[error("{0}")]
    Begun(Box<ReceiptsError>),
    /// The command has no outcome. Shared, because many callers wait for it.
    #[error("{0}")]
    Propose(Arc<ProposeError>),
    /// An outcome that receipts cannot have.
    #[error("unexpected outcome {0}")]
    Outcome(String),
}

type Answer = Result<Vec<ReceiptResult>, ReceiptsError>;

struct Part {
    items: Vec<ReceiptItem>,
    trace: Option<TraceContext>,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Part {
    fn answer(self, answer: Answer) {
        // Fails only if the caller has disconnected.
        let _ = self.answer.send(answer);
    }
}

/// The queue of receipts. Clones share it; the task ends with the last clone.
#[derive(Debug, Clone)]
pub(super) struct Receipts {
    queue: mpsc::Sender<Part>,
}

impl Receipts {
    /// Starts the task. Needs a tokio runtime.
    pub(super) fn start(proposer: impl Proposer) -> Self {
        let (queue, parts) = mpsc::channel(QUEUE_PARTS_MAX);
        tokio::spawn(coalesce(proposer, parts));
        Self { queue }
    }

    /// Applies `items` and returns their results, in order.
    pub(super) async fn submit(
        &self,
        items: Vec<ReceiptItem>,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Answer {
        let mut answers: Vec<oneshot::Receiver<Answer>> = Vec::new();
        // After one part is queued, the failure of another does not mean that nothing was applied.
        let after_parts = |error, parts: usize| if parts > 0 { ReceiptsError::Begun(Box::new(error)) } else { error };
        for chunk in items.chunks(ITEMS_PER_COMMAND_MAX) {
            let (answer, answered) = oneshot::channel();
            let part = Part { items: chunk.to_vec(), trace, deadline, answer };
            self.queue.try_send(part).map_err(|error| {
                let error = match error {
                    mpsc::error::TrySendError::Full(_) => ReceiptsError::Overloaded,
                    mpsc::error::TrySendError::Closed(_) => ReceiptsError::Stopped,
                };
                after_parts(error, answers.len())
            })?;
            answers.push(answered);
        }
        let others = answers.len().saturating_sub(1);
        let mut results = Vec::with_capacity(items.len());
        for answered in answers {
            match timeout_at(deadline, answered).await {
                Err(_) => return Err(ReceiptsError::Deadline),
                Ok(Err(_)) => return Err(after_parts(ReceiptsError::Stopped, others)),
                Ok(Ok(answer)) => results.extend(answer.map_err(|error| after_parts(error, others))?),
            }
        }
        Ok(results)
    }
}

async fn coalesce(proposer: impl Proposer, mut parts: mpsc::Receiver<Part>) {
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(part) => part,
            None => match parts.recv().await {
                Some(part) => part,
                None => return,
            },
        };
        let mut batch = vec![first];
        let mut count = batch[0].items.len();
        while let Ok(part) = parts.try_recv() {
            if count + part.items.len() > ITEMS_PER_COMMAND_MAX {
                left_over = Some(part);
                break;
            }
            count += part.items.len();
            batch.push(part);
        }
        // The callers of late parts have timed out, and nothing of these parts was proposed.
        let now = Instant::now();
        let (in_time, late): (Vec<_>, Vec<_>) = batch.into_iter().partition(|part| now < part.deadline);
        late.into_iter().for_each(|part| part.answer(Err(ReceiptsError::Deadline)));
        let wanted: Vec<_> = in_time.into_iter().filter(|part| !part.answer.is_closed()).collect();
        if !wanted.is_empty() {
            propose(&proposer, wanted).await;
        }
    }
}

async fn propose(proposer: &impl Proposer, batch: Vec<Part>) {
    let items: Vec<_> = batch.iter().flat_map(|part| part.items.iter().copied()).collect();
    let expected = items.len();
    let deadline = batch.iter().map(|part| part.deadline).max().unwrap_or_else(Instant::now);
    // A command carries one trace: the first sampled one.
    let trace = batch.iter().filter_map(|part| part.trace).find(|trace| trace.is_sampled());
    let results = match proposer.propose(Command::Receipts(items), trace, deadline).await {
        Ok(Outcome::ReceiptsApplied(results)) if results.len() == expected => Ok(results),
        Ok(Outcome::Rejected(rejection)) => Ok(vec![Err(rejection); expected]),
        Ok(other) => Err(ReceiptsError::Outcome(format!("{other:?}"))),
        Err(error) => Err(ReceiptsError::Propose(Arc::new(error))),
    };
    let mut results = results.map(Vec::into_iter);
    for part in batch {
        let answer = match &mut results {
            Ok(results) => Ok(results.by_ref().take(part.items.len()).collect()),
            Err(error) => Err(error.clone()),
        };
        part.answer(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use chat::{ConversationId, Rejection, Revision, Seq, SessionId};

    /// Answers when permitted, and records the sizes of the commands.
    struct Gate {
        let_through: Arc<Semaphore>,
        sizes: Arc<Mutex<Vec<usize>>>,
        fail: bool,
    }

    impl Proposer for Gate {
        async fn propose(
            &self,
            command: Command,
            _: Option<TraceContext>,
            _: Instant,
        ) -> Result<Outcome, ProposeError> {
            let Command::Receipts(items) = command else { panic!("only receipts") };
            self.sizes.lock().unwrap().push(items.len());
            self.let_through.acquire().await.unwrap().forget();
            if self.fail {
                return Err(ProposeError::OutcomeUnknown("lost".into()));
            }
            let result = |item: &ReceiptItem| match item.conversation.0 {
                0 => Err(Rejection::ConversationUnknown),
                _ => Ok((item.up_to, Revision(1))),
            };
            Ok(Outcome::ReceiptsApplied(items.iter().map(result).collect()))
        }
    }

    fn start(fail: bool) -> (Receipts, Arc<Semaphore>, Arc<Mutex<Vec<usize>>>) {
        let (let_through, sizes) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let gate = Gate { let_through: let_through.clone(), sizes: sizes.clone(), fail };
        (Receipts::start(gate), let_through, sizes)
    }

    fn item(up_to: u64) -> ReceiptItem {
        let conversation = ConversationId(up_to % 7);
        ReceiptItem { session: SessionId(1), conversation, up_to: Seq(up_to), read: false }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn what_arrives_meanwhile_goes_together_and_everyone_gets_its_own() {
        let (receipts, gate, sizes) = start(false);
        let submit = |n: u64| {
            let receipts = receipts.clone();
            async move { receipts.submit(vec![item(n), item(n + 1)], None, soon()).await.unwrap() }
        };
        let first = tokio::spawn(submit(1));
        while sizes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let others = tokio::spawn(join_all((10..30).map(submit)));
        // All twenty are queued once the queue has that many fewer places.
        while receipts.queue.capacity() > QUEUE_PARTS_MAX - 20 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), [Ok((Seq(1), Revision(1))), Ok((Seq(2), Revision(1)))]);
        for (n, results) in (10..30).zip(others.await.unwrap()) {
            let expected = |n: u64| match n % 7 {
                0 => Err(Rejection::ConversationUnknown),
                _ => Ok((Seq(n), Revision(1))),
            };
            assert_eq!(results, [expected(n), expected(n + 1)]);
        }
        assert_eq!(*sizes.lock().unwrap(), [2, 40]);
    }

    #[tokio::test]
    async fn a_command_is_bounded() {
        let (receipts, gate, sizes) = start(false);
        gate.add_permits(10);
        let results = receipts.submit((1..=1200).map(item).collect(), None, soon()).await.unwrap();
        assert_eq!(results.len(), 1200);
        assert_eq!(*sizes.lock().unwrap(), [256, 256, 256, 256, 176]);
    }

    #[tokio::test]
    async fn a_failure_is_everyones() {
        let (receipts, gate, _) = start(true);
        gate.add_permits(10);
        let error = receipts.submit(vec![item(1)], None, soon()).await.unwrap_err();
        assert!(matches!(error, ReceiptsError::Propose(e) if matches!(*e, ProposeError::OutcomeUnknown(_))));
    }

    #[tokio::test]
    async fn the_deadline_is_kept_and_what_is_late_is_not_proposed() {
        let (receipts, gate, sizes) = start(false);
        let error = receipts.submit(vec![item(1)], None, Instant::now()).await.unwrap_err();
        assert!(matches!(error, ReceiptsError::Deadline));
        gate.add_permits(1);
        assert!(receipts.submit(vec![item(1), item(2)], None, soon()).await.is_ok());
        assert_eq!(*sizes.lock().unwrap(), [2]);
    }

    #[tokio::test]
    async fn the_failure_of_one_of_several_parts_is_not_that_nothing_was_applied() {
        let (receipts, gate, _) = start(true);
        gate.add_permits(10);
        let error = receipts.submit((1..=300).map(item).collect(), None, soon()).await.unwrap_err();
        assert!(matches!(error, ReceiptsError::Begun(_)), "{error}");
    }
}
