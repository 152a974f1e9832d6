//! The load of a benchmark: a closed loop of clients, each with its own connection and one send in flight.
//!
//! Each send goes to a random other account. A failed send is retried under the same id, so its latency contains its
//! retries. Every failed attempt counts as an error. The processors are shared with the nodes under test, so the loop
//! avoids all unnecessary work: no retry machinery, no shared lock, one thread.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fastrand::Rng;
use tokio::{
    task::LocalSet,
    time::{sleep, timeout},
};
use tonic::{Code, codegen::http::HeaderValue};
use uuid::{Builder, Uuid};

use crate::{commands::bench::latency::Latencies, failure::Failure};
use ::verify::unary::Connection;
use client::{Client, ClientError, Options};
use proto::chat::v1::{SendMessageRequest, SendMessageResponse, send_message_request};

/// Timeout of one attempt. Long, because slow sends have to be measured and not cut off.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// The size and the duration of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) clients: u32,
    pub(super) accounts: u32,
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

struct Account {
    name: String,
    /// The value of the `authorization` header.
    token: HeaderValue,
}

/// State that all clients share. There is one thread, so it needs no locks.
struct Shared {
    accounts: Vec<Account>,
    body: String,
    cluster: Client,
    /// Node addresses to send to when the leader cannot be reached.
    detour: Option<Vec<String>>,
    options: Options,
    counting_from: Instant,
    until: Instant,
    results: RefCell<Results>,
}

/// Creates accounts and runs the clients. Sends go to the leader, or to the nodes in `detour` if there are any.
pub(super) async fn measure(
    cluster: Client,
    detour: Option<Vec<String>>,
    options: Options,
    load: Load,
) -> Result<Results, Failure> {
    let accounts = make_accounts(&cluster, load.accounts).await?;
    let counting_from = Instant::now() + load.warm_up;
    let shared = Rc::new(Shared {
        accounts,
        body: "x".repeat(load.body_bytes as usize),
        cluster,
        detour,
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
    Ok(shared.results.take())
}

async fn make_accounts(cluster: &Client, count: u32) -> Result<Vec<Account>, Failure> {
    // Random names, so that runs do not collide. The random passwords are forgotten after the run.
    let run = Uuid::new_v4().simple().to_string();
    let password = Uuid::new_v4().to_string();
    let mut accounts = Vec::with_capacity(count as usize);
    for index in 0..count {
        let name = format!("bench-{}-{index}", &run[..8]);
        cluster.create_account(&name, &password).await?;
        let token = cluster.login(&name, &password).await?.token;
        // The account is disposable, so unlike real tokens this one may be kept in HTTP/2 header compression tables.
        let token = HeaderValue::try_from(format!("Bearer {token}"));
        let token = token.map_err(|_| ClientError::local(Code::Internal, "the token is malformed"))?;
        accounts.push(Account { name, token });
    }
    Ok(accounts)
}

/// Runs one client with its own connection and one send in flight.
async fn one_client(shared: Rc<Shared>, index: usize) {
    let mine = index % shared.accounts.len();
    let mut random = Rng::new();
    let mut attempt = index;
    let mut connection = connect(&shared, attempt).await;
    while Instant::now() < shared.until {
        let began = Instant::now();
        let id = message_id(&mut random);
        let to = recipient(&mut random, mine, shared.accounts.len());
        loop {
            let error = match &mut connection {
                Ok(connection) => match send(&shared, connection, mine, to, id).await {
                    Ok(()) => break,
                    Err(error) => error,
                },
                Err(error) => error.clone(),
            };
            failed(&shared, error);
            if Instant::now() >= shared.until {
                return;
            }
            sleep(PAUSE).await;
            attempt += 1;
            connection = connect(&shared, attempt).await;
        }
        let ended = Instant::now();
        if ended >= shared.counting_from && ended < shared.until {
            shared.results.borrow_mut().latencies.record(ended.duration_since(began));
        }
    }
}

/// Connects a client to the current leader, or to one of the nodes that forward.
async fn connect(shared: &Shared, attempt: usize) -> Result<Connection, ClientError> {
    match &shared.detour {
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
    let call = connection.call("/chat.v1.ChatService/SendMessage", Some(&shared.accounts[from].token), &request);
    match timeout(ATTEMPT_TIMEOUT, call).await {
        Ok(Ok(SendMessageResponse { .. })) => Ok(()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(ClientError::local(Code::DeadlineExceeded, "no answer to a send")),
    }
}

/// Returns an id in the form that clients use (timestamp, then random bits), without a system call for the random part.
fn message_id(random: &mut Rng) -> Uuid {
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

/// Returns a random account other than the own one, if there is another.
fn recipient(random: &mut Rng, mine: usize, count: usize) -> usize {
    if count == 1 {
        return mine;
    }
    (mine + 1 + random.usize(..count - 1)) % count
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::fake::{Fake, OnSend, failure};

    fn load(clients: u32, duration_ms: u64) -> Load {
        let duration = Duration::from_millis(duration_ms);
        Load { clients, accounts: clients, body_bytes: 10, warm_up: Duration::ZERO, duration }
    }

    #[tokio::test]
    async fn counts_what_is_acknowledged_and_goes_on_after_errors() {
        let nodes = Fake::cluster(2).await;
        nodes[0].next_send(OnSend::Fail(failure(Code::Unavailable, "NO_LEADER")));
        let cluster = Client::connect([nodes[1].address.clone()], Options::default()).await.expect("connected");
        let results = measure(cluster, None, Options::default(), load(3, 300)).await.expect("measured");
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
        let results = measure(cluster, Some(named), Options::default(), load(2, 200)).await.expect("measured");
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert!(results.latencies.count() > 0);
        assert!(sends.iter().all(|(node, _)| *node == nodes[1].address), "all to the named one");
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
