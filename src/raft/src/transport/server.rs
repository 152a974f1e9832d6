//! The peer port: the calls that other nodes make to this one.
//!
//! The port is served before this node belongs to a cluster. Until the node runs, only `Probe` and `Bootstrap` are
//! answered.
//!
//! Does not cover: checks of a message (`checks`, `node::messages`), and the commands of followers (`forwarded`).

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future, stream};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    bootstrap::Bootstrap,
    freshness::Freshness,
    node::Node,
    store::snapshots,
    transport::{
        checks::{entry_bytes, sent_by, volume_full},
        convert, forwarded,
        peers::{Credentials, MESSAGE_BYTES_MAX},
    },
    types::Vote,
};
use proto::raft::{
    v1 as wire,
    v1::{
        raft_service_server::{RaftService, RaftServiceServer},
        snapshot_chunk::Part,
    },
};
use storage::{Incoming, Received, StorageError};
use trace::blocking;

/// The peer service of a node.
#[derive(Clone)]
pub struct PeerService {
    inner: Arc<Inner>,
}

struct Inner {
    bootstrap: Bootstrap,
    running: OnceLock<Node>,
    /// Permit to receive a snapshot. One is received at a time, because it takes disk space.
    receiving: Semaphore,
}

impl PeerService {
    /// A service that answers only `Probe` and `Bootstrap` until [`PeerService::run`] is called.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self { inner: Arc::new(Inner { bootstrap, running: OnceLock::new(), receiving: Semaphore::new(1) }) }
    }

    /// Starts to answer for `node`.
    pub fn run(&self, node: Node) {
        if self.inner.running.set(node).is_err() {
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
        let Some(node) = self.inner.running.get() else {
            return Err(Status::unavailable("this node is starting, and takes no part in its cluster yet"));
        };
        node.credentials().check(request.metadata())?;
        Credentials::check_sender(request, |id| node.record_of(id))?;
        Ok(node)
    }

    /// Returns the node if it runs. For callers that may not belong to the cluster.
    fn any_cluster<T>(&self, request: &Request<T>) -> Result<&Node, Status> {
        Credentials::check_sender(request, |_| None)?;
        let running = self.inner.running.get();
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
}

/// Receives the rest of a snapshot, and installs it.
async fn install(
    node: &Node,
    vote: Vote,
    header: &wire::SnapshotHeader,
    chunks: &mut Streaming<wire::SnapshotChunk>,
) -> Result<wire::InstallSnapshotResponse, Status> {
    if !node.volumes().has_room(header.length_bytes) {
        return Err(Status::unavailable("there is no space for a snapshot"));
    }
    let received = receive(node.data_dir().to_owned(), header, chunks).await?;
    let snapshot = snapshots::received(received).map_err(|error| Status::data_loss(error.to_string()))?;
    if snapshot.meta.last_log_id != header.last_log_id.map(convert::log_id) {
        return Err(Status::data_loss("the snapshot does not hold what its header says"));
    }
    if snapshot.meta.last_membership.membership().voter_ids().next().is_none() {
        return Err(Status::invalid_argument("the snapshot has no voters"));
    }
    let response = node.raft().install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
    Ok(wire::InstallSnapshotResponse { vote: Some(convert::vote_pb(&response.vote)) })
}

/// Receives a snapshot into a file of the data directory `dir`, and verifies it.
pub(crate) async fn receive(
    dir: PathBuf,
    header: &wire::SnapshotHeader,
    chunks: &mut Streaming<wire::SnapshotChunk>,
) -> Result<Received, Status> {
    let mut incoming = on_disk(move || Incoming::create(&dir)).await?;
    let mut length = 0;
    let refused = loop {
        match chunks.message().await.map(|chunk| chunk.and_then(|chunk| chunk.part)) {
            Ok(Some(Part::Data(pages))) => {
                length += pages.len() as u64;
                if length > header.length_bytes {
                    break Status::data_loss("the snapshot is longer than announced");
                }
                incoming = on_disk(move || incoming.write(&pages).map(|()| incoming)).await?;
            }
            Ok(Some(Part::End(end))) if length == header.length_bytes => {
                return on_disk(move || incoming.finish(end.crc32)).await;
            }
            Ok(Some(Part::End(_))) => break Status::data_loss("the snapshot is shorter than announced"),
            Ok(Some(Part::Header(_))) => break Status::invalid_argument("a snapshot has one header"),
            Ok(None) => break Status::data_loss("the snapshot ended early"),
            Err(status) => break status,
        }
    };
    // Removing a large file takes its time.
    on_disk(move || {
        drop(incoming);
        Ok(())
    })
    .await?;
    Err(refused)
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    match blocking::run(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if error.is_corruption() => Err(Status::data_loss(error.to_string())),
        Ok(Err(error)) => Err(Status::internal(format!("storage: {error}"))),
        Err(error) => Err(Status::internal(format!("storage: {error}"))),
    }
}

fn malformed(error: convert::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("Raft stopped: {error}"))
}

/// The moment at which the sending leader last had a quorum, as far as it can be determined.
pub(crate) fn led_at(freshness: &Freshness, message: &wire::AppendRequest) -> Option<Instant> {
    let quorum_age = Duration::from_millis(message.quorum_age_ms?);
    freshness.led_at(quorum_age, message.your_clock_ms)
}

type Responses = Pin<Box<dyn Stream<Item = Result<wire::AppendResponse, Status>> + Send>>;
type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchLeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RaftService for PeerService {
    type StreamAppendStream = Responses;
    type WatchLeaderStream = WatchStream;

    async fn stream_append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let node = self.node(&request)?.clone();
        if node.volumes().is_critical() {
            return Err(volume_full());
        }
        let sender = Credentials::sender(&request);
        let hearing = node.clone();
        // The first unreadable message ends the stream, because continuing after it would leave a gap.
        let readable = move |message: Result<wire::AppendRequest, Status>| {
            let message = message.ok()?;
            sent_by(sender, message.vote.as_ref()).ok()?;
            let led = led_at(hearing.freshness(), &message);
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
        let output = node.raft().stream_append(Box::pin(input)).map(|result| match result {
            Ok(result) => Ok(convert::stream_result_pb(&result)),
            Err(error) => Err(fatal(error)),
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::AppendResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        let led = led_at(node.freshness(), request.get_ref());
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
        let response = node.raft().append_entries(message).await.map_err(fatal)?;
        if response.is_success() {
            node.hear(committed, led);
        }
        let answer = convert::append_response_pb(&response);
        let clock_ms = Some(node.freshness().clock_ms());
        Ok(Response::new(wire::AppendResponse { space_low: node.volumes().is_low(), clock_ms, ..answer }))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        node.must_keep(request.get_ref().commitment)?;
        let message = convert::vote_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(&message.vote)?;
        node.remember_leader(&message.vote, 0);
        let response = node.raft().vote(message).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_pb(&response)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let node = self.node(&request)?;
        sent_by(Credentials::sender(&request), request.get_ref().vote.as_ref())?;
        node.must_keep(request.get_ref().commitment)?;
        let message = convert::vote_request(request.into_inner()).map_err(malformed)?;
        node.must_be_another(&message.vote)?;
        let response = node.raft().pre_vote(message).await.map_err(fatal)?;
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
        if *message.to_node_id() == node.identity().node_id && node.is_stopping() {
            return Err(Status::failed_precondition("this node is stopping"));
        }
        let mut response = wire::TransferLeaderResponse::default();
        match node.raft().handle_transfer_leader(message).await.map_err(fatal)? {
            Ok(()) => {}
            Err(E::VoteChanged { actual, .. }) => response.vote_changed = Some(convert::vote_pb(&actual)),
            Err(E::LogNotFlushed { actual, .. }) => {
                response.log_not_flushed = true;
                response.actual_log_id = actual.as_ref().map(convert::log_id_pb);
            }
        }
        Ok(Response::new(response))
    }

    async fn watch_leader(
        &self,
        request: Request<wire::WatchLeaderRequest>,
    ) -> Result<Response<Self::WatchLeaderStream>, Status> {
        let node = self.node(&request)?.clone();
        let leader = convert::leaders_vote(request.into_inner().leader).map_err(malformed)?;
        if !node.leads_by(&leader) {
            return Err(Status::failed_precondition("this node does not lead in that term"));
        }
        let ended = async move {
            node.no_longer_leads(&leader).await;
            None
        };
        Ok(Response::new(Box::pin(stream::once(ended).filter_map(future::ready))))
    }

    async fn leader_lost(
        &self,
        request: Request<wire::LeaderLostRequest>,
    ) -> Result<Response<wire::LeaderLostResponse>, Status> {
        let node = self.node(&request)?;
        let leader = convert::leaders_vote(request.into_inner().leader).map_err(malformed)?;
        Ok(Response::new(node.has_lost(&leader).await))
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
        let Some(wire::SnapshotChunk { part: Some(Part::Header(header)) }) = chunks.message().await? else {
            return Err(Status::invalid_argument("a snapshot starts with its header"));
        };
        sent_by(sender, header.vote.as_ref())?;
        let vote = convert::leaders_vote(header.vote).map_err(malformed)?;
        node.must_be_another(&vote)?;
        // The sender is known to be a member.
        let installed = install(node, vote, &header, &mut chunks).await.inspect_err(|status| {
            tracing::warn!(reason = status.message(), "A snapshot of the leader was not installed");
        })?;
        Ok(Response::new(installed))
    }

    async fn propose(&self, request: Request<wire::ProposeRequest>) -> Result<Response<wire::ProposeResponse>, Status> {
        let node = self.node(&request)?;
        let response = forwarded::propose(node, request.into_inner().commands).await?;
        Ok(Response::new(response))
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
        if !node.view().borrow().is_leader() {
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
        use crate::error::TransferError as E;
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
        if request.cluster_id != node.identity().cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        let is_member = node.is_member_here(request.node_id).await?;
        Ok(Response::new(wire::CheckMembershipResponse { is_member }))
    }

    async fn r#move(&self, request: Request<wire::MoveRequest>) -> Result<Response<wire::MoveResponse>, Status> {
        let node = self.about_itself(&request, request.get_ref().node_id)?;
        let request = request.into_inner();
        if request.cluster_id != node.identity().cluster_id {
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
        if request.cluster_id != node.identity().cluster_id {
            return Err(Status::permission_denied("this node belongs to another cluster"));
        }
        // A node that no longer belongs to the cluster learns that from `CheckMembership` instead.
        let commitment = node.commitment_of(request.node_id);
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
