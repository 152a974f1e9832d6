//! `chatctl snapshot`: lets a node flush its state, through its admin socket.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    commands::operator::{admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use proto::chat::v1::SnapshotRequest;

/// Flush the state of a node now, so that its log can be cut
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The admin socket of the node
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

pub(super) async fn run(context: &mut Context, Arguments { socket }: Arguments) -> Result<(), Failure> {
    let mut client = admin(context, &socket).await?;
    let answer = client.snapshot(request(context, SnapshotRequest {})).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "log_index": answer.log_index }),
        || format!("the state is flushed up to log entry {}", answer.log_index),
    )?;
    Ok(())
}
