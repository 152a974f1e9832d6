//! The stored messages, and the messages that a subscriber received.

use std::sync::{Arc, Mutex};

use client::{Client, Consistency, EventKind, Message};
use tokio::task::JoinHandle;

use super::eventually;

/// The whole conversation with `partner`, oldest first, read linearizably page by page.
pub async fn history(client: &Client, partner: &str) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut before = 0;
    loop {
        let page = client.read_conversation(partner, before, 200, Consistency::Linearizable).await.unwrap();
        let more = page.has_more;
        messages.extend(page.messages);
        match messages.last() {
            Some(oldest) if more => before = oldest.seq,
            _ => break,
        }
    }
    messages.reverse();
    messages
}

/// Collects the messages from an event stream of the library, in order of arrival.
pub struct Listener {
    ids: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Starts to listen. Returns when the subscription is open.
    pub async fn start(client: &Client) -> Self {
        // The start revision guarantees that everything after it arrives, whenever the subscription opens.
        let partners = client.list_chat_partners(1, "", Consistency::Linearizable).await.unwrap();
        let after = partners.header.revision;
        let mut events = client.events(Some(after));
        let ids = Arc::<Mutex<Vec<u64>>>::default();
        let collected = ids.clone();
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let event = event.expect("the event stream goes on");
                if let EventKind::Message(message) = event.kind {
                    assert_eq!(event.revision, message.message_id);
                    collected.lock().unwrap().push(message.message_id);
                }
            }
        });
        Self { ids, task }
    }

    /// Asserts that exactly the messages `expected` arrived, in this order.
    pub async fn heard(self, expected: &[u64]) {
        eventually("all messages on the event stream", async || {
            assert!(!self.task.is_finished(), "the event stream ended");
            let heard = self.ids.lock().unwrap().len();
            (heard >= expected.len()).then_some(()).ok_or_else(|| format!("{heard} of {}", expected.len()))
        })
        .await;
        self.task.abort();
        let heard = self.ids.lock().unwrap();
        if let Some(at) = (0..expected.len()).find(|at| heard[*at] != expected[*at]) {
            let around = at.saturating_sub(3)..(at + 4).min(expected.len());
            panic!("event {at} of {}: heard {:?}, stored {:?}", heard.len(), &heard[around.clone()], &expected[around]);
        }
        assert_eq!(heard.len(), expected.len(), "more events than messages");
    }
}
