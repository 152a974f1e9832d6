//! `chatctl health`: asks each node directly whether it serves.

use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{context::Context, failure::Failure, output::table};
use client::{ClientError, Options, direct};
use proto::Channel;

/// Time limit for the health answer of one node.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// The state of a node that serves.
const SERVING: &str = "serving";

/// Check whether each node serves; exit code 1 if one does not
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Check only this address
    #[arg(long, value_name = "ADDRESS")]
    one: Option<String>,
}

pub(super) async fn run(context: &mut Context, Arguments { one }: Arguments) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let addresses = one.map_or(nodes, |address| vec![address]);
    let limit = HEALTH_TIMEOUT.min(context.global.timeout);
    // There is one call per node, so it may use all of the time.
    let options = Options { connect_timeout: limit, deadline: limit, ..options };
    let channels: Vec<Channel> = addresses
        .iter()
        .map(|address| direct::channel(address.trim(), &options))
        .collect::<Result<_, ClientError>>()?;
    let states = join_all(channels.into_iter().map(|channel| check(channel, limit))).await;
    let rows = || addresses.iter().zip(&states);
    context.output.print(
        || json!({ "nodes": rows().map(|(address, state)| node_json(address, state)).collect::<Vec<_>>() }),
        || table(&rows().map(|(address, state)| vec![address.clone(), state.clone()]).collect::<Vec<_>>()),
    )?;
    if states.iter().all(|state| state == SERVING) { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// Returns the state of a node in words.
async fn check(channel: Channel, limit: Duration) -> String {
    let mut client = HealthClient::new(channel);
    // The empty service name stands for the whole node.
    match timeout(limit, client.check(HealthCheckRequest { service: String::new() })).await {
        Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => SERVING.to_owned(),
        Ok(Ok(_)) => "not serving".to_owned(),
        Ok(Err(status)) => format!("unreachable: {}", ClientError::from(status)),
        Err(_) => format!("no answer within {} s", limit.as_secs_f32()),
    }
}

fn node_json(address: &str, state: &str) -> Value {
    json!({ "address": address, "serving": state == SERVING, "status": state })
}
