//! A scripted service for the client's tests: real gRPC on an ephemeral port.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::watch,
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, transport::server::Router};
use tonic_types::{ErrorDetails, StatusExt as _};

use net::{Dialer, far::Far};
use proto::chat::{
    v1 as pb,
    v1::{
        chat_service_server::ChatServiceServer, cluster_service_server::ClusterServiceServer, subscribe_response::Event,
    },
};

type Answer<T> = Result<Response<T>, Status>;
type EventsOf = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

/// The reaction of a node to a single send.
#[derive(Debug, Clone)]
pub enum OnSend {
    /// Returns this status and stores nothing.
    Fail(Status),
    /// Stores the message, and returns this status instead of the answer.
    StoreAndFail(Status),
    /// Never answers.
    Hang,
}

/// The state that the nodes of a fake cluster share, and the requests that they got.
#[derive(Debug, Default)]
pub struct Shared {
    /// The address of the leader, and its term.
    pub leader: Option<(String, u64)>,
    /// The addresses of all nodes.
    pub addresses: Vec<String>,
    stored: HashMap<String, pb::SendMessageResponse>,
    /// The node and the client message id of each send.
    pub sends: Vec<(String, String)>,
    /// The start revision of each subscription.
    pub subscriptions: Vec<Option<u64>>,
    /// The events of each subscription, in order. Without an entry, a subscription stays open and silent.
    pub streams: VecDeque<Vec<Result<pb::SubscribeResponse, Status>>>,
    /// The device token of each login, or the session token of each call that reports it.
    pub tokens: Vec<Option<String>>,
}

/// One fake node.
#[derive(Clone)]
pub struct Fake {
    /// The address of the node (`host:port`).
    pub address: String,
    /// The state of the cluster.
    pub shared: Arc<Mutex<Shared>>,
    /// The reactions to the next sends. Without one, a send is stored and answered.
    pub on_send: Arc<Mutex<VecDeque<OnSend>>>,
    /// The acknowledged deliveries: conversation and seq.
    pub acked: Arc<watch::Sender<Vec<(u64, u64)>>>,
    /// Absent in the clones that serve requests.
    host: Option<Arc<Host>>,
}

/// The runtime of one node. Each node has its own, so that it can be killed with all its tasks.
#[derive(Debug)]
struct Host(Mutex<Option<Runtime>>);

impl Host {
    fn stop(&self) {
        if let Some(runtime) = self.0.lock().expect("lock").take() {
            // A separate thread, because an async test must not block on the shutdown of a runtime, and the connections
            // have to be closed before the test continues.
            let stopped = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join();
            assert!(stopped.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fake {
    /// Starts `count` nodes; the first one leads.
    pub async fn cluster(count: usize) -> Vec<Fake> {
        let shared = Arc::<Mutex<Shared>>::default();
        let mut nodes = Vec::new();
        for _ in 0..count {
            let host = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let listener = host.spawn(TcpListener::bind("127.0.0.1:0")).await.expect("ran").expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            shared.lock().expect("lock").addresses.push(address.clone());
            let mut node = Self::new(address, shared.clone());
            host.spawn(node.services().serve_with_incoming(TcpListenerStream::new(listener)));
            node.host = Some(Arc::new(Host(Mutex::new(Some(host)))));
            nodes.push(node);
        }
        shared.lock().expect("lock").leader = Some((nodes[0].address.clone(), 1));
        nodes
    }

    /// Starts `count` nodes at a distance of `round_trip`, with a dialer to reach them; the first one leads.
    pub fn far_cluster(count: usize, round_trip: Duration) -> (Vec<Fake>, Dialer) {
        let shared = Arc::<Mutex<Shared>>::default();
        let (network, hosts) = Far::hosts(count, round_trip);
        let mut nodes = Vec::new();
        for (number, taken) in hosts.into_iter().enumerate() {
            let node = Self::new(format!("far:{number}"), shared.clone());
            let incoming = UnboundedReceiverStream::new(taken).map(Ok::<_, std::io::Error>);
            tokio::spawn(node.services().serve_with_incoming(incoming));
            nodes.push(node);
        }
        let mut all = shared.lock().expect("lock");
        all.addresses = nodes.iter().map(|node| node.address.clone()).collect();
        all.leader = Some((nodes[0].address.clone(), 1));
        drop(all);
        (nodes, Dialer::new(network))
    }

    fn new(address: String, shared: Arc<Mutex<Shared>>) -> Self {
        let acked = Arc::new(watch::Sender::new(Vec::new()));
        Self { address, shared, on_send: Arc::default(), acked, host: None }
    }

    fn services(&self) -> Router {
        tonic::transport::Server::builder()
            .add_service(ChatServiceServer::new(self.clone()))
            .add_service(ClusterServiceServer::new(self.clone()))
    }

    /// Kills the node and its connections. Its port refuses connections afterwards.
    pub fn kill(&self) {
        self.host.as_ref().expect("started").stop();
    }

    /// Reads or changes the state of the cluster.
    pub fn with<T>(&self, f: impl FnOnce(&mut Shared) -> T) -> T {
        f(&mut self.shared.lock().expect("lock"))
    }

    /// Adds a reaction to a send after those that are planned.
    pub fn next_send(&self, what: OnSend) {
        self.on_send.lock().expect("lock").push_back(what);
    }

    fn info(&self) -> Vec<pb::NodeInfo> {
        let addresses = self.with(|shared| shared.addresses.clone());
        addresses.into_iter().map(|a| pb::NodeInfo { client_address: a, ..pb::NodeInfo::default() }).collect()
    }
}

/// Returns an error in the form that the service uses.
pub fn failure(code: Code, reason: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, super::ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(Duration::from_millis(5)));
    Status::with_error_details(code, reason.to_lowercase(), details)
}

/// Returns the event of a message by another person, whose id is its revision.
pub fn message(revision: u64) -> pb::SubscribeResponse {
    let message = pb::Message { message_id: revision, conversation_id: 1, seq: revision, ..pb::Message::default() };
    let event = Event::Message(pb::MessageEvent { message: Some(message), members: Vec::new() });
    pb::SubscribeResponse { revision, event: Some(event), ..Default::default() }
}

/// Returns the event of a receipt.
pub fn receipt(revision: u64) -> pb::SubscribeResponse {
    pb::SubscribeResponse { revision, event: Some(Event::Receipt(pb::ReceiptEvent::default())), ..Default::default() }
}

/// Returns a heartbeat.
pub fn heartbeat(revision: u64) -> pb::SubscribeResponse {
    pb::SubscribeResponse { revision, event: Some(Event::Heartbeat(pb::Heartbeat::default())), ..Default::default() }
}

#[tonic::async_trait]
impl pb::chat_service_server::ChatService for Fake {
    type SubscribeStream = EventsOf;

    async fn create_account(&self, _: Request<pb::CreateAccountRequest>) -> Answer<pb::CreateAccountResponse> {
        Ok(Response::new(pb::CreateAccountResponse::default()))
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Answer<pb::LoginResponse> {
        let token = format!("token-of-{}", request.into_inner().username);
        Ok(Response::new(pb::LoginResponse { token, ..pb::LoginResponse::default() }))
    }

    async fn logout(&self, _: Request<pb::LogoutRequest>) -> Answer<pb::LogoutResponse> {
        Ok(Response::new(pb::LogoutResponse { closed_sessions: 1, revision: 1 }))
    }

    async fn get_registration(&self, _: Request<pb::GetRegistrationRequest>) -> Answer<pb::GetRegistrationResponse> {
        Ok(Response::new(pb::GetRegistrationResponse { open: true, invitation_needed: false }))
    }

    async fn change_password(&self, _: Request<pb::ChangePasswordRequest>) -> Answer<pb::ChangePasswordResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_sessions(&self, _: Request<pb::ListSessionsRequest>) -> Answer<pb::ListSessionsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn revoke_session(&self, _: Request<pb::RevokeSessionRequest>) -> Answer<pb::RevokeSessionResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_privacy(&self, _: Request<pb::GetPrivacyRequest>) -> Answer<pb::GetPrivacyResponse> {
        Err(Status::unimplemented(""))
    }

    async fn set_privacy(&self, _: Request<pb::SetPrivacyRequest>) -> Answer<pb::SetPrivacyResponse> {
        Err(Status::unimplemented(""))
    }

    async fn delete_account(&self, _: Request<pb::DeleteAccountRequest>) -> Answer<pb::DeleteAccountResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_accounts(&self, _: Request<pb::ListAccountsRequest>) -> Answer<pb::ListAccountsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn send_message(&self, request: Request<pb::SendMessageRequest>) -> Answer<pb::SendMessageResponse> {
        let token = request.metadata().get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let id = request.into_inner().client_message_id;
        let what = self.on_send.lock().expect("lock").pop_front();
        let answer = self.with(|shared| {
            shared.sends.push((self.address.clone(), id.clone()));
            shared.tokens.push(token);
            if matches!(what, None | Some(OnSend::StoreAndFail(_))) {
                let next = shared.stored.len() as u64 + 1;
                let repeated = shared.stored.contains_key(&id);
                let new = pb::SendMessageResponse { message_id: next, seq: next, revision: next, ..Default::default() };
                let stored = shared.stored.entry(id).or_insert(new);
                return Some(pb::SendMessageResponse { repeated, ..*stored });
            }
            None
        });
        match (what, answer) {
            (None, Some(answer)) => Ok(Response::new(answer)),
            (Some(OnSend::Fail(status) | OnSend::StoreAndFail(status)), _) => Err(status),
            _ => std::future::pending().await,
        }
    }

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Answer<EventsOf> {
        let after = request.into_inner().after_revision;
        let script = self.with(|shared| {
            shared.subscriptions.push(after);
            shared.streams.pop_front()
        });
        let events: EventsOf = match script {
            Some(script) => stream::iter(script).boxed(),
            None => stream::pending().boxed(),
        };
        Ok(Response::new(events))
    }

    async fn read_conversation(&self, _: Request<pb::ReadConversationRequest>) -> Answer<pb::ReadConversationResponse> {
        Err(Status::unimplemented(""))
    }

    async fn delete_messages(&self, _: Request<pb::DeleteMessagesRequest>) -> Answer<pb::DeleteMessagesResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_chat_partners(
        &self,
        _: Request<pb::ListChatPartnersRequest>,
    ) -> Answer<pb::ListChatPartnersResponse> {
        Err(Status::unimplemented(""))
    }

    async fn mark_read(&self, _: Request<pb::MarkReadRequest>) -> Answer<pb::MarkReadResponse> {
        Err(Status::unimplemented(""))
    }

    async fn acknowledge_delivery(
        &self,
        request: Request<pb::AcknowledgeDeliveryRequest>,
    ) -> Answer<pb::AcknowledgeDeliveryResponse> {
        let receipts = request.into_inner().receipts;
        self.acked.send_modify(|acked| acked.extend(receipts.iter().map(|r| (r.conversation_id, r.up_to_seq))));
        Ok(Response::new(pb::AcknowledgeDeliveryResponse { revision: 1 }))
    }
}

#[tonic::async_trait]
impl pb::cluster_service_server::ClusterService for Fake {
    async fn get_leader(&self, _: Request<pb::GetLeaderRequest>) -> Answer<pb::GetLeaderResponse> {
        let Some((address, term)) = self.with(|shared| shared.leader.clone()) else {
            return Err(failure(Code::Unavailable, "NO_LEADER"));
        };
        let leader = self.info().into_iter().find(|node| node.client_address == address);
        Ok(Response::new(pb::GetLeaderResponse { leader, term }))
    }

    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        Ok(Response::new(pb::ListNodesResponse { nodes: self.info(), ..pb::ListNodesResponse::default() }))
    }
}
