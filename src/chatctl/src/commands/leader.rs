//! `chatctl leader`: shows the leader and its term.

use clap::Args;
use serde_json::json;

use crate::{commands::node::node_json, context::Context, failure::Failure};

/// Show the leader
#[derive(Debug, Args)]
pub(crate) struct Arguments;

pub(super) async fn run(context: &mut Context, _: Arguments) -> Result<(), Failure> {
    let answer = context.connect_to_cluster().await?.leader().await?;
    let leader = &answer.node;
    context.output.print(
        || json!({ "leader": node_json(leader), "term": answer.term }),
        || format!("{} ({}), term {}", leader.name, leader.client_address, answer.term),
    )?;
    Ok(())
}
