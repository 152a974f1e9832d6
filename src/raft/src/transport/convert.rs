//! Converts between openraft's types and those of the protocol: on disk (`log.v1`) and between nodes (`raft.v1`).
//!
//! Does not cover: checks of what a message says (`checks`, `node::messages`), and encoding commands
//! (`storage::codec`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
        VoteRequest, VoteResponse,
    },
};

use crate::types::{Entry, LogId, Membership, NodeRecord, Payload, StoredMembership, TypeConfig, Vote};
use proto::{log::v1 as pb, raft::v1 as wire};

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

/// A message that lacks a required part, or contradicts itself.
#[derive(Debug, thiserror::Error)]
#[error("malformed message of a peer: {0}")]
pub struct Malformed(pub &'static str);

pub(crate) fn log_id(id: pb::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.node_id }, id.index)
}

pub(crate) fn log_id_pb(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

pub(crate) fn vote(vote: pb::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node_id }, committed: vote.committed }
}

pub(crate) fn vote_pb(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

fn required_vote(message: Option<pb::Vote>) -> Result<Vote, Malformed> {
    match message {
        Some(message) if message.term > NUMBER_MAX => Err(Malformed("the vote's term cannot be stored")),
        message => message.map(vote).ok_or(Malformed("vote is missing")),
    }
}

/// The vote of a leader, which a majority has granted. Raft accepts appends and snapshots under no other vote.
pub(crate) fn leaders_vote(message: Option<pb::Vote>) -> Result<Vote, Malformed> {
    match required_vote(message)? {
        vote if vote.committed => Ok(vote),
        _ => Err(Malformed("the vote is not that of a leader")),
    }
}

/// The vote that a candidate asks for, which is not granted yet.
fn candidates_vote(message: Option<pb::Vote>) -> Result<Vote, Malformed> {
    match required_vote(message)? {
        vote if vote.committed => Err(Malformed("the vote is not that of a candidate")),
        vote => Ok(vote),
    }
}

/// SQLite's largest integer. A larger index or term could not be stored, and the node would stop at each attempt.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// Checks that this node can store the position of an entry, and a next one.
fn storable(id: LogId) -> Result<LogId, Malformed> {
    match id.index < NUMBER_MAX && id.leader_id.term <= NUMBER_MAX {
        true => Ok(id),
        false => Err(Malformed("a log id cannot be stored")),
    }
}

pub(crate) fn entry(entry: pb::Entry) -> Result<Entry, Malformed> {
    let id = entry.log_id.map(log_id).ok_or(Malformed("log id is missing"))?;
    let payload = match entry.payload {
        Some(pb::entry::Payload::Blank(_)) => EntryPayload::Blank,
        Some(pb::entry::Payload::Batch(bytes)) => EntryPayload::Normal(Payload(bytes)),
        Some(pb::entry::Payload::Membership(record)) if record.voters.is_empty() => {
            return Err(Malformed("a membership without voters"));
        }
        Some(pb::entry::Payload::Membership(record)) => EntryPayload::Membership(membership(record)?),
        None => return Err(Malformed("payload is missing or of an unknown kind")),
    };
    Ok(Entry { log_id: id, payload })
}

pub(crate) fn entry_pb(entry: &Entry) -> pb::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(Payload(bytes)) => pb::entry::Payload::Batch(Bytes::clone(bytes)),
        EntryPayload::Membership(record) => pb::entry::Payload::Membership(membership_pb(record)),
    };
    pb::Entry { log_id: Some(log_id_pb(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn membership(record: pb::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> = record.voters.into_iter().map(|set| set.node_ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, NodeRecord> = record
        .nodes
        .into_iter()
        .map(|node| {
            let record = NodeRecord {
                name: node.name,
                peer_address: node.peer_address,
                client_address: node.client_address,
                web_address: node.web_address,
                admission: node.admission,
            };
            (node.node_id, record)
        })
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership is inconsistent"))
}

pub(crate) fn membership_pb(membership: &Membership) -> pb::Membership {
    pb::Membership {
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| pb::VoterSet { node_ids: set.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| pb::Node {
                node_id: *id,
                name: node.name.clone(),
                peer_address: node.peer_address.clone(),
                client_address: node.client_address.clone(),
                web_address: node.web_address.clone(),
                admission: node.admission,
            })
            .collect(),
    }
}

pub(crate) fn stored_membership(record: pb::StoredMembership) -> Result<StoredMembership, Malformed> {
    let members = record.membership.map(membership).transpose()?.unwrap_or_default();
    Ok(StoredMembership::new(record.log_id.map(log_id), members))
}

pub(crate) fn stored_membership_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_pb),
        membership: Some(membership_pb(stored.membership())),
    }
}

pub(crate) fn append_request(request: wire::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let prev_log_id = request.prev_log_id.map(log_id).map(storable).transpose()?;
    let leader_commit = request.leader_commit.map(log_id).map(storable).transpose()?;
    let entries: Vec<Entry> = request.entries.into_iter().map(entry).collect::<Result<_, _>>()?;
    for (entry, next) in entries.iter().zip(prev_log_id.map_or(0, |id| id.index + 1)..) {
        storable(entry.log_id)?;
        if entry.log_id.index != next {
            return Err(Malformed("the entries are not contiguous"));
        }
    }
    Ok(AppendEntriesRequest { vote: leaders_vote(request.vote)?, prev_log_id, entries, leader_commit })
}

pub(crate) fn append_request_pb(
    request: &AppendEntriesRequest<TypeConfig>,
    quorum_age: Option<Duration>,
    commitment: Option<wire::Commitment>,
    durable_end: u64,
) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_pb(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(log_id_pb),
        entries: request.entries.iter().map(entry_pb).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_pb),
        quorum_age_ms: quorum_age.map(|age| age.as_millis() as u64),
        commitment,
        durable_end,
        your_clock_ms: None,
    }
}

pub(crate) fn append_response(response: wire::AppendResponse) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use wire::append_response::Result as R;
    Ok(match response.result.ok_or(Malformed("result is missing"))? {
        R::Accepted(wire::Accepted { partial: false, .. }) => AppendEntriesResponse::Success,
        R::Accepted(wire::Accepted { log_id: id, partial: true }) => {
            AppendEntriesResponse::PartialSuccess(id.map(log_id))
        }
        R::Conflict(_) => AppendEntriesResponse::Conflict,
        R::HigherVote(higher) => AppendEntriesResponse::HigherVote(vote(higher)),
    })
}

pub(crate) fn append_response_pb(response: &AppendEntriesResponse<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as R;
    let result = match response {
        AppendEntriesResponse::Success => R::Accepted(wire::Accepted { log_id: None, partial: false }),
        AppendEntriesResponse::PartialSuccess(id) => {
            R::Accepted(wire::Accepted { log_id: id.as_ref().map(log_id_pb), partial: true })
        }
        AppendEntriesResponse::Conflict => R::Conflict(wire::Conflict { log_id: None }),
        AppendEntriesResponse::HigherVote(higher) => R::HigherVote(vote_pb(higher)),
    };
    wire::AppendResponse { result: Some(result), ..Default::default() }
}

pub(crate) fn stream_result(response: wire::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use wire::append_response::Result as R;
    Ok(match response.result.ok_or(Malformed("result is missing"))? {
        R::Accepted(accepted) => Ok(accepted.log_id.map(log_id)),
        R::Conflict(conflict) => {
            Err(StreamAppendError::Conflict(conflict.log_id.map(log_id).ok_or(Malformed("conflict without a log id"))?))
        }
        R::HigherVote(higher) => Err(StreamAppendError::HigherVote(vote(higher))),
    })
}

pub(crate) fn stream_result_pb(result: &StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as R;
    let result = match result {
        Ok(id) => R::Accepted(wire::Accepted { log_id: id.as_ref().map(log_id_pb), partial: false }),
        Err(StreamAppendError::Conflict(id)) => R::Conflict(wire::Conflict { log_id: Some(log_id_pb(id)) }),
        Err(StreamAppendError::HigherVote(higher)) => R::HigherVote(vote_pb(higher)),
    };
    wire::AppendResponse { result: Some(result), ..Default::default() }
}

pub(crate) fn vote_request(request: wire::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut converted = VoteRequest::new(candidates_vote(request.vote)?, request.last_log_id.map(log_id));
    converted.leadership_transfer = request.leadership_transfer;
    Ok(converted)
}

pub(crate) fn vote_request_pb(
    request: &VoteRequest<TypeConfig>,
    commitment: Option<wire::Commitment>,
) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_pb(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_pb),
        leadership_transfer: request.leadership_transfer,
        commitment,
    }
}

pub(crate) fn vote_response(response: wire::VoteResponse) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(required_vote(response.vote)?, response.last_log_id.map(log_id), response.granted))
}

pub(crate) fn vote_response_pb(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_pb(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_pb),
    }
}

pub(crate) fn transfer_request(
    request: wire::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let from = leaders_vote(request.from)?;
    Ok(TransferLeaderRequest::new(from, request.to, request.last_log_id.map(log_id)))
}

pub(crate) fn transfer_request_pb(request: &TransferLeaderRequest<TypeConfig>) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        from: Some(vote_pb(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_pb),
    }
}
