//! The openraft network, over the peer port.

use std::{
    future::Future,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use openraft::{
    ErrorSubject, ErrorVerb, OptionalSend, RPCTypes, StorageError,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::{
    commitments::{Commitment, Commitments},
    convert::{self, Malformed},
    freshness::{Clocks, QuorumAge},
    peers::{Credentials, Lane, Peers},
    snapshots::SnapshotHandle,
    space::Space,
    state_machine::Observer,
    traced::{Replication, Traced},
    transfer::Declined,
    types::{NodeRecord, Snapshot, TypeConfig, Vote},
};
use crate::{
    blocking,
    proto::{
        Channel,
        raft::v1::{self as wire, raft_service_client::RaftServiceClient},
    },
    storage::{LogDb, VerifiedRead},
};

/// A replication stream on which requests have waited this long for an answer is closed and opened again. Longer than
/// any fsync from which the follower may still recover.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Shortest timeout of a single call. By default, heartbeats have a timeout that is too tight for a loaded machine.
const CALL_MIN: Duration = Duration::from_millis(250);
/// Bytes of a snapshot per message.
const CHUNK_BYTES: usize = 1 << 20;
/// Snapshot messages read ahead of the connection.
const CHUNKS_AHEAD: usize = 4;

/// Creates the network clients of openraft.
pub struct NetworkFactory {
    peers: Arc<Peers>,
    credentials: Credentials,
    context: AppendContext,
}

/// Data that a leader adds to openraft's messages, and the places where it keeps the data of the answers.
#[derive(Clone)]
pub(super) struct AppendContext {
    /// Time since this leader last had a quorum.
    pub quorum_age: QuorumAge,
    /// Estimates of the followers' clocks.
    pub clocks: Clocks,
    /// Commitments of the followers.
    pub commitments: Commitments,
    /// This node's log, which gives the end of its durable part.
    pub log: LogDb,
    /// Followers that are low on space.
    pub space: Space,
    /// Voters that declined leadership.
    pub declined: Declined,
    /// Receives the response times of heartbeats.
    pub observer: Arc<dyn Observer>,
    /// Traced entries, whose replication is recorded.
    pub traced: Arc<Traced>,
}

impl AppendContext {
    fn with(&self, target: u64, request: &AppendEntriesRequest<TypeConfig>) -> wire::AppendRequest {
        let commitment = self.commitments.of(target).map(Commitment::to_pb);
        let message = convert::append_request_pb(request, self.quorum_age.get(), commitment, self.log.durable_end());
        wire::AppendRequest { your_clock_ms: self.clocks.of(target), ..message }
    }
}

impl NetworkFactory {
    /// Clients over `peers` that sign with `credentials` and add the leader's data to each append.
    pub(super) fn new(peers: Arc<Peers>, credentials: Credentials, context: AppendContext) -> Self {
        Self { peers, credentials, context }
    }

    fn connect(&self, target: u64, node: &NodeRecord, lane: Lane) -> PeerClient {
        PeerClient {
            peers: Arc::clone(&self.peers),
            credentials: self.credentials.clone(),
            target,
            name: node.name.clone(),
            address: node.peer_address.clone(),
            lane,
            context: self.context.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &NodeRecord) -> PeerClient {
        self.connect(target, node, Lane::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &NodeRecord) -> PeerClient {
        self.connect(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &NodeRecord) -> PeerClient {
        self.connect(target, node, Lane::Bulk)
    }
}

/// Sends Raft calls to one peer.
pub struct PeerClient {
    peers: Arc<Peers>,
    credentials: Credentials,
    target: u64,
    name: String,
    address: String,
    lane: Lane,
    context: AppendContext,
}

type RpcError = RPCError<TypeConfig>;

impl PeerClient {
    fn client(&self) -> Result<RaftServiceClient<Channel>, RpcError> {
        self.peers.member(self.target, &self.address, self.lane).map_err(rpc_error)
    }

    /// The common part of a vote and a pre-vote. Both are urgent, so they use the control lane whatever this client's
    /// lane is.
    fn vote_call(
        &self,
        request: &VoteRequest<TypeConfig>,
    ) -> Result<(RaftServiceClient<Channel>, Request<wire::VoteRequest>), RpcError> {
        let client = self.peers.member(self.target, &self.address, Lane::Control).map_err(rpc_error)?;
        let commitment = self.context.commitments.of(self.target).map(Commitment::to_pb);
        Ok((client, self.credentials.sign(self.target, convert::vote_request_pb(request, commitment))))
    }

    /// Makes a single call with a deadline.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        let limit = option.hard_ttl().max(CALL_MIN);
        match timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(rpc_error(status)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.credentials.node_id(),
                target: self.target,
                timeout: limit,
            })),
        }
    }
}

/// Converts a status. A peer that is unreachable or rejects the call is retried after a backoff, any other failure at
/// once.
fn rpc_error(status: Status) -> RpcError {
    match status.code() {
        Code::Unavailable
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument => RPCError::Unreachable(Unreachable::new(&status)),
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

fn malformed(error: Malformed) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut client = self.client()?;
        let message = self.credentials.sign(self.target, self.context.with(self.target, &request));
        let began = Instant::now();
        let response = self.call(RPCTypes::AppendEntries, &option, client.append(message)).await?;
        if self.lane == Lane::Control {
            self.context.observer.answered(&self.name, began.elapsed());
        }
        self.context.space.note(self.target, response.space_low);
        self.context.clocks.note(self.target, response.clock_ms);
        convert::append_response(response).map_err(malformed)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Control {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // openraft backs off inside the input. A call before the first request would fail without any wait, and the
            // next call would follow at once.
            let mut input = input;
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            let vote = first.vote;
            let input = stream::iter([first]).chain(input);
            let mut client = self.client()?;
            let outstanding = Arc::new(AtomicU64::new(0));
            let sent = Arc::clone(&outstanding);
            let (context, target) = (self.context.clone(), self.target);
            let replication = Replication::to(&self.name, &context.traced);
            let sending = Arc::clone(&replication);
            let requests = input.map(move |request| {
                sent.fetch_add(1, Ordering::Relaxed);
                sending.sent(&request.entries);
                context.with(target, &request)
            });
            let message = self.credentials.sign(self.target, requests);
            // Only the stream itself waits for this call, and a follower may be far away.
            let option = RPCOption::new(STREAM_SILENCE_MAX.max(option.hard_ttl()));
            let response = self.call(RPCTypes::AppendEntries, &option, client.stream_append(message)).await?;
            let (commitments, target) = (self.context.commitments.clone(), self.target);
            let responses = watch_for_silence(response, outstanding);
            Ok(Box::pin(responses.inspect(move |response| {
                if let Ok(Ok(accepted)) = response {
                    replication.acknowledged(*accepted);
                    commitments.note(target, Commitment::of_entry(&vote, *accepted));
                }
            })))
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (mut client, message) = self.vote_call(&request)?;
        let response = self.call(RPCTypes::Vote, &option, client.vote(message)).await?;
        if response.granted {
            self.context.commitments.note(self.target, Commitment::of_vote(&request.vote));
        }
        convert::vote_response(response).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (mut client, message) = self.vote_call(&request)?;
        let response = self.call(RPCTypes::Vote, &option, client.pre_vote(message)).await?;
        convert::vote_response(response).map_err(malformed)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let mut client = self.peers.member(self.target, &self.address, Lane::Control).map_err(rpc_error)?;
        let message = self.credentials.sign(self.target, convert::transfer_request_pb(&request));
        let answer = self.call(RPCTypes::TransferLeader, &option, client.transfer_leader(message)).await;
        if matches!(answer, Err(RPCError::Unreachable(_))) && *request.to_node_id() == self.target {
            self.context.declined.note(self.target);
        }
        let response = answer?;
        if let Some(actual) = response.vote_changed {
            let (expected, actual) = (*request.from_leader(), convert::vote(actual));
            return Ok(Err(TransferLeaderError::VoteChanged { expected, actual }));
        }
        if response.log_not_flushed {
            let (expected, actual) = (request.last_log_id().copied(), response.actual_log_id.map(convert::log_id));
            return Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }));
        }
        Ok(Ok(()))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |status: &Status| StreamingError::Unreachable(Unreachable::new(status));
        let mut client =
            self.peers.member(self.target, &self.address, Lane::Bulk).map_err(|status| unreachable(&status))?;
        let handle = snapshot.snapshot;
        let checked = handle.clone();
        let (length_bytes, sha256) =
            blocking::io(move || checksum(&checked)).await.map_err(|error| unreadable(&handle, error))?;
        let header = wire::SnapshotHeader {
            vote: Some(convert::vote_pb(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(convert::log_id_pb),
            membership: Some(convert::stored_membership_pb(&snapshot.meta.last_membership)),
            length_bytes,
            sha256,
        };
        let message = self.credentials.sign(self.target, chunks(header, handle));
        let call = timeout(option.hard_ttl(), client.install_snapshot(message));
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = call => match result {
                Ok(Ok(response)) => {
                    let vote = response.into_inner().vote.ok_or_else(|| {
                        StreamingError::Network(NetworkError::new(&Malformed("vote is missing")))
                    })?;
                    Ok(SnapshotResponse::new(convert::vote(vote)))
                }
                Ok(Err(status)) => Err(unreachable(&status)),
                Err(_) => Err(StreamingError::Timeout(Timeout {
                    action: RPCTypes::InstallSnapshot,
                    id: self.credentials.node_id(),
                    target: self.target,
                    timeout: option.hard_ttl(),
                })),
            },
        }
    }
}

/// Ends the stream with an error when requests wait for an answer and none arrives. Otherwise a half-open connection
/// would block this follower for ever, and with it the purge of the leader's log.
fn watch_for_silence(
    responses: tonic::Streaming<wire::AppendResponse>,
    outstanding: Arc<AtomicU64>,
) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, RpcError>> {
    Box::pin(stream::unfold(Some(responses), move |open| {
        let outstanding = Arc::clone(&outstanding);
        async move {
            let mut responses = open?;
            loop {
                match timeout(STREAM_SILENCE_MAX, responses.next()).await {
                    Ok(None) if outstanding.load(Ordering::Relaxed) == 0 => return None,
                    // Otherwise openraft would wait for the answers and keep the log for them.
                    Ok(None) => {
                        let status = Status::unavailable("the follower ended the replication stream");
                        return Some((Err(rpc_error(status)), None));
                    }
                    Ok(Some(Ok(response))) => {
                        outstanding.fetch_sub(1, Ordering::Relaxed);
                        return match convert::stream_result(response) {
                            Ok(result) => Some((Ok(result), Some(responses))),
                            Err(error) => Some((Err(malformed(error)), None)),
                        };
                    }
                    Ok(Some(Err(status))) => return Some((Err(rpc_error(status)), None)),
                    Err(_) if outstanding.load(Ordering::Relaxed) == 0 => {}
                    Err(_) => {
                        let status = Status::unavailable("the follower does not answer on the replication stream");
                        return Some((Err(rpc_error(status)), None));
                    }
                }
            }
        }
    }))
}

/// Converts a read error. A damaged snapshot stops the node: the next start removes it and builds another, while other
/// nodes lead.
fn unreadable(handle: &SnapshotHandle, error: io::Error) -> StreamingError<TypeConfig> {
    if error.kind() != io::ErrorKind::InvalidData {
        return StreamingError::Network(NetworkError::new(&error));
    }
    let error = io::Error::new(error.kind(), format!("the snapshot {}: {error}", handle.path.display()));
    StreamingError::StorageError(StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, error))
}

/// Length and SHA-256 of a snapshot, taken from verified reads. A page that changes afterwards gives the receiver
/// another SHA-256.
fn checksum(handle: &SnapshotHandle) -> io::Result<(u64, Vec<u8>)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut length = 0;
    let mut file = VerifiedRead::new(&handle.file)?;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((length, hash.finalize().to_vec()));
        }
        hash.update(&buffer[..count]);
        length += count as u64;
    }
}

/// The messages of a snapshot, a few of them read ahead. A read error ends the stream early, and the receiver then
/// rejects the snapshot because of its length.
fn chunks(header: wire::SnapshotHeader, handle: SnapshotHandle) -> ReceiverStream<wire::SnapshotChunk> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        let mut part = wire::snapshot_chunk::Part::Header(header);
        let mut offset = 0;
        while sender.send(wire::SnapshotChunk { part: Some(part) }).await.is_ok() {
            let file = Arc::clone(&handle.file);
            let read = blocking::io(move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                let count = file.read_at(&mut buffer, offset)?;
                buffer.truncate(count);
                Ok(buffer)
            });
            match read.await {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => {
                    offset += bytes.len() as u64;
                    part = wire::snapshot_chunk::Part::Data(Bytes::from(bytes));
                }
                Err(error) => {
                    tracing::error!(%error, path = %handle.path.display(), "A snapshot could not be read for sending");
                    return;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}
