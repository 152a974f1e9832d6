//! A mixed load, as people cause it in a day: they send, receive, acknowledge, read and log in.
//!
//! Calls begin at random times (a Poisson process) whose rate does not depend on the answers: an open loop. If a person
//! has too many calls in flight, the next one waits, and its latency counts from the time at which it was due, so a
//! cluster that stalls is not measured less often. A person has one connection, to one of the nodes in turn, and
//! chooses partners by Zipf's law. A failed call is an error and is not repeated.
//!
//! Does not cover: whether every message arrives (`verify`).

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use prost::Message;
use tokio::{
    sync::{Mutex, Notify, Semaphore},
    task::{LocalSet, spawn_local},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tonic::{Status, codegen::http::HeaderValue};

use super::{
    accounts::{Account, Registered},
    latency::Latencies,
    load::{ATTEMPT_TIMEOUT, PAGE, PAUSE, connect_to, message_id},
};
use ::verify::connection::Connection;
use chat::limits::RECEIPTS_MAX;
use client::{ClientError, Options};
use proto::chat::v1::{
    AcknowledgeDeliveryRequest, AcknowledgeDeliveryResponse, DeliveryReceipt, ListChatPartnersRequest,
    ListChatPartnersResponse, LoginRequest, LoginResponse, MarkReadRequest, MarkReadResponse, ReadConversationRequest,
    ReadConversationResponse, SendMessageRequest, SendMessageResponse, SubscribeRequest, SubscribeResponse,
    mark_read_request, read_conversation_request, send_message_request, subscribe_response::Event,
};

/// Bytes at the beginning of a body: the time of the send.
pub(super) const STAMP_BYTES: u32 = 16;
/// Calls of a person that may be in flight. A further one waits.
const IN_FLIGHT_MAX: usize = 32;
/// Pause between two acknowledgements of a person, as in the client library.
const ACKNOWLEDGE_PAUSE: Duration = Duration::from_millis(100);
/// Part of the acknowledged conversations that are marked as read at once.
const READ_AT_ONCE: f64 = 0.5;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Send,
    /// From the beginning of a send until the event reaches another person.
    Event,
    Acknowledge,
    MarkRead,
    Page,
    Partners,
    Login,
}

pub(super) const KINDS: [Kind; 7] =
    [Kind::Send, Kind::Event, Kind::Acknowledge, Kind::MarkRead, Kind::Page, Kind::Partners, Kind::Login];

/// How often people do something, for each send. Acknowledgements and marks follow from what arrives.
const PER_SEND: [(Kind, f64); 4] = [(Kind::Send, 1.0), (Kind::Page, 0.2), (Kind::Partners, 0.05), (Kind::Login, 0.005)];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Event => "event",
            Self::Acknowledge => "acknowledge",
            Self::MarkRead => "mark_read",
            Self::Page => "page",
            Self::Partners => "partners",
            Self::Login => "login",
        }
    }
}

/// The size and the duration of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Day {
    /// People with a connection and a subscription. The other accounts only receive.
    pub(super) people: u32,
    /// Sends per second of all people.
    pub(super) rate: f64,
    pub(super) body_bytes: u32,
    /// Time at the beginning that is not counted.
    pub(super) warm_up: Duration,
    /// Time that is counted, after the warm-up.
    pub(super) duration: Duration,
}

/// The counted calls of one kind.
#[derive(Debug, Default, Clone)]
pub(super) struct Measured {
    pub(super) latencies: Latencies,
    pub(super) errors: u64,
}

/// The counted calls of all kinds.
#[derive(Default)]
pub(super) struct Results {
    kinds: [Measured; KINDS.len()],
    /// The last error, whether it was counted or not.
    pub(super) last_error: Option<ClientError>,
}

impl Results {
    pub(super) fn of(&self, kind: Kind) -> &Measured {
        &self.kinds[kind as usize]
    }
}

/// State that all people share. There is one thread, so it needs no locks.
struct Shared {
    day: Day,
    accounts: Vec<Account>,
    /// Accounts with a password, for logins.
    registered: Vec<Registered>,
    nodes: Vec<String>,
    options: Options,
    partners: Zipf,
    epoch: Instant,
    counting_from: Instant,
    until: Instant,
    results: RefCell<Results>,
}

/// Runs the people. There is at least one account of each sort.
pub(super) async fn measure(
    nodes: Vec<String>,
    options: Options,
    accounts: Vec<Account>,
    registered: Vec<Registered>,
    day: Day,
) -> Results {
    let epoch = Instant::now();
    let counting_from = epoch + day.warm_up;
    let until = counting_from + day.duration;
    let partners = Zipf::new(accounts.len().saturating_sub(1).max(1));
    let results = RefCell::default();
    let shared = Shared { day, accounts, registered, nodes, options, partners, epoch, counting_from, until, results };
    let shared = Rc::new(shared);
    let people = LocalSet::new();
    for index in 0..day.people as usize {
        let person = Rc::new(Person::new(shared.clone(), index));
        people.spawn_local(person.clone().act());
        people.spawn_local(person.clone().receive());
        people.spawn_local(person.acknowledge());
    }
    // Subscriptions do not end by themselves.
    let _ = timeout_at(until, people).await;
    shared.results.take()
}

impl Shared {
    fn counts(&self, now: Instant) -> bool {
        now >= self.counting_from && now < self.until
    }

    fn succeeded(&self, kind: Kind, began: Instant) {
        let now = Instant::now();
        if self.counts(now) {
            self.results.borrow_mut().kinds[kind as usize].latencies.record(now - began);
        }
    }

    fn failed(&self, kind: Kind, status: Status) {
        let mut results = self.results.borrow_mut();
        if self.counts(Instant::now()) {
            results.kinds[kind as usize].errors += 1;
        }
        results.last_error = Some(status.into());
    }

    /// A body that says when it was sent.
    fn body(&self, began: Instant) -> String {
        let stamp = (began - self.epoch).as_nanos() as u64;
        format!("{stamp:016x}{:x<1$}", "", self.day.body_bytes.saturating_sub(STAMP_BYTES) as usize)
    }

    /// When a body was sent, if it was sent by this load.
    fn sent_at(&self, body: &str) -> Option<Instant> {
        let stamp = u64::from_str_radix(body.get(..STAMP_BYTES as usize)?, 16).ok()?;
        self.epoch.checked_add(Duration::from_nanos(stamp))
    }
}

/// One person.
struct Person {
    shared: Rc<Shared>,
    index: usize,
    /// Shared by all calls. `None` before the first one, and after it broke.
    connection: Mutex<Option<Connection>>,
    /// Attempts to connect, which choose the node.
    attempts: Cell<usize>,
    in_flight: Arc<Semaphore>,
    /// Received messages to acknowledge: the last seq of each conversation.
    received: RefCell<HashMap<u64, u64>>,
    has_received: Notify,
}

impl Person {
    fn new(shared: Rc<Shared>, index: usize) -> Self {
        Self {
            shared,
            index,
            connection: Mutex::default(),
            attempts: Cell::new(index),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            received: RefCell::default(),
            has_received: Notify::new(),
        }
    }

    fn account(&self) -> &Account {
        &self.shared.accounts[self.index]
    }

    /// Begins a call whenever it is due.
    async fn act(self: Rc<Self>) {
        let mut random = Rng::new();
        let day = self.shared.day;
        let all: f64 = PER_SEND.iter().map(|(_, weight)| weight).sum();
        let pause = f64::from(day.people) / (day.rate * all);
        let mut due = Instant::now();
        loop {
            due += Duration::from_secs_f64(exponential(&mut random) * pause);
            sleep_until(due).await;
            let (permit, began) = match self.in_flight.clone().try_acquire_owned() {
                // The timer is less precise than the latencies.
                Ok(permit) => (Ok(permit), Instant::now()),
                Err(_) => (self.in_flight.clone().acquire_owned().await, due),
            };
            let kind = kind(random.f64() * all);
            let partner = self.shared.partners.rank(random.f64());
            let (person, id) = (self.clone(), message_id(&mut random).to_string());
            spawn_local(async move {
                person.begin(kind, began, partner, id).await;
                drop(permit);
            });
        }
    }

    async fn begin(&self, kind: Kind, began: Instant, rank: usize, id: String) {
        let shared = &self.shared;
        let partner = shared.accounts[partner(self.index, rank, shared.accounts.len())].name.clone();
        match kind {
            Kind::Send => {
                let to = Some(send_message_request::To::Recipient(partner));
                let message = SendMessageRequest { to, body: shared.body(began), client_message_id: id };
                let _: Option<SendMessageResponse> = self.call(kind, began, "SendMessage", &message).await;
            }
            Kind::Page => {
                let conversation = Some(read_conversation_request::Conversation::Partner(partner));
                let message = ReadConversationRequest { conversation, limit: PAGE, ..Default::default() };
                let _: Option<ReadConversationResponse> = self.call(kind, began, "ReadConversation", &message).await;
            }
            Kind::Partners => {
                let message = ListChatPartnersRequest { page_size: PAGE, ..Default::default() };
                let _: Option<ListChatPartnersResponse> = self.call(kind, began, "ListChatPartners", &message).await;
            }
            Kind::Login => {
                let Registered { account, password } = &shared.registered[rank % shared.registered.len()];
                let (username, password) = (account.name.clone(), password.clone());
                let message = LoginRequest { username, password, device_token: String::new() };
                // The token shows that the caller is no stranger, whose attempts are limited.
                let _: Option<LoginResponse> = self.call_as(&account.token, kind, began, "Login", &message).await;
            }
            Kind::Event | Kind::Acknowledge | Kind::MarkRead => {}
        }
    }

    /// Subscribes, again and again.
    async fn receive(self: Rc<Self>) {
        let mut after_revision = None;
        loop {
            if let Err(status) = self.receive_from(&mut after_revision).await {
                self.shared.failed(Kind::Event, status);
                *self.connection.lock().await = None;
            }
            sleep(PAUSE).await;
        }
    }

    async fn receive_from(&self, after_revision: &mut Option<u64>) -> Result<(), Status> {
        let message = SubscribeRequest { after_revision: *after_revision, consistency: None };
        let mut connection = self.connection().await?;
        let mut events = connection.open(&path("Subscribe"), Some(&self.account().token), &message).await?;
        while let Some(SubscribeResponse { revision, event, .. }) = events.next().await? {
            *after_revision = Some(revision).filter(|revision| *revision > 0).or(*after_revision);
            let Some(Event::Message(event)) = event else { continue };
            let Some(message) = event.message.filter(|message| message.sender != self.account().name) else { continue };
            if let Some(began) = self.shared.sent_at(&message.body) {
                self.shared.succeeded(Kind::Event, began);
            }
            self.received.borrow_mut().insert(message.conversation_id, message.seq);
            self.has_received.notify_one();
        }
        Ok(())
    }

    /// Acknowledges what has arrived, and marks a part of it as read.
    async fn acknowledge(self: Rc<Self>) {
        let mut random = Rng::new();
        loop {
            self.has_received.notified().await;
            sleep(ACKNOWLEDGE_PAUSE).await;
            let received = self.received.take().into_iter().collect::<Vec<_>>();
            for part in received.chunks(RECEIPTS_MAX) {
                let receipt = |&(conversation_id, up_to_seq): &_| DeliveryReceipt { conversation_id, up_to_seq };
                let message = AcknowledgeDeliveryRequest { receipts: part.iter().map(receipt).collect() };
                let began = Instant::now();
                let _: Option<AcknowledgeDeliveryResponse> =
                    self.call(Kind::Acknowledge, began, "AcknowledgeDelivery", &message).await;
            }
            for (conversation, up_to_seq) in received {
                if random.f64() < READ_AT_ONCE {
                    let conversation = Some(mark_read_request::Conversation::ConversationId(conversation));
                    let message = MarkReadRequest { conversation, up_to_seq };
                    let began = Instant::now();
                    let _: Option<MarkReadResponse> = self.call(Kind::MarkRead, began, "MarkRead", &message).await;
                }
            }
        }
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        kind: Kind,
        began: Instant,
        method: &str,
        message: &Q,
    ) -> Option<A> {
        self.call_as(&self.account().token, kind, began, method, message).await
    }

    async fn call_as<Q: Message, A: Message + Default>(
        &self,
        token: &HeaderValue,
        kind: Kind,
        began: Instant,
        method: &str,
        message: &Q,
    ) -> Option<A> {
        let call = async { self.connection().await?.call(&path(method), Some(token), message).await };
        match timeout(ATTEMPT_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                self.shared.succeeded(kind, began);
                Some(answer)
            }
            Ok(Err(status)) => {
                // Others may notice only after their timeouts.
                if status.code() == tonic::Code::Unavailable {
                    *self.connection.lock().await = None;
                }
                self.shared.failed(kind, status);
                None
            }
            Err(_) => {
                self.shared.failed(kind, Status::deadline_exceeded(format!("no answer to {method}")));
                None
            }
        }
    }

    /// The connection, or a new one to the next node.
    async fn connection(&self) -> Result<Connection, Status> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let nodes = &self.shared.nodes;
        let node = &nodes[self.attempts.get() % nodes.len()];
        self.attempts.set(self.attempts.get() + 1);
        let new = connect_to(node, &self.shared.options).await.map_err(|error| Status::unavailable(error.message))?;
        Ok(connection.insert(new).clone())
    }
}

fn path(method: &str) -> String {
    format!("/chat.v1.ChatService/{method}")
}

/// The kind for a random number below the sum of all weights.
fn kind(mut random: f64) -> Kind {
    for (kind, weight) in PER_SEND {
        if random < weight {
            return kind;
        }
        random -= weight;
    }
    Kind::Send
}

/// A random number with mean 1, as the time between two events of a Poisson process.
fn exponential(random: &mut Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

/// The partner of this rank: neighbours on a ring, the nearest first. So it is mutual, but for its rank.
fn partner(index: usize, rank: usize, count: usize) -> usize {
    let distance = (rank / 2 + 1) % count;
    if rank.is_multiple_of(2) { (index + distance) % count } else { (index + count - distance) % count }
}

/// Zipf's law: the frequency of a rank is inversely proportional to it.
struct Zipf {
    /// Sums of the frequencies up to each rank.
    sums: Vec<f64>,
}

impl Zipf {
    /// Of at least one rank.
    fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let add = |rank: usize| {
            sum += 1.0 / rank as f64;
            sum
        };
        Self { sums: (1..=ranks).map(add).collect() }
    }

    /// The rank, from 0, for a random number below 1.
    fn rank(&self, random: f64) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        self.sums.partition_point(|sum| *sum <= random * all).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_chosen_by_zipfs_law() {
        let zipf = Zipf::new(1000);
        let mut random = Rng::with_seed(1);
        let mut chosen = vec![0_u32; 1000];
        for _ in 0..100_000 {
            chosen[zipf.rank(random.f64())] += 1;
        }
        // The first of 1000 ranks has 1 in 7.485 of all, the second half as many, the tenth a tenth.
        for (rank, expected) in [(0, 13_359.0), (1, 6_680.0), (9, 1_336.0)] {
            let ratio = f64::from(chosen[rank]) / expected;
            assert!((0.9..1.1).contains(&ratio), "rank {rank}: {} in place of {expected}", chosen[rank]);
        }
        assert_eq!((zipf.rank(0.0), zipf.rank(0.999_999_999), Zipf::new(1).rank(0.5)), (0, 999, 0));
    }

    #[test]
    fn everybody_else_is_a_partner() {
        for count in [2, 5, 6] {
            let mut partners: Vec<_> = (0..count - 1).map(|rank| partner(2 % count, rank, count)).collect();
            partners.sort_unstable();
            let others: Vec<_> = (0..count).filter(|other| *other != 2 % count).collect();
            assert_eq!(partners, others);
        }
        assert_eq!(partner(0, 0, 1), 0, "alone, with notes");
    }

    #[test]
    fn kinds_have_their_weights() {
        assert_eq!(
            [kind(0.0), kind(0.99), kind(1.0), kind(1.21), kind(1.254), kind(9.0)],
            [Kind::Send, Kind::Send, Kind::Page, Kind::Partners, Kind::Login, Kind::Send]
        );
        assert!(KINDS.iter().enumerate().all(|(index, kind)| *kind as usize == index));
    }

    #[test]
    fn the_mean_of_the_pauses_is_one() {
        let mut random = Rng::with_seed(2);
        let mean = (0..100_000).map(|_| exponential(&mut random)).sum::<f64>() / 100_000.0;
        assert!((0.98..1.02).contains(&mean), "{mean}");
    }
}
