//! openraft's network, over the peer port.

use std::{
    future::Future,
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
    OptionalSend, RPCTypes,
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
    convert::{self, Malformed},
    freshness::QuorumAge,
    peers::{Credentials, Lane, Peers},
    promises::{Promise, Promises},
    snapshots::SnapshotHandle,
    space::Space,
    state_machine::Observer,
    traced::{Replication, Traced},
    types::{NodeRecord, Snapshot, TypeConfig, Vote},
};
use crate::{
    blocking,
    proto::{
        Channel,
        raft::v1::{self as wire, raft_service_client::RaftServiceClient},
    },
    storage::LogDb,
};

/// A replication stream whose oldest request has waited so long for its answer is given up and opened anew. Longer
/// than any fsync that the follower may yet recover from.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Shortest deadline of a single call: heartbeats have a tighter one by default than a loaded machine can keep.
const CALL_MIN: Duration = Duration::from_millis(250);
/// Bytes of a snapshot in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// Snapshot messages read ahead of the connection.
const CHUNKS_AHEAD: usize = 4;

/// Makes the clients that openraft asks for.
pub struct NetworkFactory {
    peers: Arc<Peers>,
    credentials: Credentials,
    told: Told,
}

/// What a leader says with each append, beside what openraft says.
#[derive(Clone)]
pub(super) struct Told {
    /// When a majority followed it.
    pub quorum_age: QuorumAge,
    /// What the followers have promised.
    pub promises: Promises,
    /// How far its own log is on disk.
    pub log: LogDb,
    /// Which followers are low on space.
    pub space: Space,
    /// Who is told how long answers take.
    pub observer: Arc<dyn Observer>,
    /// Of which entries it has to tell.
    pub traced: Arc<Traced>,
}

impl Told {
    fn with(&self, target: u64, request: &AppendEntriesRequest<TypeConfig>) -> wire::AppendRequest {
        let promised = self.promises.of(target).map(Promise::to_pb);
        convert::append_request_pb(request, self.quorum_age.get(), promised, self.log.durable_end())
    }
}

impl NetworkFactory {
    /// Clients over `peers` that sign with `credentials`, and say with each append what is `told`.
    pub(super) fn new(peers: Arc<Peers>, credentials: Credentials, told: Told) -> Self {
        Self { peers, credentials, told }
    }

    fn connect(&self, target: u64, node: &NodeRecord, lane: Lane) -> PeerClient {
        PeerClient {
            peers: Arc::clone(&self.peers),
            credentials: self.credentials.clone(),
            target,
            name: node.name.clone(),
            address: node.peer_address.clone(),
            lane,
            told: self.told.clone(),
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

/// Raft calls to one peer.
pub struct PeerClient {
    peers: Arc<Peers>,
    credentials: Credentials,
    target: u64,
    name: String,
    address: String,
    lane: Lane,
    told: Told,
}

type RpcError = RPCError<TypeConfig>;

impl PeerClient {
    fn client(&self) -> Result<RaftServiceClient<Channel>, RpcError> {
        self.peers.member(self.target, &self.address, self.lane).map_err(rpc_error)
    }

    /// What a vote and a pre-vote have in common: they are urgent, whatever this client is for.
    fn vote_call(
        &self,
        request: &VoteRequest<TypeConfig>,
    ) -> Result<(RaftServiceClient<Channel>, Request<wire::VoteRequest>), RpcError> {
        let client = self.peers.member(self.target, &self.address, Lane::Control).map_err(rpc_error)?;
        let promised = self.told.promises.of(self.target).map(Promise::to_pb);
        Ok((client, self.credentials.sign(self.target, convert::vote_request_pb(request, promised))))
    }

    /// A single call with a deadline.
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

/// A peer that cannot be reached, or refuses to talk, is left alone for a while; all else is tried again at once.
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
        let message = self.credentials.sign(self.target, self.told.with(self.target, &request));
        let began = Instant::now();
        let response = self.call(RPCTypes::AppendEntries, &option, client.append(message)).await?;
        if self.lane == Lane::Control {
            self.told.observer.answered(&self.name, began.elapsed());
        }
        self.told.space.note(self.target, response.space_low);
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
            // openraft backs off inside of the input: a call that is made before the first request is there fails
            // without ever having waited, and the next one follows at once.
            let mut input = input;
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            let vote = first.vote;
            let input = stream::iter([first]).chain(input);
            let mut client = self.client()?;
            let outstanding = Arc::new(AtomicU64::new(0));
            let sent = Arc::clone(&outstanding);
            let (told, target) = (self.told.clone(), self.target);
            let replication = Replication::to(&self.name, &told.traced);
            let sending = Arc::clone(&replication);
            let requests = input.map(move |request| {
                sent.fetch_add(1, Ordering::Relaxed);
                sending.sent(&request.entries);
                told.with(target, &request)
            });
            let message = self.credentials.sign(self.target, requests);
            // Nobody waits for this but the stream itself, and a follower may be far away.
            let option = RPCOption::new(STREAM_SILENCE_MAX.max(option.hard_ttl()));
            let response = self.call(RPCTypes::AppendEntries, &option, client.stream_append(message)).await?;
            let (promises, target) = (self.told.promises.clone(), self.target);
            let responses = watch_for_silence(response, outstanding);
            Ok(Box::pin(responses.inspect(move |response| {
                if let Ok(Ok(accepted)) = response {
                    replication.acknowledged(*accepted);
                    promises.note(target, Promise::of_entry(&vote, *accepted));
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
            self.told.promises.note(self.target, Promise::of_vote(&request.vote));
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
        let response = self.call(RPCTypes::TransferLeader, &option, client.transfer_leader(message)).await?;
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
        let (length_bytes, sha256) = blocking::io(move || checksum(&checked))
            .await
            .map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
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

/// Ends the stream with an error when requests wait for an answer and none comes: a half-open connection would
/// otherwise hold this follower, and with it the purge of the leader's log, for ever.
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
                    // openraft would wait for the answers, and keep the log for them.
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

fn checksum(handle: &SnapshotHandle) -> std::io::Result<(u64, Vec<u8>)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let count = handle.file.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok((offset, hash.finalize().to_vec()));
        }
        hash.update(&buffer[..count]);
        offset += count as u64;
    }
}

/// The messages of a snapshot, read a few ahead. A read error ends the stream early, which the receiver refuses by the
/// length.
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
                    tracing::error!(%error, path = %handle.path.display(), "A snapshot cannot be read to be sent");
                    return;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}
