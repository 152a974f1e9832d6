//! Calls through a node's admin socket: the options that name it, connections, requests and errors.
//!
//! These calls are not retried, so a call that was interrupted has an unknown outcome.

use std::path::{Path, PathBuf};

use clap::Args;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{context::Context, failure::Failure};
use client::ClientError;
use proto::chat::v1::{
    account_admin_service_client::AccountAdminServiceClient, admin_service_client::AdminServiceClient,
};

/// The admin socket of any node.
#[derive(Debug, Clone, Args)]
pub(super) struct Socket {
    /// The admin socket of any node
    #[arg(long = "socket", value_name = "PATH", default_value = "admin.sock")]
    pub(super) path: PathBuf,
}

/// The admin socket of any node, as an option of a command and of its subcommands.
#[derive(Debug, Clone, Args)]
pub(super) struct GlobalSocket {
    /// The admin socket of any node
    #[arg(long = "socket", global = true, value_name = "PATH", default_value = "admin.sock")]
    pub(super) path: PathBuf,
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

/// Connects to the service that operates the cluster.
pub(super) async fn admin(context: &Context, socket: &Path) -> Result<AdminServiceClient<Channel>, Failure> {
    Ok(AdminServiceClient::new(channel(context, socket).await?))
}

/// Connects to the service that manages accounts.
pub(super) async fn account_admin(
    context: &Context,
    socket: &Path,
) -> Result<AccountAdminServiceClient<Channel>, Failure> {
    Ok(AccountAdminServiceClient::new(channel(context, socket).await?))
}

/// Creates a request with the timeout of the command.
pub(super) fn request<T>(context: &Context, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(context.global.timeout);
    request
}

/// Converts the error of a call without retries. If the call was interrupted, the outcome is unknown.
pub(super) fn admin_error(status: Status) -> ClientError {
    let error = ClientError::from(status);
    let interrupted = matches!(error.code, Code::DeadlineExceeded | Code::Cancelled | Code::Unknown);
    ClientError { outcome_unknown: interrupted || error.has_reason("OUTCOME_UNKNOWN"), ..error }
}
