//! The operator's commands, through a node's admin socket: members, snapshot.

use std::path::Path;

use serde_json::json;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use super::{
    ctl::{Context, Failure},
    ctl_args::Members,
};
use crate::{
    client::ClientError,
    proto::chat::v1::{
        AddNodeRequest, IssueJoinTokenRequest, RemoveNodeRequest, SnapshotRequest, TransferLeadershipRequest,
        admin_service_client::AdminServiceClient,
    },
};

pub(super) async fn connect(context: &Context, socket: &Path) -> Result<AdminServiceClient<Channel>, Failure> {
    Ok(AdminServiceClient::new(channel(context, socket).await?))
}

/// Opens a connection to a node's admin socket.
pub(super) async fn channel(context: &Context, socket: &Path) -> Result<Channel, Failure> {
    let path = socket.to_str().ok_or_else(|| Failure::Usage("the socket's path is not UTF-8".to_owned()))?;
    let unreachable = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let hint = "the node has its socket in CHAT_DATA_DIR; --socket PATH names it";
        ClientError::local(Code::Unavailable, format!("{path}: {error}{cause} ({hint})"))
    };
    let endpoint = Endpoint::from_shared(format!("unix:{path}")).map_err(|error| unreachable(&error))?;
    let endpoint = endpoint.connect_timeout(context.global.timeout).timeout(context.global.timeout);
    Ok(endpoint.connect().await.map_err(|error| unreachable(&error))?)
}

pub(super) fn request<T>(context: &Context, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(context.global.timeout);
    request
}

pub(super) async fn members(context: &mut Context, change: Members, socket: &Path) -> Result<(), Failure> {
    match change {
        Members::Add { peer_address } => add(context, peer_address, socket).await,
        Members::Remove { name } => remove(context, name, socket).await,
        Members::Token => token(context, socket).await,
        Members::Transfer { name } => transfer(context, name, socket).await,
    }
}

async fn add(context: &mut Context, peer_address: String, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let message = AddNodeRequest { peer_address };
    let answer = client.add_node(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "node_id": answer.node_id }),
        || format!("added with id {}; it gets a vote when it has caught up (see `chatctl status`)", answer.node_id),
    )?;
    Ok(())
}

async fn remove(context: &mut Context, name: String, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let message = RemoveNodeRequest { name: name.clone() };
    let answer = client.remove_node(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(|| json!({ "node_ids": answer.node_ids }), || format!("{name} was removed"))?;
    Ok(())
}

async fn token(context: &mut Context, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let answer = client.issue_join_token(request(context, IssueJoinTokenRequest {})).await;
    let answer = answer.map_err(admin_error)?.into_inner();
    // Only the token, so that the output can be redirected into a file.
    context
        .output
        .print(|| json!({ "token": answer.token, "expires_at_ms": answer.expires_at_ms }), || answer.token.clone())?;
    Ok(())
}

async fn transfer(context: &mut Context, to: Option<String>, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let message = TransferLeadershipRequest { to: to.unwrap_or_default() };
    let answer = client.transfer_leadership(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "leader": answer.leader, "term": answer.term }),
        || format!("{} leads, term {}", answer.leader, answer.term),
    )?;
    Ok(())
}

pub(super) async fn snapshot(context: &mut Context, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let answer = client.snapshot(request(context, SnapshotRequest {})).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "log_index": answer.log_index }),
        || format!("snapshot built, up to log entry {}", answer.log_index),
    )?;
    Ok(())
}

/// Converts the error of a call without retries. If the call was interrupted, the outcome is unknown.
pub(super) fn admin_error(status: tonic::Status) -> ClientError {
    let error = ClientError::from(status);
    let cut_off = matches!(error.code, Code::DeadlineExceeded | Code::Cancelled | Code::Unknown);
    ClientError { outcome_unknown: cut_off || error.has_reason("OUTCOME_UNKNOWN"), ..error }
}
