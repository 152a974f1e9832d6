//! `chatctl bench`: measures calls per second, and the latency of each.
//!
//! The workloads `sends` and `pages` are a closed loop of clients (`load`). Pages are read through the given nodes in
//! turn, sends go to the leader. If the leader's address cannot be reached (in a container, for instance, when nodes
//! advertise addresses for clients outside), sends go to the given nodes, which forward them, and a line on standard
//! error says so. The workload `day` is a mixture of calls at a given rate through all given nodes (`day`). The warm-up
//! at the beginning is not counted.

mod accounts;
mod day;
mod latency;
mod load;

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    args::seconds,
    context::{Context, connect_to},
    failure::Failure,
};
use accounts::{Account, Names};
use client::{Client, Options};
use day::Day;
use latency::Latencies;
use load::{Calls, Load};
use terminal::tell;

/// Default number of accounts of a closed loop.
const ACCOUNTS: u32 = 16;
/// Accounts of a mixed load that log in.
const LOGINS: u32 = 4;

/// Measure calls: acknowledged sends or pages in a closed loop, or a mixture of all that people do
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Sends)]
    workload: Workload,
    /// Clients, each with its own connection: with one call in flight, or with a subscription
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// Sends per second of all clients of `day`; other calls follow from it
    #[arg(long, value_name = "R", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Time at the beginning that is not counted
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// Duration of the measurement, after the warm-up
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Size of each message in bytes (of `day`: at least 16)
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    body_bytes: u32,
    /// Accounts to create and to send between [default: one per client, at most 16 unless the workload
    /// is `day`]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accounts: Option<u32>,
    /// Send from each client to all accounts before the warm-up, so that all conversations exist (`sends`)
    #[arg(long)]
    fill: bool,
    /// Admin socket of any node: creates the accounts without passwords, which takes seconds for thousands of them
    #[arg(long = "socket", value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Each client sends to random accounts, one message after the other
    Sends,
    /// Each client reads the newest 20 messages of a conversation, linearizably, again and again
    Pages,
    /// People send, receive, acknowledge, read and log in
    Day,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let cluster = connect_to(nodes.clone(), options.clone()).await?;
    match arguments.workload {
        Workload::Sends => {
            let detour = detour(&cluster, nodes, &options).await?;
            closed_loop(context, arguments, cluster, Calls::Sends, detour, options).await
        }
        Workload::Pages => closed_loop(context, arguments, cluster, Calls::Pages, Some(nodes), options).await,
        Workload::Day => day(context, arguments, cluster, nodes, options).await,
    }
}

async fn make_accounts(
    context: &Context,
    arguments: &Arguments,
    cluster: &Client,
    names: &mut Names,
    count: u32,
) -> Result<Vec<Account>, Failure> {
    match &arguments.socket {
        Some(socket) => accounts::add(context, socket, names, count).await,
        None => {
            let registered = accounts::register(cluster, names, count).await?;
            Ok(registered.into_iter().map(|registered| registered.account).collect())
        }
    }
}

/// Returns the nodes to send to if the leader's address does not lead to it.
async fn detour(cluster: &Client, nodes: Vec<String>, options: &Options) -> Result<Option<Vec<String>>, Failure> {
    let leader = load::leader(cluster).await?;
    match load::connect_to(&leader, options).await {
        Ok(_) => Ok(None),
        Err(error) => {
            tell!(
                "The leader's address, {leader}, does not lead to it from here ({error}): sends go to {}, and are \
                 passed on",
                nodes.join(", ")
            );
            Ok(Some(nodes))
        }
    }
}

async fn closed_loop(
    context: &mut Context,
    arguments: Arguments,
    cluster: Client,
    calls: Calls,
    through: Option<Vec<String>>,
    options: Options,
) -> Result<(), Failure> {
    let count = arguments.accounts.unwrap_or(ACCOUNTS.min(arguments.clients));
    let accounts = make_accounts(context, &arguments, &cluster, &mut Names::new(), count).await?;
    let load = Load {
        calls,
        fill: arguments.fill,
        clients: arguments.clients,
        body_bytes: arguments.body_bytes,
        warm_up: arguments.warm_up,
        duration: arguments.seconds,
    };
    let results = load::measure(cluster, through, options, accounts, load).await;
    if let (0, Some(error)) = (results.latencies.count(), &results.last_error) {
        return Err(error.clone().into());
    }
    let measured = Measured::new(&results.latencies, results.errors, arguments.seconds);
    let Arguments { clients, body_bytes, .. } = arguments;
    let seconds = arguments.seconds.as_secs_f64();
    let (name, done) = match calls {
        Calls::Sends => ("sends_per_second", "sends/s acknowledged"),
        Calls::Pages => ("pages_per_second", "pages/s read"),
    };
    context.output.print(
        || {
            json!({ name: measured.rounded_rate(), "p50_us": measured.p50, "p99_us": measured.p99,
                    "max_us": measured.max, "errors": measured.errors, "clients": clients, "seconds": seconds,
                    "body_bytes": body_bytes })
        },
        || {
            format!(
                "{:.0} {done} ({clients} clients, {body_bytes} bytes, {seconds:.0} s)\n{}",
                measured.rate,
                measured.text()
            )
        },
    )?;
    Ok(())
}

async fn day(
    context: &mut Context,
    arguments: Arguments,
    cluster: Client,
    nodes: Vec<String>,
    options: Options,
) -> Result<(), Failure> {
    if arguments.body_bytes < day::STAMP_BYTES {
        let least = day::STAMP_BYTES;
        return Err(Failure::Usage(format!("--body-bytes: the workload `day` needs at least {least}")));
    }
    let count = arguments.accounts.unwrap_or(arguments.clients).max(arguments.clients);
    let mut names = Names::new();
    let registered = accounts::register(&cluster, &mut names, LOGINS).await?;
    let accounts = make_accounts(context, &arguments, &cluster, &mut names, count).await?;
    let day = Day {
        people: arguments.clients,
        rate: arguments.rate.into(),
        body_bytes: arguments.body_bytes,
        warm_up: arguments.warm_up,
        duration: arguments.seconds,
    };
    let results = day::measure(nodes, options, accounts, registered, day).await;
    let measured = day::KINDS.map(|kind| {
        let day::Measured { latencies, errors } = results.of(kind);
        (kind.name(), Measured::new(latencies, *errors, arguments.seconds))
    });
    if let (true, Some(error)) = (measured.iter().all(|(_, of)| of.rate == 0.0), &results.last_error) {
        return Err(error.clone().into());
    }
    if let Some(error) = &results.last_error {
        tell!("The last error: {error}");
    }
    let Arguments { clients, rate, body_bytes, .. } = arguments;
    let seconds = arguments.seconds.as_secs_f64();
    context.output.print(
        || {
            let calls: serde_json::Map<String, Value> =
                measured.iter().map(|(name, of)| ((*name).to_owned(), of.json())).collect();
            json!({ "workload": "day", "clients": clients, "accounts": count, "rate": rate, "seconds": seconds,
                    "body_bytes": body_bytes, "calls": calls })
        },
        || {
            let lines = measured.iter().map(|(name, of)| format!("{name:<12}  {:>9.1}/s  {}", of.rate, of.text()));
            lines.collect::<Vec<_>>().join("\n")
        },
    )?;
    Ok(())
}

/// What is reported of a kind of call.
struct Measured {
    /// Calls per second that succeeded.
    rate: f64,
    /// In microseconds.
    p50: u64,
    p99: u64,
    max: u64,
    errors: u64,
}

impl Measured {
    fn new(latencies: &Latencies, errors: u64, duration: Duration) -> Self {
        Self {
            rate: latencies.count() as f64 / duration.as_secs_f64(),
            p50: latencies.quantile_us(0.5),
            p99: latencies.quantile_us(0.99),
            max: latencies.max_us(),
            errors,
        }
    }

    fn rounded_rate(&self) -> f64 {
        (self.rate * 10.0).round() / 10.0
    }

    fn json(&self) -> Value {
        json!({ "per_second": self.rounded_rate(), "p50_us": self.p50, "p99_us": self.p99, "max_us": self.max,
                "errors": self.errors })
    }

    fn text(&self) -> String {
        let ms = |us: u64| us as f64 / 1000.0;
        let Self { p50, p99, max, errors, .. } = *self;
        format!("p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  errors {errors}", ms(p50), ms(p99), ms(max))
    }
}
