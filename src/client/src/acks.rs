//! Acknowledges the delivery of messages: collects watermarks, and sends them in batches in the background.
//!
//! Watermarks are cumulative, so only the highest of each conversation is kept. A batch that cannot be sent is kept and
//! retried. If watermarks are lost when the process ends, the service sends the messages again at the next catch-up.
//! Bounded: with [`CONVERSATIONS_MAX`] pending conversations, watermarks of further ones are dropped, with the same
//! effect.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Client;
use chat::limits::RECEIPTS_MAX;

/// Maximum number of conversations with a pending watermark.
const CONVERSATIONS_MAX: usize = 10_000;
/// Time that watermarks are collected before a batch is sent.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after a batch failed for its whole deadline.
const PAUSE: Duration = Duration::from_secs(1);

/// Watermarks to be sent.
#[derive(Debug, Default)]
struct Pending {
    seqs: Mutex<BTreeMap<u64, u64>>,
    wake: Notify,
}

impl Pending {
    fn note(&self, conversation: u64, seq: u64) {
        let mut seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        if seqs.len() < CONVERSATIONS_MAX || seqs.contains_key(&conversation) {
            let had = seqs.entry(conversation).or_default();
            *had = seq.max(*had);
        }
    }

    fn take(&self) -> Vec<(u64, u64)> {
        let mut seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = match seqs.keys().nth(RECEIPTS_MAX).copied() {
            Some(first_left) => seqs.split_off(&first_left),
            None => BTreeMap::new(),
        };
        let taken = std::mem::replace(&mut *seqs, rest);
        taken.into_iter().collect()
    }
}

/// The acknowledgements of one event stream. On drop, pending watermarks are sent once more in the background.
#[derive(Debug)]
pub(super) struct Acks {
    pending: Arc<Pending>,
    closing: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Acks {
    pub(super) fn start(client: Client) -> Self {
        let pending = Arc::<Pending>::default();
        let closing = CancellationToken::new();
        let task = tokio::spawn(send(client, pending.clone(), closing.clone()));
        Self { pending, closing, task: Some(task) }
    }

    /// Records that everything up to `seq` was received.
    pub(super) fn note(&self, conversation: u64, seq: u64) {
        self.pending.note(conversation, seq);
        self.pending.wake.notify_one();
    }

    /// Sends the pending watermarks, and returns when that has succeeded or failed.
    pub(super) async fn close(mut self) {
        self.closing.cancel();
        if let Some(task) = self.task.take() {
            // The task ends on its own and has no result. Fails only if it panicked.
            let _ = task.await;
        }
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

async fn send(client: Client, pending: Arc<Pending>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = pending.wake.notified() => { let _ = closing.run_until_cancelled(sleep(GATHER)).await; }
            () = closing.cancelled() => {}
        }
        // Read before the last batch is taken: watermarks noted after closing are not expected to be sent.
        let last = closing.is_cancelled();
        loop {
            let batch = pending.take();
            if batch.is_empty() {
                break;
            }
            let Err(error) = client.acknowledge_delivery(&batch).await else { continue };
            tracing::debug!(%error, "Deliveries could not be acknowledged");
            let later = error.is_unavailable() || error.outcome_unknown || error.has_reason("RATE_LIMITED");
            if last || !later {
                // Rejected, for instance because the session ended. The service sends the messages again to the next
                // session.
                break;
            }
            for (conversation, seq) in batch {
                pending.note(conversation, seq);
            }
            let _ = closing.run_until_cancelled(sleep(PAUSE)).await;
            pending.wake.notify_one();
            break;
        }
        if last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_highest_watermark_of_a_conversation_is_sent() {
        let pending = Pending::default();
        for (conversation, seq) in [(1, 4), (2, 9), (1, 3), (1, 6)] {
            pending.note(conversation, seq);
        }
        assert_eq!(pending.take(), [(1, 6), (2, 9)]);
        assert!(pending.take().is_empty());
    }

    #[test]
    fn batches_and_what_waits_are_bounded() {
        let pending = Pending::default();
        for conversation in 0..CONVERSATIONS_MAX as u64 + 5 {
            pending.note(conversation, 1);
        }
        pending.note(3, 2);
        let mut sizes = Vec::new();
        loop {
            let batch = pending.take();
            if batch.is_empty() {
                break;
            }
            sizes.push(batch.len());
        }
        assert_eq!(sizes, [RECEIPTS_MAX; CONVERSATIONS_MAX / RECEIPTS_MAX]);
    }
}
