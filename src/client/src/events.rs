//! The event stream: a task that keeps one subscription open and passes on the events that `resume` accepts.
//!
//! The task and the reader share a bounded queue. A slow reader slows down the task and then the node, which ends the
//! subscription. The task resumes it when the queue has room again, so that nothing is lost and memory stays bounded. A
//! node without events sends heartbeats. The silence timeout runs only while the task waits for the node.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Status, Streaming};

use super::{
    Client, ClientError, Deletion, MemberDeleted, Message, Receipt,
    acks::Acks,
    calls::chat_client,
    error::{Blame, Verdict, classify},
    nodes::Target,
    resume::Resume,
    retry::Backoff,
};
use proto::chat::v1::SubscribeResponse;

/// Capacity of the queue between the task and the reader.
const QUEUE: usize = 256;
/// Time limit for a node to accept a subscription, in addition to the network round trip.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum pause between two attempts to reconnect.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// An event in a conversation of the account.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its position in the order of all changes. Pass it to [`Client::events`] to resume after it.
    pub revision: u64,
    /// The kind of change.
    pub kind: EventKind,
}

/// The kinds of [`Event`].
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A message was stored. Includes messages that the account sent from other clients.
    Message(Message),
    /// A member's delivered or read watermark advanced.
    Receipt(Receipt),
    /// Messages were deleted.
    Deletion(Deletion),
    /// A member deleted its account.
    AccountDeleted(MemberDeleted),
}

/// Events in revision order, without gaps or duplicates, across reconnections and nodes. Created by [`Client::events`].
///
/// Dropping it ends the subscription.
#[derive(Debug)]
pub struct EventStream {
    queue: mpsc::Receiver<Result<Item, ClientError>>,
    cursor: Option<u64>,
    acks: Option<Acks>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Item {
    event: Option<Event>,
    cursor: Option<u64>,
}

impl EventStream {
    pub(super) fn start(client: Client, after_revision: Option<u64>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let acks = client.options().acknowledge.then(|| Acks::start(client.clone()));
        let listener = Listener {
            backoff: Backoff::new(client.options().backoff_min, PAUSE_MAX),
            client,
            resume: Resume::new(after_revision),
            sender,
            connected_before: false,
            trouble_since: None,
        };
        let task = tokio::spawn(listener.run()).abort_handle();
        Self { queue, cursor: after_revision, acks, task }
    }

    /// Waits for the next event, reconnecting as needed. An error ends the stream: after it, this returns `None`.
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED when the session ended; OUT_OF_RANGE / REVISION_IN_FUTURE or REVISION_LOST; RESOURCE_EXHAUSTED /
    /// TOO_MANY_SUBSCRIPTIONS; UNAVAILABLE when no node accepted the subscription for
    /// [`super::Options::reconnect_timeout`].
    pub async fn next(&mut self) -> Option<Result<Event, ClientError>> {
        loop {
            let item = match self.queue.recv().await? {
                Ok(item) => item,
                Err(error) => return Some(Err(error)),
            };
            self.cursor = item.cursor;
            let Some(event) = item.event else { continue };
            if let (Some(acks), EventKind::Message(message)) = (&self.acks, &event.kind)
                // Only the sender of a message gets its client message id. Own messages need no receipt.
                && message.client_message_id.is_none()
            {
                acks.note(message.conversation_id, message.seq);
            }
            return Some(Ok(event));
        }
    }

    /// The revision to resume after: [`EventStream::next`] has returned everything up to it. Absent until the messages
    /// that were undelivered at the start have been returned.
    pub fn cursor(&self) -> Option<u64> {
        self.cursor
    }

    /// Ends the subscription, and waits until the delivery of the returned messages is acknowledged or
    /// [`super::Options::deadline`] has passed.
    pub async fn close(mut self) {
        self.task.abort();
        if let Some(acks) = self.acks.take() {
            acks.close().await;
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a subscription ended.
enum End {
    /// The reader was dropped.
    Unwanted,
    /// The service rejected the subscription for good.
    Refused(ClientError),
    /// The connection was lost; the subscription is to be resumed.
    Disconnected { error: ClientError, blame: Blame },
}

struct Listener {
    client: Client,
    resume: Resume,
    sender: mpsc::Sender<Result<Item, ClientError>>,
    backoff: Backoff,
    connected_before: bool,
    trouble_since: Option<Instant>,
}

impl Listener {
    async fn run(mut self) {
        loop {
            let target = self.client.nodes.target();
            let error = match self.subscription(&target).await {
                End::Unwanted => return,
                End::Refused(error) => error,
                End::Disconnected { error, blame } => {
                    match blame {
                        Blame::Node => self.client.nodes.failed(&target.address),
                        Blame::Leader => self.client.nodes.suspect_leader(&target.address),
                        Blame::Nobody => {}
                    }
                    let since = *self.trouble_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < self.client.options().reconnect_timeout {
                        self.pause(&error).await;
                        continue;
                    }
                    error
                }
            };
            // Fails if the reader was dropped, which is fine.
            let _ = self.sender.send(Err(error)).await;
            return;
        }
    }

    async fn pause(&mut self, error: &ClientError) {
        tracing::debug!(%error, cursor = self.resume.cursor(), "Event stream ended; resuming");
        sleep(self.backoff.next(error.retry_after)).await;
        if self.client.nodes.leader().is_none() {
            self.client.nodes.find_leader(Instant::now() + OPEN_TIMEOUT).await;
        }
    }

    /// Runs one subscription from its start to its end.
    async fn subscription(&mut self, target: &Target) -> End {
        let mut request = Request::new(self.resume.request());
        if let Some(token) = self.client.session() {
            request.metadata_mut().insert("authorization", token);
        }
        if let Some(trace) = self.client.traceparent() {
            request.metadata_mut().insert("traceparent", trace);
        }
        let mut client = chat_client(target.channel.clone());
        let stream = match timeout(target.time_for(OPEN_TIMEOUT), client.subscribe(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return self.ended(status),
            Err(_) => return silent(target),
        };
        self.listen(target, stream).await
    }

    async fn listen(&mut self, target: &Target, mut stream: Streaming<SubscribeResponse>) -> End {
        let silence_max = self.client.options().heartbeat.saturating_mul(2);
        loop {
            let response = match timeout(silence_max, stream.message()).await {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => {
                    let error = ClientError::local(Code::Unavailable, format!("{} ended the stream", target.address));
                    return End::Disconnected { error, blame: Blame::Nobody };
                }
                Ok(Err(status)) => return self.ended(status),
                Err(_) => return silent(target),
            };
            if self.trouble_since.take().is_some() || !self.connected_before {
                self.connected_before = true;
                self.backoff.reset();
            }
            let event = self.resume.accept(response);
            let item = Item { event, cursor: self.resume.cursor() };
            if self.sender.send(Ok(item)).await.is_err() {
                return End::Unwanted;
            }
        }
    }

    fn ended(&self, status: Status) -> End {
        let verdict = classify(&status);
        let error = ClientError::from(status);
        match verdict {
            Verdict::Retry { blame, .. } => End::Disconnected { error, blame },
            // The node may still count the previous connection if it did not detect its end yet.
            Verdict::Final if self.connected_before && error.has_reason("TOO_MANY_SUBSCRIPTIONS") => {
                End::Disconnected { error, blame: Blame::Nobody }
            }
            Verdict::Final => End::Refused(error),
        }
    }
}

fn silent(target: &Target) -> End {
    let message = format!("{} has been silent for too long", target.address);
    End::Disconnected { error: ClientError::local(Code::Unavailable, message), blame: Blame::Node }
}
