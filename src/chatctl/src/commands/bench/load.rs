//! The load of a benchmark: a closed loop of clients, each with its own connection and one call in flight.
//!
//! Each send goes to a random other account. A page is the newest messages of a conversation. A failed call is
//! repeated, a send under the same id, so its latency contains its retries. Every failed attempt counts as an error.
//! The processors are shared with the nodes under test, so the loop avoids all unnecessary work: no retry machinery, no
//! shared lock, one thread.
//!
//! Before all that, which is not counted and has no limit of time, the conversations are made: on request all of them,
//! and the messages of the pages.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fastrand::Rng;
use prost::Message;
use tokio::{
    sync::Mutex,
    task::LocalSet,
    time::{sleep, timeout},
};
use tonic::Code;
use uuid::{Builder, Uuid};

use super::{accounts::Account, latency::Latencies};
use ::verify::connection::Connection;
use client::{Client, ClientError, Options};
use proto::chat::v1::{
    ReadConversationRequest, ReadConversationResponse, SendMessageRequest, SendMessageResponse,
    read_conversation_request, send_message_request,
};

/// Timeout of one attempt. Long, because slow sends have to be measured and not cut off.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed attempt.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Time that a call may take, with its retries, while the conversations are made.
const PATIENCE: Duration = Duration::from_secs(30);

/// Messages on a page.
pub(super) const PAGE: u32 = 20;

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Sends,
    /// Linearizable reads.
    Pages,
}

/// The size and the duration of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) calls: Calls,
    /// Whether each client first sends to every other account.
    pub(super) fill: bool,
    pub(super) clients: u32,
    pub(super) body_bytes: u32,
    /// Time at the beginning that is not counted.
    pub(super) warm_up: Duration,
    /// Time that is counted, after the warm-up.
    pub(super) duration: Duration,
}

/// The counted sends and errors.
#[derive(Default)]
pub(super) struct Results {
    pub(super) latencies: Latencies,
    pub(super) errors: u64,
    /// The last error, whether it was counted or not.
    pub(super) last_error: Option<ClientError>,
}

/// State that all clients share. There is one thread, so it needs no locks.
struct Shared {
    accounts: Vec<Account>,
    body: String,
    cluster: Client,
    /// Node addresses to call in place of the leader.
    through: Option<Vec<String>>,
    options: Options,
    /// When counting begins and ends. Nothing counts before the conversations are made.
    counted: Cell<Option<(Instant, Instant)>>,
    results: RefCell<Results>,
}

impl Shared {
    fn counts(&self, at: Instant) -> bool {
        self.counted.get().is_some_and(|(from, until)| at >= from && at < until)
    }
}

/// Runs the clients. They call the leader, or the nodes in `through` in turn, if there are any.
pub(super) async fn measure(
    cluster: Client,
    through: Option<Vec<String>>,
    options: Options,
    accounts: Vec<Account>,
    load: Load,
) -> Results {
    let shared = Rc::new(Shared {
        accounts,
        body: "x".repeat(load.body_bytes as usize),
        cluster,
        through,
        options,
        counted: Cell::default(),
        results: RefCell::default(),
    });
    let clients: Rc<[_]> = (0..load.clients as usize).map(|index| Mutex::new(Link::new(index))).collect();
    let preparing = LocalSet::new();
    for index in 0..clients.len() {
        let (shared, clients) = (shared.clone(), clients.clone());
        preparing.spawn_local(async move { prepare(&shared, &mut *clients[index].lock().await, index, load).await });
    }
    preparing.await;
    let counting_from = Instant::now() + load.warm_up;
    let until = counting_from + load.duration;
    shared.counted.set(Some((counting_from, until)));
    let calling = LocalSet::new();
    for index in 0..clients.len() {
        let (shared, clients) = (shared.clone(), clients.clone());
        calling.spawn_local(async move {
            one_client(&shared, &mut *clients[index].lock().await, index, load.calls, until).await;
        });
    }
    // Each client stops after its last call. The deadline is for clients whose call hangs.
    let _ = timeout(load.warm_up + load.duration + ATTEMPT_TIMEOUT, calling).await;
    shared.results.take()
}

/// Makes the conversations that one client needs.
async fn prepare(shared: &Shared, link: &mut Link, index: usize, load: Load) {
    let count = shared.accounts.len();
    let mine = index % count;
    let recipients = match load.calls {
        Calls::Pages => vec![(mine + 1) % count; PAGE as usize],
        // The clients of an account share its conversations.
        Calls::Sends if load.fill && index < count => (1..count).map(|distance| (mine + distance) % count).collect(),
        Calls::Sends => Vec::new(),
    };
    let mut random = Rng::new();
    for to in recipients {
        let (id, until) = (message_id(&mut random), Instant::now() + PATIENCE);
        if !repeat(shared, link, until, async |connection| send(shared, connection, mine, to, id).await).await {
            return;
        }
    }
}

/// Runs one client with its own connection and one call in flight.
async fn one_client(shared: &Shared, link: &mut Link, index: usize, calls: Calls, until: Instant) {
    let count = shared.accounts.len();
    let mine = index % count;
    let mut random = Rng::new();
    while Instant::now() < until {
        let began = Instant::now();
        let done = match calls {
            Calls::Pages => {
                let with = (mine + 1) % count;
                repeat(shared, link, until, async |connection| page(shared, connection, mine, with).await).await
            }
            Calls::Sends => {
                let (id, to) = (message_id(&mut random), recipient(&mut random, mine, count));
                repeat(shared, link, until, async |connection| send(shared, connection, mine, to, id).await).await
            }
        };
        let ended = Instant::now();
        if done && shared.counts(ended) {
            shared.results.borrow_mut().latencies.record(ended.duration_since(began));
        }
    }
}

/// A client's connection, and how many there were.
struct Link {
    attempt: usize,
    /// `None` before the first call.
    connection: Option<Result<Connection, ClientError>>,
}

impl Link {
    fn new(index: usize) -> Self {
        Self { attempt: index, connection: None }
    }
}

/// Calls until it succeeds, or until a time. Returns whether it succeeded.
async fn repeat(
    shared: &Shared,
    link: &mut Link,
    until: Instant,
    call: impl AsyncFn(&mut Connection) -> Result<(), ClientError>,
) -> bool {
    loop {
        if link.connection.is_none() {
            link.connection = Some(connect(shared, link.attempt).await);
            link.attempt += 1;
        }
        let error = match &mut link.connection {
            Some(Ok(connection)) => match call(connection).await {
                Ok(()) => return true,
                Err(error) => Some(error),
            },
            Some(Err(error)) => Some(error.clone()),
            None => None,
        };
        if let Some(error) = error {
            failed(shared, error);
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(PAUSE).await;
        link.connection = None;
    }
}

/// Connects a client to the current leader, or to one of the nodes that forward.
async fn connect(shared: &Shared, attempt: usize) -> Result<Connection, ClientError> {
    match &shared.through {
        Some(nodes) => connect_to(&nodes[attempt % nodes.len()], &shared.options).await,
        None => connect_to(&leader(&shared.cluster).await?, &shared.options).await,
    }
}

/// Returns the leader's address for clients.
pub(super) async fn leader(cluster: &Client) -> Result<String, ClientError> {
    Ok(cluster.leader().await?.node.client_address)
}

/// Connects to a node.
pub(super) async fn connect_to(address: &str, options: &Options) -> Result<Connection, ClientError> {
    match timeout(ATTEMPT_TIMEOUT, Connection::connect(address, &options.dialer, ATTEMPT_TIMEOUT)).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(ClientError::local(Code::Unavailable, format!("{address}: no answer"))),
    }
}

async fn send(
    shared: &Shared,
    connection: &mut Connection,
    from: usize,
    to: usize,
    id: Uuid,
) -> Result<(), ClientError> {
    let request = SendMessageRequest {
        to: Some(send_message_request::To::Recipient(shared.accounts[to].name.clone())),
        body: shared.body.clone(),
        client_message_id: id.to_string(),
    };
    let SendMessageResponse { .. } =
        ask(shared, connection, from, "/chat.v1.ChatService/SendMessage", &request).await?;
    Ok(())
}

/// Reads the newest messages with an account.
async fn page(shared: &Shared, connection: &mut Connection, from: usize, with: usize) -> Result<(), ClientError> {
    let conversation = Some(read_conversation_request::Conversation::Partner(shared.accounts[with].name.clone()));
    let request = ReadConversationRequest { conversation, limit: PAGE, ..Default::default() };
    let page: ReadConversationResponse =
        ask(shared, connection, from, "/chat.v1.ChatService/ReadConversation", &request).await?;
    match page.messages.len() as u32 {
        PAGE => Ok(()),
        count => Err(ClientError::local(Code::Internal, format!("a page of {count} messages in place of {PAGE}"))),
    }
}

async fn ask<Q: Message, A: Message + Default>(
    shared: &Shared,
    connection: &mut Connection,
    from: usize,
    method: &str,
    request: &Q,
) -> Result<A, ClientError> {
    let call = connection.call(method, Some(&shared.accounts[from].token), request);
    match timeout(ATTEMPT_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ClientError::local(Code::DeadlineExceeded, format!("no answer to {method}"))),
    }
}

/// Returns an id in the form that clients use (timestamp, then random bits), without a system call for the random part.
pub(super) fn message_id(random: &mut Rng) -> Uuid {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut bits = [0; 10];
    random.fill(&mut bits);
    Builder::from_unix_timestamp_millis(now, &bits).into_uuid()
}

/// Returns a random account other than the own one, if there is another.
fn recipient(random: &mut Rng, mine: usize, count: usize) -> usize {
    if count == 1 {
        return mine;
    }
    (mine + 1 + random.usize(..count - 1)) % count
}

fn failed(shared: &Shared, error: ClientError) {
    let mut results = shared.results.borrow_mut();
    if shared.counts(Instant::now()) {
        results.errors += 1;
    }
    results.last_error = Some(error);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::accounts::{Names, register};
    use client::fake::{Fake, OnSend, failure};

    fn load(clients: u32, duration_ms: u64) -> Load {
        let duration = Duration::from_millis(duration_ms);
        Load { calls: Calls::Sends, fill: false, clients, body_bytes: 10, warm_up: Duration::ZERO, duration }
    }

    async fn accounts(cluster: &Client, count: u32) -> Vec<Account> {
        let registered = register(cluster, &mut Names::new(), count).await.expect("registered");
        registered.into_iter().map(|registered| registered.account).collect()
    }

    #[tokio::test]
    async fn counts_what_is_acknowledged_and_goes_on_after_errors() {
        let nodes = Fake::cluster(2).await;
        nodes[0].next_send(OnSend::Fail(failure(Code::Unavailable, "NO_LEADER")));
        let cluster = Client::connect([nodes[1].address.clone()], Options::default()).await.expect("connected");
        let accounts = accounts(&cluster, 3).await;
        let results = measure(cluster, None, Options::default(), accounts, load(3, 300)).await;
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert_eq!(results.errors, 1);
        assert!(results.latencies.count() > 0 && results.latencies.count() < sends.len() as u64);
        assert!(results.latencies.max_us() >= results.latencies.quantile_us(0.5));
        assert!(sends.iter().all(|(node, _)| *node == nodes[0].address), "all to the leader");
        // The failed send was repeated under its id. All others have different ids.
        let ids: std::collections::HashSet<_> = sends.iter().map(|(_, id)| id).collect();
        assert_eq!(ids.len(), sends.len() - 1);
    }

    #[tokio::test]
    async fn named_nodes_take_the_sends_where_the_leader_cannot_be_reached() {
        let nodes = Fake::cluster(2).await;
        let named = vec![nodes[1].address.clone()];
        let cluster = Client::connect(named.clone(), Options::default()).await.expect("connected");
        let accounts = accounts(&cluster, 2).await;
        let results = measure(cluster, Some(named), Options::default(), accounts, load(2, 200)).await;
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert!(results.latencies.count() > 0);
        assert!(sends.iter().all(|(node, _)| *node == nodes[1].address), "all to the named one");
    }

    #[tokio::test]
    async fn all_conversations_are_made_before_anything_counts() {
        let nodes = Fake::cluster(1).await;
        let cluster = Client::connect([nodes[0].address.clone()], Options::default()).await.expect("connected");
        let accounts = accounts(&cluster, 4).await;
        let load = Load { fill: true, clients: 3, duration: Duration::ZERO, ..load(3, 0) };
        let results = measure(cluster, None, Options::default(), accounts, load).await;
        assert_eq!(results.latencies.count(), 0);
        assert_eq!(nodes[0].with(|shared| shared.sends.len()), 3 * 3, "each client to all others");
    }

    #[test]
    fn every_other_account_is_a_recipient() {
        let mut random = Rng::new();
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[recipient(&mut random, 2, 5)] += 1;
        }
        assert_eq!(seen[2], 0);
        assert_eq!(seen.iter().filter(|count| **count > 0).count(), 4);
        assert_eq!(recipient(&mut random, 0, 1), 0);
    }
}
