//! The openraft network, over the peer port.
//!
//! Does not cover: calls that are not part of Raft (`leader_client`, `node`), and accepting these calls (`server`).

mod silence;

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

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
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use self::silence::{STREAM_SILENCE_MAX, watch_for_silence};
use crate::{
    commitments::{Commitment, Commitments},
    freshness::{Clocks, QuorumAge},
    observer::Observer,
    space::Space,
    store::snapshots::{OwnImage, Snapshot, SnapshotData},
    tasks::snapshot::Sending,
    traced::{Replication, Traced},
    transfer::Declined,
    transport::{
        convert::{self, Malformed},
        peers::{Credentials, Lane, Peers},
    },
    types::{NodeRecord, TypeConfig, Vote},
};
use proto::{
    Channel,
    raft::{
        v1 as wire,
        v1::{raft_service_client::RaftServiceClient, snapshot_chunk::Part},
    },
};
use storage::{LogDb, Retained};
use trace::blocking;

/// Shortest timeout of a single call. By default, heartbeats have a timeout that is too tight for a loaded machine.
const CALL_MIN: Duration = Duration::from_millis(250);
/// Size of the write-ahead log that a snapshot may cause in any case. Beyond that, it may cause as much as a copy of
/// the state would take.
const RETAINED_BYTES_MIN: u64 = 64 << 20;
/// Longest wait for the receiver to take a message of a snapshot, and the interval between looks at what it costs.
const CHUNK_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
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
pub(crate) struct AppendContext {
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
    /// Snapshots that are being sent.
    pub sending: Sending,
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
    pub(crate) fn new(peers: Arc<Peers>, credentials: Credentials, context: AppendContext) -> Self {
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

    /// Makes a single call with a deadline, on the control lane.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        let answer = self.open(action, Lane::Control, option, call).await?;
        self.peers.reached.succeeded(self.target, &self.name, Lane::Control);
        Ok(answer)
    }

    /// Like [`Self::call`], on any lane, and without the conclusion that an answer means success: it may be a stream.
    async fn open<T>(
        &self,
        action: RPCTypes,
        lane: Lane,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        let limit = option.hard_ttl().max(CALL_MIN);
        match timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                self.peers.reached.failed(self.target, &self.name, lane, status.message());
                self.peers.note_error(&status, self.target, &self.address);
                Err(rpc_error(status))
            }
            Err(_) => {
                self.peers.reached.failed(self.target, &self.name, lane, "it does not answer");
                let (id, target) = (self.credentials.node_id(), self.target);
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: limit }))
            }
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
    type SnapshotData = SnapshotData;

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
            let (action, lane) = (RPCTypes::AppendEntries, Lane::Replication);
            let response = self.open(action, lane, &option, client.stream_append(message)).await?;
            let (commitments, target) = (self.context.commitments.clone(), self.target);
            let responses = watch_for_silence(response, outstanding);
            let (peers, name) = (Arc::clone(&self.peers), self.name.clone());
            Ok(Box::pin(responses.inspect(move |response| {
                match response {
                    Ok(_) => peers.reached.succeeded(target, &name, lane),
                    Err(error) => peers.reached.failed(target, &name, lane, &error.to_string()),
                }
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
        let failed = |error: io::Error| StreamingError::Network(NetworkError::new(&error));
        let SnapshotData::Own(state) = snapshot.snapshot else {
            return Err(failed(io::Error::other("a snapshot that was received is installed, and not sent")));
        };
        let _sending = self.context.sending.begin();
        let image = blocking::io(move || OwnImage::open(state).map_err(io::Error::other)).await.map_err(failed)?;
        // Newer than what openraft asks for.
        let meta = image.meta().map_err(failed)?;
        let header = wire::SnapshotHeader {
            vote: Some(convert::vote_pb(&vote)),
            last_log_id: meta.last_log_id.as_ref().map(convert::log_id_pb),
            membership: Some(convert::stored_membership_pb(&meta.last_membership)),
            length_bytes: image.bytes(),
        };
        let limits = Limits {
            space: self.context.space.clone(),
            to: self.name.clone(),
            retained: image.retained(),
            state_bytes: image.bytes(),
        };
        let messages = messages(header, image, limits);
        let message = self.credentials.sign(self.target, messages);
        let call = timeout(option.hard_ttl(), client.install_snapshot(message));
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = call => match result {
                Ok(Ok(response)) => {
                    self.peers.reached.succeeded(self.target, &self.name, Lane::Bulk);
                    let vote = response.into_inner().vote.ok_or_else(|| {
                        StreamingError::Network(NetworkError::new(&Malformed("vote is missing")))
                    })?;
                    Ok(SnapshotResponse::new(convert::vote(vote)))
                }
                Ok(Err(status)) => {
                    self.peers.reached.failed(self.target, &self.name, Lane::Bulk, status.message());
                    self.peers.note_error(&status, self.target, &self.address);
                    Err(unreachable(&status))
                }
                // openraft would try again at once after a timeout.
                Err(_) => {
                    let status = Status::deadline_exceeded("the snapshot was not installed in time");
                    self.peers.reached.failed(self.target, &self.name, Lane::Bulk, status.message());
                    Err(unreachable(&status))
                }
            },
        }
    }
}

/// The messages of a snapshot, a few of them read ahead. An error ends the stream before its end is sent, and the
/// receiver then rejects the snapshot.
fn messages(header: wire::SnapshotHeader, mut image: OwnImage, limits: Limits) -> ReceiverStream<wire::SnapshotChunk> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        let mut part = Part::Header(header);
        while let Some(permit) = limits.permit(&sender).await {
            let is_end = matches!(part, Part::End(_));
            permit.send(wire::SnapshotChunk { part: Some(part) });
            if is_end {
                break;
            }
            let read = blocking::run(move || (next_part(&mut image), image)).await;
            // An error means that the runtime is shutting down.
            let Ok((next, back)) = read else { return };
            image = back;
            part = match next {
                Ok(part) => part,
                Err(error) => {
                    tracing::error!(%error, "The state could not be read for sending");
                    break;
                }
            };
        }
        if let Ok(Err(error)) = blocking::run(move || image.close()).await {
            tracing::warn!(%error, "The write-ahead log of chat.db could not be moved after a snapshot was sent");
        }
    });
    ReceiverStream::new(receiver)
}

fn next_part(image: &mut OwnImage) -> Result<Part, storage::StorageError> {
    let pages = image.read()?;
    Ok(match pages.is_empty() {
        true => Part::End(wire::SnapshotEnd { crc32: image.checksum() }),
        false => Part::Data(pages.into()),
    })
}

/// When sending a snapshot is given up. Meanwhile the write-ahead log of the state cannot start over.
struct Limits {
    space: Space,
    /// Name of the receiver.
    to: String,
    retained: Retained,
    state_bytes: u64,
}

impl Limits {
    /// Waits until the connection takes another message. `None`: the call has ended, or is given up.
    async fn permit<'a>(
        &self,
        sender: &'a mpsc::Sender<wire::SnapshotChunk>,
    ) -> Option<mpsc::Permit<'a, wire::SnapshotChunk>> {
        let began = Instant::now();
        loop {
            let retained = self.retained.bytes();
            let most = if self.space.is_low() { 0 } else { self.state_bytes };
            let reason = if retained > most.max(RETAINED_BYTES_MIN) {
                "it keeps too much of chat.db-wal"
            } else if began.elapsed() > CHUNK_MAX {
                "the receiver takes nothing"
            } else if let Ok(permit) = timeout(LOOK, sender.reserve()).await {
                return permit.ok();
            } else {
                continue;
            };
            tracing::warn!(to = self.to, retained_bytes = retained, "Sending a snapshot was given up: {reason}");
            return None;
        }
    }
}
