//! The load of a benchmark: a closed loop of clients, each with its own connection and one call in flight.
//!
//! Each send goes to a random other account, but during the warm-up, they go to all others in turn. A page is the
//! newest messages of a conversation that the client has filled before. A failed call is repeated, a send under the
//! same id, so its latency contains its retries. Every failed attempt counts as an error. The processors are shared
//! with the nodes under test, so the loop avoids all unnecessary work: no retry machinery, no shared lock, one thread.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fastrand::Rng;
use prost::Message;
use tokio::{
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
    calls: Calls,
    body: String,
    cluster: Client,
    /// Node addresses to call in place of the leader.
    through: Option<Vec<String>>,
    options: Options,
    counting_from: Instant,
    until: Instant,
    results: RefCell<Results>,
}

/// Runs the clients. They call the leader, or the nodes in `through` in turn, if there are any.
pub(super) async fn measure(
    cluster: Client,
    through: Option<Vec<String>>,
    options: Options,
    accounts: Vec<Account>,
    load: Load,
) -> Results {
    let counting_from = Instant::now() + load.warm_up;
    let shared = Rc::new(Shared {
        accounts,
        calls: load.calls,
        body: "x".repeat(load.body_bytes as usize),
        cluster,
        through,
        options,
        counting_from,
        until: counting_from + load.duration,
        results: RefCell::default(),
    });
    let clients = LocalSet::new();
    for index in 0..load.clients {
        clients.spawn_local(one_client(shared.clone(), index as usize));
    }
    // Each client stops after its last send. The deadline is for clients whose send hangs.
    let _ = timeout(load.warm_up + load.duration + ATTEMPT_TIMEOUT, clients).await;
    shared.results.take()
}

/// Runs one client with its own connection and one call in flight.
async fn one_client(shared: Rc<Shared>, index: usize) {
    let count = shared.accounts.len();
    let mine = index % count;
    let mut random = Rng::new();
    let mut link = Link { attempt: index, connection: connect(&shared, index).await };
    let next = (mine + 1) % count;
    if shared.calls == Calls::Pages {
        for _ in 0..PAGE {
            let id = message_id(&mut random);
            repeat(&shared, &mut link, async |connection| send(&shared, connection, mine, next, id).await).await;
        }
    }
    let mut turn = 0;
    while Instant::now() < shared.until {
        let began = Instant::now();
        let done = match shared.calls {
            Calls::Pages => {
                repeat(&shared, &mut link, async |connection| page(&shared, connection, mine, next).await).await
            }
            Calls::Sends => {
                let id = message_id(&mut random);
                let to = match count {
                    1 => mine,
                    // In turn at first, so that all conversations exist as soon as possible.
                    _ if began < shared.counting_from => {
                        turn += 1;
                        (mine + 1 + turn % (count - 1)) % count
                    }
                    _ => (mine + 1 + random.usize(..count - 1)) % count,
                };
                repeat(&shared, &mut link, async |connection| send(&shared, connection, mine, to, id).await).await
            }
        };
        let ended = Instant::now();
        if done && ended >= shared.counting_from && ended < shared.until {
            shared.results.borrow_mut().latencies.record(ended.duration_since(began));
        }
    }
}

/// A client's connection, and how many there were.
struct Link {
    attempt: usize,
    connection: Result<Connection, ClientError>,
}

/// Calls until it succeeds, or until the end. Returns whether it succeeded.
async fn repeat(
    shared: &Shared,
    link: &mut Link,
    call: impl AsyncFn(&mut Connection) -> Result<(), ClientError>,
) -> bool {
    loop {
        let error = match &mut link.connection {
            Ok(connection) => match call(connection).await {
                Ok(()) => return true,
                Err(error) => error,
            },
            Err(error) => error.clone(),
        };
        failed(shared, error);
        if Instant::now() >= shared.until {
            return false;
        }
        sleep(PAUSE).await;
        link.attempt += 1;
        link.connection = connect(shared, link.attempt).await;
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

fn failed(shared: &Shared, error: ClientError) {
    let mut results = shared.results.borrow_mut();
    let now = Instant::now();
    if now >= shared.counting_from && now < shared.until {
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
        Load { calls: Calls::Sends, clients, body_bytes: 10, warm_up: Duration::ZERO, duration }
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
}
