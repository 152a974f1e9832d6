//! `chatctl bench`: measures how many sends per second are acknowledged, and the latency of each.
//!
//! If the leader's address cannot be reached (in a container, for instance, when nodes advertise addresses for clients
//! outside), sends go to the given nodes, which forward them, and a line on standard error says so. The warm-up at the
//! beginning is not counted. `load` has the clients, and `latency` the histogram.

mod latency;
mod load;

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::{args::seconds, context::Context, failure::Failure};
use client::Client;
use load::{Load, Results};
use terminal::tell;

/// Default number of accounts.
const ACCOUNTS: u32 = 16;

/// Measure acknowledged sends: each client has one connection and one send in flight
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Arguments {
    /// Clients, each with its own connection and one send in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// Time at the beginning that is not counted
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// Duration of the measurement, after the warm-up
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Size of each message in bytes
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    body_bytes: u32,
    /// Accounts to create and to send between [default: one per client, at most 16]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=1024))]
    accounts: Option<u32>,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let cluster = Client::connect(nodes.clone(), options.clone()).await?;
    let leader = load::leader(&cluster).await?;
    let detour = match load::connect_to(&leader, &options).await {
        Ok(_) => None,
        Err(error) => {
            tell!(
                "The leader's address, {leader}, does not lead to it from here ({error}): sends go to {}, and are \
                 passed on",
                nodes.join(", ")
            );
            Some(nodes)
        }
    };
    let load = Load {
        clients: arguments.clients,
        accounts: arguments.accounts.unwrap_or(ACCOUNTS.min(arguments.clients)),
        body_bytes: arguments.body_bytes,
        warm_up: arguments.warm_up,
        duration: arguments.seconds,
    };
    let results = load::measure(cluster, detour, options, load).await?;
    report(context, arguments, &results)
}

fn report(context: &mut Context, arguments: Arguments, results: &Results) -> Result<(), Failure> {
    let Results { latencies, errors, last_error } = results;
    if let (0, Some(error)) = (latencies.count(), last_error) {
        return Err(error.clone().into());
    }
    let Arguments { clients, body_bytes, .. } = arguments;
    let seconds = arguments.seconds.as_secs_f64();
    let rate = latencies.count() as f64 / seconds;
    let (p50, p99, max) = (latencies.quantile_us(0.5), latencies.quantile_us(0.99), latencies.max_us());
    context.output.print(
        || {
            json!({ "sends_per_second": (rate * 10.0).round() / 10.0, "p50_us": p50, "p99_us": p99, "max_us": max,
                    "errors": errors, "clients": clients, "seconds": seconds, "body_bytes": body_bytes })
        },
        || {
            let ms = |us: u64| us as f64 / 1000.0;
            format!(
                "{rate:.0} sends/s acknowledged ({clients} clients, {body_bytes} bytes, {seconds:.0} s)\n\
                 p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  errors {errors}",
                ms(p50),
                ms(p99),
                ms(max)
            )
        },
    )?;
    Ok(())
}
