//! The workload: clients that use all parts of the API through all nodes while faults are injected.
//!
//! Phases: First, accounts are created and logged in. Then, for the requested time, each client makes one call after
//! the other (`actor`), and each account has a stream that is cut now and then and resumed on another node (`stream`).
//! At the end, operations in flight complete, the streams are read up to the newest revision that any client observed,
//! and every conversation is read back from every node that answers (`read_back`). Everything is recorded in one
//! [`History`].
//!
//! The choices come from a seed, but their timing does not: a seed repeats the load and not the run. Memory is bounded.
//! The pace decreases with the number of clients and the time, so that there are never more than about
//! [`OPERATIONS_MAX`] operations, and pages are small except at the end.

mod actor;
mod calls;
mod read_back;
mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;
use uuid::Uuid;

use super::history::{self, Action, Header, History, Record};
use client::{Client, ClientError, Options, direct};
use proto::Channel;

/// Approximate maximum number of operations of the load, at some two hundred bytes each, plus the data of the
/// read-back.
pub const OPERATIONS_MAX: u64 = 250_000;
/// Maximum number of clients.
pub const CLIENTS_MAX: u32 = 256;
/// Minimum mean pause of a client between two operations.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Maximum number of accounts: enough for conversations that several clients write to from both sides.
const ACCOUNTS_MAX: u32 = 6;
/// Maximum deadline for a call through the client library, so that the end is not delayed by calls that cannot succeed.
const LIBRARY_DEADLINE_MAX: Duration = Duration::from_secs(5);

/// The load to generate.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of concurrent clients: 1 to [`CLIENTS_MAX`].
    pub clients: u32,
    /// Duration of the load.
    pub duration: Duration,
    /// Seed of the random choices.
    pub seed: u64,
}

/// An account of the run.
struct Person {
    name: String,
    token: tonic::metadata::MetadataValue<tonic::metadata::Ascii>,
    library: Client,
    /// Messages that its clients have seen, newest last: candidates for marking read and deleting.
    recent: Mutex<std::collections::VecDeque<Recent>>,
}

/// A message that a client of an account has seen.
#[derive(Debug, Clone, Copy)]
struct Recent {
    with: u16,
    message: u64,
    seq: u64,
    own: bool,
}

/// State that all tasks share.
struct Shared {
    people: Vec<Person>,
    numbers: HashMap<String, u16>,
    nodes: Vec<Channel>,
    started: Instant,
    /// The planned end of the load.
    planned_end: Instant,
    /// The actual end of the load, if it was ended early.
    early_end: OnceLock<Instant>,
    /// Mean pause between two operations of a client.
    pause: Duration,
    /// Time limit for retries at the end.
    read_timeout: Duration,
    seed: u64,
    records: Mutex<Vec<Record>>,
    /// The newest revision that any client observed.
    newest: AtomicU64,
}

impl Shared {
    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Returns the end of the load, as far as it is known now. No new operation begins after it.
    fn until(&self) -> Instant {
        self.early_end.get().map_or(self.planned_end, |end| self.planned_end.min(*end))
    }

    /// Records an operation that has just completed.
    fn record(&self, client: u32, account: u16, node: Option<u16>, began_us: u64, action: Action) {
        let record = Record { client, account, node, began_us, ended_us: self.now_us(), action };
        if let Some(revision) = record.revision() {
            self.newest.fetch_max(revision, Ordering::Relaxed);
        }
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

/// Runs the workload against the cluster at `addresses`, and returns the history of the run.
///
/// # Errors
/// UNAVAILABLE when no node was reached, or no account could be created, within [`Options::deadline`]; INVALID_ARGUMENT
/// for a malformed address, or a number of clients outside of 1 to [`CLIENTS_MAX`]. After the load has started,
/// failures are recorded in the history and are not errors.
pub async fn run(addresses: Vec<String>, options: Options, plan: Plan) -> Result<History, ClientError> {
    run_until(addresses, options, plan, std::future::pending()).await
}

/// Like [`run`], but ends the load when `stop` completes, if that is before the planned time. The phases after the load
/// (completion of operations in flight, read-back) are the same.
///
/// # Errors
/// See [`run`].
pub async fn run_until(
    addresses: Vec<String>,
    options: Options,
    plan: Plan,
    stop: impl Future<Output = ()>,
) -> Result<History, ClientError> {
    if plan.clients == 0 || plan.clients > CLIENTS_MAX {
        return Err(ClientError::local(Code::InvalidArgument, format!("clients: must be 1 to {CLIENTS_MAX}")));
    }
    let read_timeout = options.deadline;
    let setup = Client::connect(addresses.clone(), options.clone()).await?;
    let nodes = find_nodes(&setup, &addresses, &options).await?;
    let quick = Options { deadline: options.deadline.min(LIBRARY_DEADLINE_MAX), acknowledge: false, ..options.clone() };
    let people =
        make_people(&setup, &addresses, &quick, read_timeout, (plan.clients / 2).clamp(2, ACCOUNTS_MAX)).await?;
    let channels = nodes.iter().map(|address| direct::channel(address, &options));
    let after = people.iter().map(|(_, revision)| *revision).max().unwrap_or(0);
    let people: Vec<Person> = people.into_iter().map(|(person, _)| person).collect();
    let started = Instant::now();
    let total = plan.duration.saturating_mul(plan.clients);
    let shared = Arc::new(Shared {
        numbers: (0..).zip(&people).map(|(number, person)| (person.name.clone(), number)).collect(),
        people,
        nodes: channels.collect::<Result<_, ClientError>>()?,
        started,
        planned_end: started + plan.duration,
        early_end: OnceLock::new(),
        pause: PAUSE_MIN.max(total / u32::try_from(OPERATIONS_MAX).unwrap_or(u32::MAX)),
        read_timeout,
        seed: plan.seed,
        records: Mutex::default(),
        newest: AtomicU64::new(after),
    });
    play(&shared, plan.clients, after, stop).await;
    let lasted = shared.until().duration_since(started);
    let mut records = std::mem::take(&mut *shared.records.lock().unwrap_or_else(PoisonError::into_inner));
    records.sort_by_key(|record| record.ended_us);
    let header = Header {
        format: history::FORMAT,
        seed: plan.seed,
        clients: plan.clients,
        seconds: lasted.as_secs_f64(),
        accounts: shared.people.iter().map(|person| person.name.clone()).collect(),
        nodes,
        load_ended_us: u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX),
    };
    Ok(History { header, records })
}

/// Runs the load until its planned end or until `stop` completes, and then the final phase.
async fn play(shared: &Arc<Shared>, clients: u32, after: u64, stop: impl Future<Output = ()>) {
    let people = shared.people.len() as u32;
    let (finish, finishing) = tokio::sync::watch::channel(None);
    let mut streams = JoinSet::new();
    for account in 0..people {
        let stream = stream::Stream::new(shared.clone(), clients + account, account as u16, after);
        streams.spawn(stream.run(finishing.clone()));
    }
    let mut actors = JoinSet::new();
    for client in 0..clients {
        actors.spawn(actor::Actor::new(shared.clone(), client).run());
    }
    let load = ended(actors);
    tokio::pin!(load);
    tokio::select! {
        biased;
        () = &mut load => {}
        () = stop => {
            // Fails only if it is set already, and it is set only here.
            let _ = shared.early_end.set(Instant::now());
            load.await;
        }
    }
    // No further changes begin. Only abandoned calls may still be in flight.
    finish.send_replace(Some(shared.newest.load(Ordering::Relaxed)));
    let nodes = 0..shared.nodes.len();
    join_all(nodes.map(|node| read_back::read_back(shared, clients + people + node as u32, node as u16))).await;
    ended(streams).await;
}

/// Waits for all tasks. Propagates the panic of a task, because its unrecorded operations would make the history wrong.
async fn ended(mut tasks: JoinSet<()>) {
    while let Some(task) = tasks.join_next().await {
        if let Err(error) = task
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Returns the addresses to use, one per node: the given ones, and those that the cluster lists and that answer.
async fn find_nodes(setup: &Client, given: &[String], options: &Options) -> Result<Vec<String>, ClientError> {
    setup.nodes().await?;
    let answers = direct::list_each(setup, options.attempt_timeout.saturating_mul(3)).await;
    let mut names = std::collections::HashSet::new();
    let mut nodes = Vec::new();
    let is_given = |address: &str| given.iter().any(|given| given.trim().trim_start_matches("http://") == address);
    // The given addresses are first in the list.
    for (address, answer) in answers {
        let new = match answer {
            Ok(answer) => names.insert(answer.answered_by),
            // A given node may start later.
            Err(_) => is_given(&address),
        };
        if new {
            nodes.push(address);
        }
    }
    Ok(nodes)
}

/// Connects within `limit`, however short the deadline of the calls is.
async fn connect(addresses: &[String], options: &Options, limit: Duration) -> Result<Client, ClientError> {
    let end = Instant::now() + limit;
    loop {
        match Client::connect(addresses.to_vec(), options.clone()).await {
            Err(error) if error.code == Code::Unavailable && Instant::now() < end => {}
            connected => return connected,
        }
    }
}

/// Creates accounts and logs them in. Their clients connect within the duration. Returns each with the revision of its
/// login.
async fn make_people(
    setup: &Client,
    addresses: &[String],
    options: &Options,
    limit: Duration,
    count: u32,
) -> Result<Vec<(Person, u64)>, ClientError> {
    // Random names, so that runs do not collide. The random passwords are forgotten after the run.
    let run = Uuid::new_v4().simple().to_string();
    let password = Uuid::new_v4().to_string();
    let mut people = Vec::new();
    for number in 0..count {
        let name = format!("verify-{}-{number}", &run[..8]);
        setup.create_account(&name, &password).await?;
        let login = setup.login(&name, &password).await?;
        // Each account has its own client, so that each follows the leader independently.
        let library = connect(addresses, options, limit).await?.with_token(&login.token)?;
        let person = Person { name, token: direct::bearer(&login.token)?, library, recent: Mutex::default() };
        people.push((person, login.revision));
    }
    Ok(people)
}

#[cfg(test)]
mod tests;
