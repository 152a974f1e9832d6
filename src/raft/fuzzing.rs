//! What this layer makes of bytes of peers, for the fuzz targets in `fuzz/`: only they use it.
//!
//! Each message is turned into openraft's type and back, as the calls do it: what comes back is what was understood.
//! Left out: what a target says about the results.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use tonic::{
    Status, Streaming,
    codec::Codec as _,
    codegen::{Body, StdError},
};
use tonic_prost::ProstCodec;

use super::{convert, convert::Malformed, peers::MESSAGE_BYTES_MAX, service, snapshots::SnapshotStore};
use crate::proto::{log::v1 as pb, raft::v1 as wire};

/// What was understood of an entry.
pub fn entry(message: pb::Entry) -> Result<pb::Entry, Malformed> {
    convert::entry(message).map(|entry| convert::entry_pb(&entry))
}

/// What was understood of a membership.
pub fn stored_membership(message: pb::StoredMembership) -> Result<pb::StoredMembership, Malformed> {
    convert::stored_membership(message).map(|stored| convert::stored_membership_pb(&stored))
}

/// What was understood of a replication message. What the nodes add to it is no part of what is converted.
pub fn append_request(message: wire::AppendRequest) -> Result<wire::AppendRequest, Malformed> {
    let _ = service::led_at(&message);
    convert::append_request(message).map(|request| convert::append_request_pb(&request, None, None, 0))
}

/// What was understood of the answer to a heartbeat.
pub fn append_response(message: wire::AppendResponse) -> Result<wire::AppendResponse, Malformed> {
    convert::append_response(message).map(|response| convert::append_response_pb(&response))
}

/// What was understood of an answer in a stream.
pub fn stream_result(message: wire::AppendResponse) -> Result<wire::AppendResponse, Malformed> {
    convert::stream_result(message).map(|result| convert::stream_result_pb(&result))
}

/// What was understood of a candidate's request.
pub fn vote_request(message: wire::VoteRequest) -> Result<wire::VoteRequest, Malformed> {
    convert::vote_request(message).map(|request| convert::vote_request_pb(&request, None))
}

/// What was understood of the answer to a candidate.
pub fn vote_response(message: wire::VoteResponse) -> Result<wire::VoteResponse, Malformed> {
    convert::vote_response(message).map(|response| convert::vote_response_pb(&response))
}

/// What was understood of a leader that hands over.
pub fn transfer_request(message: wire::TransferLeaderRequest) -> Result<wire::TransferLeaderRequest, Malformed> {
    convert::transfer_request(message).map(|request| convert::transfer_request_pb(&request))
}

/// Receives a snapshot into the data directory `dir`: the bytes of a stream, after the header. Its revision's place in
/// the log, and its membership.
pub async fn receive_snapshot<B>(
    dir: &Path,
    header: &wire::SnapshotHeader,
    stream: B,
) -> Result<(Option<pb::LogId>, pb::StoredMembership), Status>
where
    B: Body<Data = Bytes, Error: Into<StdError>> + Send + 'static,
{
    let store = SnapshotStore::open(dir).map_err(|error| Status::internal(error.to_string()))?;
    let decoder = ProstCodec::<wire::SnapshotChunk, wire::SnapshotChunk>::default().decoder();
    let mut chunks = Streaming::new_request(decoder, stream, None, Some(MESSAGE_BYTES_MAX));
    let snapshot = service::receive(Arc::new(store), header, &mut chunks).await?;
    let meta = snapshot.meta;
    Ok((meta.last_log_id.as_ref().map(convert::log_id_pb), convert::stored_membership_pb(&meta.last_membership)))
}
