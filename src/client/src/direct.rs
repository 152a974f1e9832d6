//! Calls to single nodes, for tools that compare nodes with each other or measure one.
//!
//! A [`Client`] goes to the leader and retries. What is here does neither: a tool gets the channel to one node, the
//! generated client for it, and the meaning of a failure. A program that only uses the chat does not need this module.
//!
//! Not stable: the types are those of the protocol, and they change with it.

use std::time::Duration;

use futures_util::future::join_all;
use proto::{
    Channel,
    chat::v1::{SendMessageResponse, chat_service_client::ChatServiceClient},
};
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataValue},
};
use uuid::Uuid;

use super::{
    Client, ClientError, NodeList, Options, Sent, calls,
    error::{Verdict, classify},
    nodes,
};

/// Returns a channel to the node at `address` (`host:port`), which connects when it is first used.
///
/// # Errors
///
/// INVALID_ARGUMENT when the address is malformed.
pub fn channel(address: &str, options: &Options) -> Result<Channel, ClientError> {
    nodes::channel(address, options).map(|opened| opened.channel.into())
}

/// Returns the generated client for a node, with the limits that all calls share.
pub fn chat(channel: Channel) -> ChatServiceClient<Channel> {
    calls::chat_client(channel)
}

/// Returns the value of the `authorization` header for a session's token. Debug output never shows it.
///
/// # Errors
///
/// UNAUTHENTICATED when the token contains characters that no token has.
pub fn bearer(token: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    super::bearer(token)
}

/// Returns the receipt that the answer of a node contains. `id` is what the message was sent with.
pub fn sent(id: Uuid, answer: SendMessageResponse) -> Sent {
    Sent::new(id, answer)
}

/// Whether the service guarantees that a call with this status applied nothing and never will.
///
/// A status that was made on the way, by a proxy or by this side, guarantees it only if the call was not sent.
pub fn has_no_effect(status: &Status) -> bool {
    match classify(status) {
        Verdict::Retry { unknown, .. } => !unknown,
        // An internal error of the service guarantees nothing.
        Verdict::Final => status.code() != Code::Internal && ClientError::from(status.clone()).reason.is_some(),
    }
}

/// Asks every node that `client` knows for the list of nodes, each for at most `limit`. Returns the addresses with the
/// answers, those that the client was created with first.
pub async fn list_each(client: &Client, limit: Duration) -> Vec<(String, Result<NodeList, ClientError>)> {
    let nodes = &client.nodes;
    let asked = nodes.all().into_iter().map(|target| async move {
        let answer = nodes.list(&target, limit).await;
        (target.address.to_string(), answer.map(NodeList::from))
    });
    join_all(asked).await
}
