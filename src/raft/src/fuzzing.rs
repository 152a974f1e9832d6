//! How this layer reads bytes of peers, for the fuzz targets in `fuzz/`, which are the only users.
//!
//! Each message is converted to openraft's type and back, as the calls do it. The result shows how it was understood.
//! Does not cover: the assertions of a target about the results.

use std::path::Path;

use bytes::Bytes;
use tonic::{
    Status, Streaming,
    codec::Codec as _,
    codegen::{Body, StdError},
};
use tonic_prost::ProstCodec;

use crate::{
    freshness::Freshness,
    transport::{
        convert::{self, Malformed},
        peers::MESSAGE_BYTES_MAX,
        server,
    },
};
use proto::{log::v1 as pb, raft::v1 as wire};
use storage::{Received, private};

/// Converts an entry and back.
pub fn entry(message: pb::Entry) -> Result<pb::Entry, Malformed> {
    convert::entry(message).map(|entry| convert::entry_pb(&entry))
}

/// Converts a membership and back.
pub fn stored_membership(message: pb::StoredMembership) -> Result<pb::StoredMembership, Malformed> {
    convert::stored_membership(message).map(|stored| convert::stored_membership_pb(&stored))
}

/// Converts a replication message and back. The fields that the nodes add to it are no part of the conversion.
pub fn append_request(message: wire::AppendRequest) -> Result<wire::AppendRequest, Malformed> {
    let _ = server::led_at(&Freshness::default(), &message);
    convert::append_request(message).map(|request| convert::append_request_pb(&request, None, None, 0))
}

/// Converts the answer to a heartbeat and back.
pub fn append_response(message: wire::AppendResponse) -> Result<wire::AppendResponse, Malformed> {
    convert::append_response(message).map(|response| convert::append_response_pb(&response))
}

/// Converts an answer in a stream and back.
pub fn stream_result(message: wire::AppendResponse) -> Result<wire::AppendResponse, Malformed> {
    convert::stream_result(message).map(|result| convert::stream_result_pb(&result))
}

/// Converts a candidate's request and back.
pub fn vote_request(message: wire::VoteRequest) -> Result<wire::VoteRequest, Malformed> {
    convert::vote_request(message).map(|request| convert::vote_request_pb(&request, None))
}

/// Converts the answer to a candidate and back.
pub fn vote_response(message: wire::VoteResponse) -> Result<wire::VoteResponse, Malformed> {
    convert::vote_response(message).map(|response| convert::vote_response_pb(&response))
}

/// Converts a transfer request of a leader and back.
pub fn transfer_request(message: wire::TransferLeaderRequest) -> Result<wire::TransferLeaderRequest, Malformed> {
    convert::transfer_request(message).map(|request| convert::transfer_request_pb(&request))
}

/// Receives a snapshot into the data directory `dir` from the bytes of a stream, which follow the header.
pub async fn receive_snapshot<B>(dir: &Path, header: &wire::SnapshotHeader, stream: B) -> Result<Received, Status>
where
    B: Body<Data = Bytes, Error: Into<StdError>> + Send + 'static,
{
    // A running node has it.
    private::create_dir_all(&dir.join("snapshots")).map_err(|error| Status::internal(error.to_string()))?;
    let decoder = ProstCodec::<wire::SnapshotChunk, wire::SnapshotChunk>::default().decoder();
    let mut chunks = Streaming::new_request(decoder, stream, None, Some(MESSAGE_BYTES_MAX));
    server::receive(dir.to_owned(), header, &mut chunks).await
}
