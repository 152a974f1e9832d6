//! The stream of one account: cut and resumed on other nodes repeatedly; at the end, read up to a given revision.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::Request;

use super::{
    Shared,
    actor::{any_route, random},
    calls::Route,
};
use crate::history::{Action, Event, Happening, Marks};
use client::{Deletion, EventKind, Message, Receipt, direct};
use fastrand::Rng;
use proto::chat::v1::{SubscribeRequest, SubscribeResponse, subscribe_response::Event as Wire};

/// Time limit for a node to accept a subscription.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a connection without events.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum lifetime of a connection, in milliseconds.
const LIFE_MS: u64 = 3_000;
/// Maximum lifetime of a connection at the end. Short, so that the stream soon leaves a node that is behind.
const LAST_LIFE: Duration = Duration::from_millis(1_000);
/// Maximum number of events of one connection, which bounds the record in the history.
const EVENTS_MAX: usize = 10_000;

/// The stream of one account. See the [module](self).
pub(super) struct Stream {
    shared: Arc<Shared>,
    client: u32,
    account: u16,
    random: Rng,
    cursor: u64,
    /// Received and not yet acknowledged messages, by conversation.
    received: BTreeMap<u64, (u16, u64)>,
}

/// The events of one connection.
#[derive(Default)]
struct Heard {
    events: Vec<Happening>,
    cursor: u64,
}

impl Heard {
    /// Whether to end the connection.
    fn is_enough(&self, target: Option<u64>) -> bool {
        self.events.len() >= EVENTS_MAX || target.is_some_and(|target| self.cursor >= target)
    }
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, client: u32, account: u16, after: u64) -> Self {
        let random = random(shared.seed, client);
        Self { shared, client, account, random, cursor: after, received: BTreeMap::new() }
    }

    /// Runs until `finish` names a revision and the stream has reached it, or until the time limit.
    pub(super) async fn run(mut self, mut finish: watch::Receiver<Option<u64>>) {
        let mut give_up: Option<Instant> = None;
        loop {
            let target = *finish.borrow_and_update();
            if let Some(target) = target {
                let give_up = *give_up.get_or_insert_with(|| Instant::now() + 2 * self.shared.read_timeout);
                if self.cursor >= target || Instant::now() >= give_up {
                    self.ended();
                    return;
                }
            }
            let route = any_route(&mut self.random, self.shared.nodes.len());
            let life = Duration::from_millis(1 + self.random.u64(..LIFE_MS));
            let life = if target.is_some() { LAST_LIFE } else { life };
            let began = self.shared.now_us();
            let mut heard = Heard { events: Vec::new(), cursor: self.cursor };
            let listening = async {
                match route {
                    Route::Node(node) => self.listen(node, &mut heard, target).await,
                    Route::Library => self.listen_by_library(&mut heard, target).await,
                }
            };
            // The end of the load also ends the current connection, because its node may be behind.
            tokio::select! {
                _ = timeout(life, listening) => {}
                _ = finish.changed(), if target.is_none() => {}
            }
            self.keep(route, began, heard).await;
        }
    }

    /// Records the final cursor, even if no connection ever succeeded.
    fn ended(&self) {
        let (after, cursor) = (self.cursor, self.cursor);
        let action = Action::Subscribe { stream: 0, after, events: Vec::new(), cursor };
        self.shared.record(self.client, self.account, None, self.shared.now_us(), action);
    }

    /// Records the received events, and acknowledges some of them.
    async fn keep(&mut self, route: Route, began: u64, heard: Heard) {
        if heard.cursor == self.cursor && heard.events.is_empty() {
            sleep(PAUSE).await;
            return;
        }
        for happening in &heard.events {
            if let Event::Message(seen) = &happening.event
                && let Some(sender) = seen.sender.filter(|sender| *sender != self.account)
            {
                let received = self.received.entry(happening.conversation).or_insert((sender, seen.seq));
                received.1 = received.1.max(seen.seq);
            }
        }
        let Heard { events, cursor } = heard;
        let action = Action::Subscribe { stream: 0, after: self.cursor, events, cursor };
        self.cursor = cursor;
        self.shared.record(self.client, self.account, route.node(), began, action);
        if Instant::now() >= self.shared.until() {
            return;
        }
        if let Some((conversation, (with, up_to))) = self.received.pop_first() {
            let shared = self.shared.clone();
            let (route, began) = (any_route(&mut self.random, shared.nodes.len()), shared.now_us());
            let me = &shared.people[usize::from(self.account)];
            let outcome = shared.deliver(route, me, conversation, up_to).await;
            shared.record(self.client, self.account, route.node(), began, Action::Deliver { with, up_to, outcome });
        }
    }

    /// Runs one subscription on one node, without filtering of duplicates and gaps.
    async fn listen(&self, node: u16, heard: &mut Heard, target: Option<u64>) {
        let mut request = Request::new(SubscribeRequest { after_revision: Some(self.cursor), consistency: None });
        let me = &self.shared.people[usize::from(self.account)];
        request.metadata_mut().insert("authorization", me.token.clone());
        let mut client = direct::chat(self.shared.nodes[usize::from(node)].clone());
        let opened = timeout_at(Instant::now() + OPEN_TIMEOUT, client.subscribe(request)).await;
        let Ok(Ok(answer)) = opened else { return };
        let mut stream = answer.into_inner();
        while !heard.is_enough(target) {
            let Ok(Some(SubscribeResponse { revision, event, .. })) = stream.message().await else { return };
            let (conversation, event) = match event {
                Some(Wire::Message(event)) => self.message(&event.message.unwrap_or_default().into()),
                Some(Wire::Receipt(receipt)) => self.receipt(&receipt.into()),
                Some(Wire::Deletion(deletion)) => deleted(deletion.into()),
                // An event of a kind that is not recorded advances the cursor like a heartbeat.
                Some(Wire::AccountDeleted(_) | Wire::Heartbeat(_)) | None => {
                    heard.cursor = heard.cursor.max(revision);
                    continue;
                }
            };
            heard.events.push(Happening { revision, conversation, event });
            heard.cursor = heard.cursor.max(revision);
        }
    }

    /// Subscribes through the library, which resumes on its own.
    async fn listen_by_library(&self, heard: &mut Heard, target: Option<u64>) {
        let mut stream = self.shared.people[usize::from(self.account)].library.events(Some(self.cursor));
        while !heard.is_enough(target) {
            let Some(Ok(event)) = stream.next().await else { return };
            let (conversation, content) = match event.kind {
                EventKind::Message(message) => self.message(&message),
                EventKind::Receipt(receipt) => self.receipt(&receipt),
                EventKind::Deletion(deletion) => deleted(deletion),
                EventKind::AccountDeleted(_) => continue,
            };
            heard.events.push(Happening { revision: event.revision, conversation, event: content });
            heard.cursor = stream.cursor().unwrap_or_default().max(heard.cursor);
        }
    }

    fn message(&self, message: &Message) -> (u64, Event) {
        (message.conversation_id, Event::Message(self.shared.seen(message)))
    }

    fn receipt(&self, receipt: &Receipt) -> (u64, Event) {
        let marks = Marks { delivered: receipt.delivered_seq, read: receipt.read_seq };
        let member = self.shared.numbers.get(&receipt.member).copied();
        (receipt.conversation_id, Event::Receipt { member, marks })
    }
}

fn deleted(deletion: Deletion) -> (u64, Event) {
    (deletion.conversation_id, Event::Deletion { seqs: deletion.seqs, for_everyone: deletion.for_everyone })
}
