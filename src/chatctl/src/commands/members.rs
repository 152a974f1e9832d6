//! `chatctl members`: changes the membership or the leader, through a node's admin socket.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    commands::operator::{GlobalSocket, admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use proto::chat::v1::{AddNodeRequest, IssueJoinTokenRequest, RemoveNodeRequest, TransferLeadershipRequest};

/// Change the membership or the leader (through admin.sock in a node's data directory)
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    change: Change,
    #[command(flatten)]
    socket: GlobalSocket,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Add an empty node that was started with CHAT_JOIN=invitation
    Add {
        /// Address at which it listens for peers
        #[arg(value_name = "HOST:PORT")]
        peer_address: String,
    },
    /// Remove a node from the cluster permanently
    Remove {
        /// Name of the node
        name: String,
    },
    /// Create a token with which one node of any name can join (CHAT_JOIN_TOKEN); valid for an hour
    Token,
    /// Transfer leadership to another node
    Transfer {
        /// Name of the node [default: chosen by the leader]
        name: Option<String>,
    },
}

pub(super) async fn run(context: &mut Context, Arguments { change, socket }: Arguments) -> Result<(), Failure> {
    let socket = &socket.path;
    match change {
        Change::Add { peer_address } => add(context, peer_address, socket).await,
        Change::Remove { name } => remove(context, name, socket).await,
        Change::Token => token(context, socket).await,
        Change::Transfer { name } => transfer(context, name, socket).await,
    }
}

async fn add(context: &mut Context, peer_address: String, socket: &Path) -> Result<(), Failure> {
    let mut client = admin(context, socket).await?;
    let message = AddNodeRequest { peer_address };
    let answer = client.add_node(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "node_id": answer.node_id }),
        || format!("added with id {}; it gets a vote when it has caught up (see `chatctl status`)", answer.node_id),
    )?;
    Ok(())
}

async fn remove(context: &mut Context, name: String, socket: &Path) -> Result<(), Failure> {
    let mut client = admin(context, socket).await?;
    let message = RemoveNodeRequest { name: name.clone() };
    let answer = client.remove_node(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(|| json!({ "node_ids": answer.node_ids }), || format!("{name} was removed"))?;
    Ok(())
}

async fn token(context: &mut Context, socket: &Path) -> Result<(), Failure> {
    let mut client = admin(context, socket).await?;
    let answer = client.issue_join_token(request(context, IssueJoinTokenRequest {})).await;
    let answer = answer.map_err(admin_error)?.into_inner();
    // Only the token, so that the output can be redirected into a file.
    context
        .output
        .print(|| json!({ "token": answer.token, "expires_at_ms": answer.expires_at_ms }), || answer.token.clone())?;
    Ok(())
}

async fn transfer(context: &mut Context, to: Option<String>, socket: &Path) -> Result<(), Failure> {
    let mut client = admin(context, socket).await?;
    let message = TransferLeadershipRequest { to: to.unwrap_or_default() };
    let answer = client.transfer_leadership(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "leader": answer.leader, "term": answer.term }),
        || format!("{} leads, term {}", answer.leader, answer.term),
    )?;
    Ok(())
}
