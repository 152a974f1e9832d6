//! `chatctl bench`: measures how many sends per second are acknowledged, and the latency of each.
//!
//! A closed loop: each client has its own connection with one send in flight to the leader, addressed to a random other
//! account. If the leader's address cannot be reached (in a container, for instance, when nodes advertise addresses for
//! clients outside), sends go to the given nodes, which forward them, and the report says so. The first second warms up
//! and is not counted. A failed send is retried under the same id, so its latency contains its retries. Every failed
//! attempt counts as an error. The processors are shared with the nodes under test, so the loop avoids all unnecessary
//! work: no retry machinery, no shared lock, one thread.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::{
    task::LocalSet,
    time::{sleep, timeout},
};
use tonic::{Code, codegen::http::HeaderValue};
use uuid::{Builder, Uuid};

use super::{
    ctl::{Context, Failure},
    ctl_args::BenchArgs,
    histogram::Histogram,
    say::tell,
};
use crate::{
    client::{Client, ClientError, Options, random::Random, unary::Connection},
    proto::chat::v1::{SendMessageRequest, SendMessageResponse, send_message_request},
};

/// Time at the beginning that is not counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// Timeout of one attempt. Long, because slow sends have to be measured and not cut off.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// Default number of accounts.
const ACCOUNTS: u32 = 16;

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

#[derive(Default)]
struct Results {
    latency: Histogram,
    errors: u64,
    last_error: Option<ClientError>,
}

pub(super) async fn run(context: &mut Context, args: BenchArgs) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let cluster = Client::connect(nodes.clone(), options.clone()).await?;
    let leader = leader(&cluster).await?;
    let detour = match connect_to(&leader, &options).await {
        Ok(_) => None,
        Err(error) => {
            tell!(
                "The leader's address, {leader}, does not lead to it from here ({error}): sends go to {}, and are passed on",
                nodes.join(", ")
            );
            Some(nodes)
        }
    };
    let results = measure(cluster, detour, options, args, WARM_UP).await?;
    report(context, args, &results)
}

async fn measure(
    cluster: Client,
    detour: Option<Vec<String>>,
    options: Options,
    args: BenchArgs,
    warm_up: Duration,
) -> Result<Results, Failure> {
    let count = args.accounts.unwrap_or(ACCOUNTS.min(args.clients));
    let accounts = make_accounts(&cluster, count).await?;
    let counting_from = Instant::now() + warm_up;
    let shared = Rc::new(Shared {
        accounts,
        body: "x".repeat(args.body_bytes as usize),
        cluster,
        detour,
        options,
        counting_from,
        until: counting_from + args.seconds,
        results: RefCell::default(),
    });
    let clients = LocalSet::new();
    for index in 0..args.clients {
        clients.spawn_local(one_client(shared.clone(), index as usize));
    }
    // Each client stops after its last send. The deadline is for clients whose send hangs.
    let _ = timeout(warm_up + args.seconds + ATTEMPT_TIMEOUT, clients).await;
    Ok(shared.results.take())
}

fn report(context: &mut Context, args: BenchArgs, results: &Results) -> Result<(), Failure> {
    let latency = &results.latency;
    if let (0, Some(error)) = (latency.total(), &results.last_error) {
        return Err(error.clone().into());
    }
    let rate = latency.total() as f64 / args.seconds.as_secs_f64();
    let (p50, p99, max) = (latency.percentile(500), latency.percentile(990), latency.max());
    context.output.print(
        || {
            json!({ "sends_per_second": (rate * 10.0).round() / 10.0, "p50_us": p50, "p99_us": p99, "max_us": max,
                    "errors": results.errors, "clients": args.clients, "seconds": args.seconds.as_secs_f64(),
                    "body_bytes": args.body_bytes })
        },
        || {
            let ms = |us: u64| us as f64 / 1000.0;
            format!(
                "{rate:.0} sends/s acknowledged ({} clients, {} bytes, {:.0} s)\np50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  \
                 errors {}",
                args.clients,
                args.body_bytes,
                args.seconds.as_secs_f64(),
                ms(p50),
                ms(p99),
                ms(max),
                results.errors
            )
        },
    )?;
    Ok(())
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
    let mut random = Random::new();
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
            let micros = u64::try_from(ended.duration_since(began).as_micros()).unwrap_or(u64::MAX);
            shared.results.borrow_mut().latency.record(micros);
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
async fn leader(cluster: &Client) -> Result<String, ClientError> {
    Ok(cluster.leader().await?.leader.unwrap_or_default().client_address)
}

async fn connect_to(address: &str, options: &Options) -> Result<Connection, ClientError> {
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
fn message_id(random: &mut Random) -> Uuid {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut bits = [0; 10];
    bits[..8].copy_from_slice(&random.next().to_le_bytes());
    bits[8..].copy_from_slice(&random.next().to_le_bytes()[..2]);
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
fn recipient(random: &mut Random, mine: usize, count: usize) -> usize {
    if count == 1 {
        return mine;
    }
    (mine + 1 + random.below(count as u64 - 1) as usize) % count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::{Fake, OnSend, failure};

    #[tokio::test]
    async fn counts_what_is_acknowledged_and_goes_on_after_errors() {
        let nodes = Fake::cluster(2).await;
        nodes[0].next_send(OnSend::Fail(failure(Code::Unavailable, "NO_LEADER")));
        let cluster = Client::connect([nodes[1].address.clone()], Options::default()).await.expect("connected");
        let seconds = Duration::from_millis(300);
        let args = BenchArgs { clients: 3, seconds, body_bytes: 10, accounts: None };
        let results = measure(cluster, None, Options::default(), args, Duration::ZERO).await.expect("measured");
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert_eq!(results.errors, 1);
        assert!(results.latency.total() > 0 && results.latency.total() < sends.len() as u64);
        assert!(results.latency.max() >= results.latency.percentile(500));
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
        let args = BenchArgs { clients: 2, seconds: Duration::from_millis(200), body_bytes: 10, accounts: None };
        let results = measure(cluster, Some(named), Options::default(), args, Duration::ZERO).await.expect("measured");
        let sends = nodes[0].with(|shared| std::mem::take(&mut shared.sends));
        assert!(results.latency.total() > 0);
        assert!(sends.iter().all(|(node, _)| *node == nodes[1].address), "all to the named one");
    }

    #[test]
    fn every_other_account_is_a_recipient() {
        let mut random = Random::new();
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[recipient(&mut random, 2, 5)] += 1;
        }
        assert_eq!(seen[2], 0);
        assert_eq!(seen.iter().filter(|count| **count > 0).count(), 4);
        assert_eq!(recipient(&mut random, 0, 1), 0);
    }
}
