//! Checks of a message of a peer that need only the message: its sender, and the size of its entries.
//!
//! Does not cover: checks against the state of the node (`node::messages`), whether the caller is a member (`peers`),
//! and commitments (`node::commitments`).

use prost::Message as _;
use tonic::Status;

use proto::{log::v1 as pb, raft::v1 as wire};

/// Size of a message's entries in bytes; `None` if it has no entries.
pub(crate) fn entry_bytes(message: &wire::AppendRequest) -> Option<u64> {
    let bytes = |entry: &pb::Entry| entry.encoded_len() as u64;
    (!message.entries.is_empty()).then(|| message.entries.iter().map(bytes).sum())
}

pub(crate) fn volume_full() -> Status {
    Status::unavailable("the volume of this node is full")
}

/// Checks that a call comes from the node that its vote names. A call speaks only for its sender.
pub(crate) fn sent_by(sender: u64, vote: Option<&pb::Vote>) -> Result<(), Status> {
    match vote {
        Some(vote) if vote.node_id != sender => {
            Err(Status::permission_denied(format!("node {sender} cannot speak for node {}", vote.node_id)))
        }
        _ => Ok(()),
    }
}
