//! The peer port: the calls that other nodes make to this one.
//!
//! The port is served before this node belongs to a cluster. Until the node runs, only `Probe` and `Bootstrap` are
//! answered.

use std::{
    io::Write as _,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future::join_all};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use super::{
    bootstrap::Bootstrap,
    commitments::Commitment,
    convert,
    error::Refusal,
    freshness::Freshness,
    node::{Attempt, Node},
    peers::{Credentials, MESSAGE_BYTES_MAX},
    proposer::{BATCH_MAX, NOT_APPENDED, UNFIT},
    snapshots::SnapshotStore,
    types::{LogId, Snapshot, Vote},
};
use crate::{
    blocking,
    chat::AccountId,
    failpoints,
    proto::{
        log::v1 as pb,
        raft::v1::{
            self as wire,
            raft_service_server::{RaftService, RaftServiceServer},
        },
    },
    storage::{codec, intake, private},
};

/// Longest wait for the outcomes of forwarded commands.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The peer service of a node.
#[derive(Clone)]
pub struct PeerService {
    inner: Arc<Inner>,
}

struct Inner {
    bootstrap: Bootstrap,
    running: OnceLock<(Node, Arc<SnapshotStore>)>,
    /// Permit to receive a snapshot. One is received at a time, because it takes disk space and a full check.
    receiving: Semaphore,
}

impl PeerService {
    /// A service that answers only `Probe` and `Bootstrap` until [`PeerService::run`] is called.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self { inner: Arc::new(Inner { bootstrap, running: OnceLock::new(), receiving: Semaphore::new(1) }) }
    }

    /// Starts to answer for `node`.
    pub fn run(&self, node: Node, snapshots: Arc<SnapshotStore>) {
        if self.inner.running.set((node, snapshots)).is_err() {
            tracing::error!("The peer service was started twice");
        }
    }

    /// The tonic service.
    pub fn into_server(self) -> RaftServiceServer<Self> {
        RaftServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Returns the node if it runs, the call is meant for it, and the connection may speak for the caller.
    fn node<T>(&self, request: &Request<T>) -> Result<&Node, Status> {
        let Some((node, _)) = self.inner.running.get() else {
            return Err(Status::unavailable("this node is starting, and takes no part in its cluster yet"));
        };
        node.inner.credentials.check(request.metadata())?;
        Credentials::check_sender(request, |id| node.record_of(id))?;
        Ok(node)
    }

    /// Returns the node if it runs. For callers that may not belong to the cluster.
    fn any_cluster<T>(&self, request: &Request<T>) -> Result<&Node, Status> {
        Credentials::check_sender(request, |_| None)?;
        let running = self.inner.running.get().map(|(node, _)| node);
        running.ok_or_else(|| Status::unavailable("this node is starting, and takes no part in its cluster yet"))
    }

    /// Like `any_cluster`, for a call in which the member `node_id` asks about itself.
    fn about_itself<T>(&self, request: &Request<T>, node_id: u64) -> Result<&Node, Status> {
        let node = self.any_cluster(request)?;
        if let Some((name, address)) = node.record_of(node_id) {
            Credentials::check_speaks_for(request, &name, &address)?;
        }
        Ok(node)
    }

    fn snapshots(&self) -> Result<&Arc<SnapshotStore>, Status> {
        self.inner.running.get().map(|(_, snapshots)| snapshots).ok_or_else(|| Status::unavailable("not running"))
    }
}

/// Receives a snapshot into a file and verifies it.
pub(super) async fn receive(
    snapshots: Arc<SnapshotStore>,
    header: &wire::SnapshotHeader,
    chunks: &mut Streaming<wire::SnapshotChunk>,
) -> Result<Snapshot, Status> {
    let path = snapshots.incoming_path();
    let result = async {
        let created = path.clone();
        let file = Arc::new(blocking::io(move || private::create_file(&created)).await.map_err(storage)?);
        let mut hash = Sha256::new();
        let mut length = 0;
        while let Some(chunk) = chunks.message().await? {
            let Some(wire::snapshot_chunk::Part::Data(data)) = chunk.part else {
                return Err(Status::invalid_argument("a snapshot has one header"));
            };
            length += data.len() as u64;
            if length > header.length_bytes {
                return Err(Status::data_loss("the snapshot is longer than announced"));
            }
            hash.update(&data);
            let part = Arc::clone(&file);
            blocking::io(move || part.as_ref().write_all(&data)).await.map_err(storage)?;
        }
        if length != header.length_bytes || hash.finalize().as_slice() != header.sha256 {
            return Err(Status::data_loss("the snapshot does not match its announced length and checksum"));
        }
        let incoming = path.clone();
        let accept = move || {
            file.sync_all()?;
            snapshots.accept(&incoming)
        };
        blocking::io(accept).await.map_err(storage)
    };
    let received = result.await;
    if received.is_err() {
        // The file may never have been created.
        let _ = blocking::io(|| std::fs::remove_file(path)).await;
    }
    received
}

/// Checks forwarded commands before any of them is queued. An unfit command must not reach a log, and the others of its
/// batch must not be appended with an outcome that the follower does not receive.
fn check_forwarded(commands: &[wire::ForwardedCommand]) -> Result<(), Status> {
    if commands.is_empty() || commands.len() > BATCH_MAX {
        return Err(Status::invalid_argument(format!("there must be 1-{BATCH_MAX} commands, not {}", commands.len())));
    }
    let problem = |item: &wire::ForwardedCommand| match &item.command {
        Some(command) => intake::check(command).err().map(|problem| problem.to_string()),
        None => Some("it is missing".to_owned()),
    };
    let refused: Vec<(usize, String)> =
        commands.iter().enumerate().filter_map(|(position, item)| Some((position, problem(item)?))).collect();
    let Some((position, problem)) = refused.first() else { return Ok(()) };
    tracing::warn!(position, problem, refused = refused.len(), "Rejected commands that a member forwarded");
    let mut status = Status::invalid_argument(format!("command {position}: {problem}"));
    let positions: Vec<String> = refused.iter().map(|(position, _)| position.to_string()).collect();
    if let Ok(value) = positions.join(",").parse() {
        status.metadata_mut().insert(UNFIT, value);
    }
    Err(status)
}

fn refusal_pb(index: usize, refusal: Refusal) -> wire::Refusal {
    let (limit, retry) = match refusal {
        Refusal::RateLimited { rate, retry } => (rate.name(), retry),
        Refusal::StorageLow => ("storage", Duration::ZERO),
    };
    wire::Refusal { index: index as u32, limit: limit.into(), retry_ms: retry.as_millis() as u64 }
}

/// The refusal of a command that was not appended, for which a retry may find a leader that accepts it.
fn not_appended_pb(index: usize) -> wire::Refusal {
    wire::Refusal { index: index as u32, limit: NOT_APPENDED.into(), retry_ms: 0 }
}

fn storage(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("storage: {error}"))
}

fn malformed(error: convert::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("Raft stopped: {error}"))
}

/// The moment at which the sending leader last had a quorum, as far as it can be determined.
pub(super) fn led_at(freshness: &Freshness, message: &wire::AppendRequest) -> Option<Instant> {
    let quorum_age = Duration::from_millis(message.quorum_age_ms?);
    freshness.led_at(quorum_age, message.your_clock_ms)
}

/// Size of a message's entries in bytes; `None` if it has no entries.
fn entry_bytes(message: &wire::AppendRequest) -> Option<u64> {
    let bytes = |entry: &pb::Entry| entry.encoded_len() as u64;
    (!message.entries.is_empty()).then(|| message.entries.iter().map(bytes).sum())
}

fn volume_full() -> Status {
    Status::unavailable("the volume of this node is full")
}

/// Checks that a call comes from the node that its vote names. A call speaks only for its sender.
fn sent_by(sender: u64, vote: Option<&pb::Vote>) -> Result<(), Status> {
    match vote {
        Some(vote) if vote.node_id != sender => {
            Err(Status::permission_denied(format!("node {sender} cannot speak for node {}", vote.node_id)))
        }
        _ => Ok(()),
    }
}

impl Node {
    /// Name and peer address of a member.
    fn record_of(&self, node_id: u64) -> Option<(String, String)> {
        let view = self.inner.view.borrow();
        view.member(node_id).map(|member| (member.name.clone(), member.peer_address.clone()))
    }

    /// Rejects a message that names this node as its leader or candidate. This node never sent it, and Raft would not
    /// survive it.
    fn must_be_another(&self, vote: &Vote) -> Result<(), Status> {
        if vote.leader_id.node_id == self.inner.identity.node_id {
            return Err(Status::invalid_argument("the vote names the node that receives it"));
        }
        Ok(())
    }

    /// Publishes the leader that sent an append. It may take a while until openraft has stored its vote and reports it.
    fn hear_of_leader(&self, vote: &Vote) {
        let (term, leader) = (vote.leader_id.term, vote.leader_id.node_id);
        if term > self.inner.view.borrow().term {
            self.inner.heard.send_replace(Some((term, leader)));
        }
    }

    /// Rejects heartbeats of a leader that itself reports a long time without a quorum. Such a leader can send, but
    /// receives no answers or receives them too late, and no other leader is elected while its heartbeats count. Its
    /// entries are still accepted: if it was the majority that was cut off, they restore the leader's quorum.
    fn refuse_deaf_leader(&self, heartbeat: bool, quorum_age: Option<Duration>) -> Result<(), Status> {
        if heartbeat && quorum_age.is_some_and(|age| age > self.majority_missed_max()) {
            return Err(Status::unavailable("by its own account no majority has answered this leader for long"));
        }
        Ok(())
    }

    /// Rejects entries of `entry_bytes` bytes, if there are any, unless they are certain to fit. Otherwise the node
    /// would fail in the middle of a write and could not serve reads.
    fn must_take(&self, entry_bytes: Option<u64>) -> Result<(), Status> {
        let takes = entry_bytes.is_none_or(|bytes| self.inner.space.takes(bytes));
        takes.then_some(()).ok_or_else(volume_full)
    }

    /// Records that the leader reported `committed` as committed, and that it led at the moment `led`.
    fn hear(&self, committed: Option<LogId>, led: Option<Instant>) {
        if let Some(led) = led {
            self.inner.freshness.heard(committed, *self.inner.applied.borrow(), led);
        }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<wire::AppendResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RaftService for PeerService {
    type StreamAppendStream = Responses;

    async fn stream_append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let node = self.node(&request)?.clone();
        if node.inner.space.is_critical() {
            return Err(volume_full());
        }
        let sender = Credentials::sender(&request);
        let hearing = node.clone();
        // The first unreadable message ends the stream, because continuing after it would leave a gap.
        let readable = move |message: Result<wire::AppendRequest, Status>| {
            let message = message.ok()?;
            sent_by(sender, message.vote.as_ref()).ok()?;
            let led = led_at(&hearing.inner.freshness, &message);
            let (commitment, end) = (message.commitment, message.durable_end);
            let bytes = entry_bytes(&message);
            let request = convert::append_request(message).ok()?;
            hearing.must_be_another(&request.vote).ok()?;
            hearing.remember_leader(&request.vote, end);
            if !hearing.keeps(commitment) || hearing.must_take(bytes).is_err() {
                return None;
            }
            hearing.hear_of_leader(&request.vote);
            hearing.hear(request.leader_commit, led);
            Some(request)
        };
        let input = tokio_stream::StreamExt::map_while(request.into_inner(), readable);
        let output = node.inner.raft.stream_append(Box::pin(input)).map(|result| match result {
            Ok(result) => Ok(convert::stream_result_pb(&result)),
            Err(error) => Err(fatal(error)),
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::AppendResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        let led = led_at(&node.inner.freshness, request.get_ref());
        let quorum_age = request.get_ref().quorum_age_ms.map(Duration::from_millis);
        let (commitment, end) = (request.get_ref().commitment, request.get_ref().durable_end);
        let bytes = entry_bytes(request.get_ref());
        let message = convert::append_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(&message.vote)?;
        node.remember_leader(&message.vote, end);
        node.must_keep(commitment)?;
        node.must_take(bytes)?;
        node.refuse_deaf_leader(message.entries.is_empty(), quorum_age)?;
        let committed = message.leader_commit;
        node.hear_of_leader(&message.vote);
        tracing::debug!(target: "heartbeat", leader = message.vote.leader_id.node_id, "Heartbeat");
        let response = node.inner.raft.append_entries(message).await.map_err(fatal)?;
        if response.is_success() {
            node.hear(committed, led);
        }
        let answer = convert::append_response_pb(&response);
        let clock_ms = Some(node.inner.freshness.clock_ms());
        Ok(Response::new(wire::AppendResponse { space_low: node.inner.space.is_low(), clock_ms, ..answer }))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        node.must_keep(request.get_ref().commitment)?;
        let message = convert::vote_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(&message.vote)?;
        node.remember_leader(&message.vote, 0);
        let response = node.inner.raft.vote(message).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_pb(&response)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        node.must_keep(request.get_ref().commitment)?;
        let message = convert::vote_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(&message.vote)?;
        let response = node.inner.raft.pre_vote(message).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_pb(&response)))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        use openraft::raft::TransferLeaderError as E;
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().from.as_ref())?;
        let message = convert::transfer_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(message.from_leader())?;
        if *message.to_node_id() == node.inner.identity.node_id && node.inner.transfers.is_stopping() {
            return Err(Status::failed_precondition("this node is stopping"));
        }
        let mut response = wire::TransferLeaderResponse::default();
        match node.inner.raft.handle_transfer_leader(message).await.map_err(fatal)? {
            Ok(()) => {}
            Err(E::VoteChanged { actual, .. }) => response.vote_changed = Some(convert::vote_pb(&actual)),
            Err(E::LogNotFlushed { actual, .. }) => {
                response.log_not_flushed = true;
                response.actual_log_id = actual.as_ref().map(convert::log_id_pb);
            }
        }
        Ok(Response::new(response))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::InstallSnapshotResponse>, Status> {
        let node = self.node(&request)?;
        let Ok(_one) = self.inner.receiving.try_acquire() else {
            return Err(Status::unavailable("another snapshot is being received"));
        };
        let sender = Credentials::sender(&request);
        let mut chunks = request.into_inner();
        let Some(wire::SnapshotChunk { part: Some(wire::snapshot_chunk::Part::Header(header)) }) =
            chunks.message().await?
        else {
            return Err(Status::invalid_argument("a snapshot starts with its header"));
        };
        sent_by(sender, header.vote.as_ref())?;
        let vote = convert::leaders_vote(header.vote).map_err(malformed)?;
        node.must_be_another(&vote)?;
        if !node.inner.space.has_room(Some(header.length_bytes.saturating_mul(2))) {
            return Err(Status::unavailable("there is no space for a snapshot"));
        }
        let snapshot = receive(Arc::clone(self.snapshots()?), &header, &mut chunks).await?;
        if snapshot.meta.last_log_id != header.last_log_id.map(convert::log_id) {
            return Err(Status::data_loss("the snapshot does not hold what its header says"));
        }
        if snapshot.meta.last_membership.membership().voter_ids().next().is_none() {
            return Err(Status::invalid_argument("the snapshot has no voters"));
        }
        let response = node.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        Ok(Response::new(wire::InstallSnapshotResponse { vote: Some(convert::vote_pb(&response.vote)) }))
    }

    async fn propose(&self, request: Request<wire::ProposeRequest>) -> Result<Response<wire::ProposeResponse>, Status> {
        let node = self.node(&request)?;
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let commands = request.into_inner().commands;
        if !failpoints::is_active(failpoints::UNFIT_FORWARDED) {
            check_forwarded(&commands)?;
        }
        let attempts = commands.into_iter().map(|item| {
            let command = item.command.unwrap_or_default();
            node.attempt((AccountId(item.account_id), command), codec::trace(&item.traceparent), true, deadline)
        });
        let mut outcomes = Vec::new();
        let (mut refused, mut refusals) = (0, Vec::new());
        let results = join_all(attempts).await;
        let total = results.len();
        let mut unknown = None;
        for result in results {
            match result {
                Ok(outcome) => outcomes.push(codec::encode_outcome(&outcome)),
                Err(Attempt::Refused(refusal)) => {
                    refusals.push(refusal_pb(outcomes.len(), refusal));
                    outcomes.push(pb::Outcome::default());
                }
                Err(Attempt::NotLeader | Attempt::Overloaded | Attempt::Stopped) => {
                    refused += 1;
                    refusals.push(not_appended_pb(outcomes.len()));
                    outcomes.push(pb::Outcome::default());
                }
                Err(Attempt::Unfit(reason) | Attempt::Unknown(reason)) => unknown = Some(reason),
            }
        }
        if refused == total {
            return Err(Status::failed_precondition("this node is not the leader, or takes no more commands"));
        }
        if let Some(reason) = unknown {
            return Err(Status::aborted(reason));
        }
        Ok(Response::new(wire::ProposeResponse { outcomes, refusals }))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let node = self.node(&request)?;
        match node.read_index_here().await {
            Ok(id) => Ok(Response::new(wire::ReadIndexResponse { read_log_id: Some(id) })),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn cluster_health(
        &self,
        request: Request<wire::ClusterHealthRequest>,
    ) -> Result<Response<wire::ClusterHealthResponse>, Status> {
        let node = self.node(&request)?;
        if !node.inner.view.borrow().is_leader() {
            return Err(Status::failed_precondition("this node is not the leader"));
        }
        let cluster_health = node.cluster_health_here();
        let peers = cluster_health.peers.into_iter().map(|peer| wire::PeerHealth {
            node_id: peer.node_id,
            silent_ms: peer.silent.map(|silent| silent.as_millis() as u64),
            lag_entries: peer.lag_entries,
        });
        Ok(Response::new(wire::ClusterHealthResponse { peers: peers.collect(), term: cluster_health.term }))
    }

    async fn count_attempt(
        &self,
        request: Request<wire::CountAttemptRequest>,
    ) -> Result<Response<wire::CountAttemptResponse>, Status> {
        let node = self.node(&request)?;
        let answer = node.answer_attempt(request.get_ref());
        answer.map(Response::new).ok_or_else(|| Status::failed_precondition("this node is not the leader"))
    }

    async fn transfer_leadership(
        &self,
        request: Request<wire::TransferLeadershipRequest>,
    ) -> Result<Response<wire::TransferLeadershipResponse>, Status> {
        use super::error::TransferError as E;
        let node = self.node(&request)?;
        let to = Some(request.into_inner().to).filter(|id| *id != 0);
        match node.transfer_on_request(to).await {
            Ok(to) => Ok(Response::new(wire::TransferLeadershipResponse { to })),
            Err(error @ E::NotAVoter) => Err(Status::not_found(error.to_string())),
            Err(error @ E::Silent) => Err(Status::aborted(error.to_string())),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn add_member(
        &self,
        request: Request<wire::AddMemberRequest>,
    ) -> Result<Response<wire::AddMemberResponse>, Status> {
        let node = self.node(&request)?;
        let node_id = node.add_here(&request.into_inner().peer_address).await?;
        Ok(Response::new(wire::AddMemberResponse { node_id }))
    }

    async fn remove_member(
        &self,
        request: Request<wire::RemoveMemberRequest>,
    ) -> Result<Response<wire::RemoveMemberResponse>, Status> {
        let node = self.node(&request)?;
        let ids = node.remove_here(&request.into_inner().name).await?;
        Ok(Response::new(wire::RemoveMemberResponse { node_ids: ids.into_iter().collect() }))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let node = self.any_cluster(&request)?;
        let joiner = request.get_ref();
        Credentials::check_speaks_for(&request, &joiner.name, &joiner.peer_address)?;
        Ok(Response::new(node.join(request.into_inner()).await?))
    }

    async fn check_membership(
        &self,
        request: Request<wire::CheckMembershipRequest>,
    ) -> Result<Response<wire::CheckMembershipResponse>, Status> {
        let node = self.about_itself(&request, request.get_ref().node_id)?;
        let request = request.into_inner();
        if request.cluster_id != node.inner.identity.cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        let is_member = node.is_member_here(request.node_id).await?;
        Ok(Response::new(wire::CheckMembershipResponse { is_member }))
    }

    async fn r#move(&self, request: Request<wire::MoveRequest>) -> Result<Response<wire::MoveResponse>, Status> {
        let node = self.about_itself(&request, request.get_ref().node_id)?;
        let request = request.into_inner();
        if request.cluster_id != node.inner.identity.cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        Ok(Response::new(node.moved(request).await?))
    }

    async fn get_commitments(
        &self,
        request: Request<wire::GetCommitmentsRequest>,
    ) -> Result<Response<wire::GetCommitmentsResponse>, Status> {
        let node = self.about_itself(&request, request.get_ref().node_id)?;
        let request = request.into_inner();
        if request.cluster_id != node.inner.identity.cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        // A node that no longer belongs to the cluster learns that from `CheckMembership` instead.
        let is_member = node.inner.view.borrow().member(request.node_id).is_some();
        let commitment = node.inner.commitments.of(request.node_id).filter(|_| is_member).map(Commitment::to_pb);
        Ok(Response::new(wire::GetCommitmentsResponse { commitment }))
    }

    async fn probe(&self, request: Request<wire::ProbeRequest>) -> Result<Response<wire::ProbeResponse>, Status> {
        Credentials::check_sender(&request, |_| None)?;
        Ok(Response::new(self.inner.bootstrap.describe()))
    }

    async fn bootstrap(
        &self,
        request: Request<wire::BootstrapRequest>,
    ) -> Result<Response<wire::BootstrapResponse>, Status> {
        Credentials::check_sender(&request, |_| None)?;
        self.inner.bootstrap.accept(request.into_inner()).await?;
        Ok(Response::new(wire::BootstrapResponse {}))
    }
}
