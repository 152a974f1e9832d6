//! Connections to the other nodes, and the identity that each call carries.
//!
//! The connection proves that the caller is a node (TLS, see [`net::tls`]); the call does not, and no secret is
//! ever sent. A call names its cluster, its target and its sender, as a guard against mistakes. With certificates of an
//! operator's authority, the sender is also checked against the certificate ([`Credentials::check_sender`]).
//!
//! Members are called at their recorded addresses, or at those where they were found since.
//!
//! Each lane has its own connection, so that a heartbeat never waits behind a snapshot. A connection is made on the
//! first call and again after each failure. The peer's name is resolved each time, since the address behind a name may
//! change. It may also change to that of another node, as when containers come back in another order: a node that
//! answers in place of the member that was meant rejects the call, and the next call connects again.
//!
//! Does not cover: the calls, and which node leads (`leader_client`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Endpoint,
};

use super::reached::Reached;
use net::{
    Dialer,
    dial::{ConnectTimeouts, MeasuredChannel, RoundTrip},
    tls::{Peer, host_of},
};
use proto::{Channel, raft::v1::raft_service_client::RaftServiceClient};

/// Largest message between peers: one replication message (4 MiB of entries, or one entry that is larger).
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

const CLUSTER: &str = "quorum-cluster";
const TARGET: &str = "quorum-target";
const FROM: &str = "quorum-from";
const NAME: &str = "quorum-name";
const ADDRESS: &str = "quorum-address";

/// Longest wait of a call for a connection, and longest attempt to connect. An attempt is short, since a node that
/// moves is found again by its name.
const CONNECT: ConnectTimeouts =
    ConnectTimeouts { per_call: Duration::from_millis(500), total: Duration::from_secs(5) };

/// Keepalive interval. A connection without an answer to a keepalive for twice this time is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Shortest life of a connection to a node that rejects the calls.
const MISTAKEN_MIN: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Log entries.
    Replication,
    /// Heartbeats, votes, read index: small and urgent calls.
    Control,
    /// Snapshots.
    Bulk,
    /// Commands of a follower's callers.
    Forward,
}

impl Lane {
    /// As the log has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::Control => "control",
            Self::Bulk => "bulk",
            Self::Forward => "forward",
        }
    }
}

/// Identity of a caller and of its cluster.
#[derive(Clone)]
pub struct Credentials {
    cluster_id: MetadataValue<Ascii>,
    node_id: MetadataValue<Ascii>,
    name: MetadataValue<Ascii>,
    address: MetadataValue<Ascii>,
    own_id: u64,
}

impl Credentials {
    /// Credentials of node `node_id` in `cluster_id`, with its name and the `host:port` of its peer port. While there
    /// is no cluster, the cluster id is empty and the node id is 0.
    ///
    /// # Errors
    /// One of the texts has characters that cannot be sent as metadata.
    pub fn new(
        cluster_id: &str,
        node_id: u64,
        name: &str,
        address: &str,
    ) -> Result<Self, tonic::metadata::errors::InvalidMetadataValue> {
        Ok(Self {
            cluster_id: cluster_id.parse()?,
            node_id: MetadataValue::from(node_id),
            name: name.parse()?,
            address: address.parse()?,
            own_id: node_id,
        })
    }

    /// Id of the node that these credentials belong to.
    pub fn node_id(&self) -> u64 {
        self.own_id
    }

    /// Adds the credentials to a call meant for `target`.
    pub fn sign<T>(&self, target: u64, message: T) -> Request<T> {
        let mut request = self.present(message);
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster_id.clone());
        metadata.insert(FROM, self.node_id.clone());
        metadata.insert(TARGET, MetadataValue::from(target));
        request
    }

    /// Adds only name and address, for calls outside of a cluster.
    pub fn present<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(NAME, self.name.clone());
        metadata.insert(ADDRESS, self.address.clone());
        request
    }

    /// Checks that a call belongs to this cluster and is meant for this node.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let (cluster, target) = (text(metadata, CLUSTER), text(metadata, TARGET));
        if cluster.as_bytes() != self.cluster_id.as_bytes() {
            return Err(Status::permission_denied(format!(
                "wrong cluster id {cluster:?}: this node belongs to another cluster"
            )));
        }
        if target != self.own_id.to_string() {
            return Err(Status::permission_denied(format!("wrong target id {target:?}: this is node {}", self.own_id)));
        }
        Ok(())
    }

    /// Checks that the connection of a call may speak for its sender. `record` returns the name and peer address of a
    /// member by its id. A sender that this node does not have as a member must match the name and address that it
    /// claims, since this node may be behind.
    pub fn check_sender<T>(
        request: &Request<T>,
        record: impl FnOnce(u64) -> Option<(String, String)>,
    ) -> Result<(), Status> {
        if !request.extensions().get::<Peer>().is_some_and(Peer::is_restricted) {
            return Ok(());
        }
        let metadata = request.metadata();
        let member = text(metadata, FROM).parse().ok().and_then(record);
        let (name, address) = match &member {
            Some((name, address)) => (name.as_str(), address.as_str()),
            None => (text(metadata, NAME), text(metadata, ADDRESS)),
        };
        Self::check_speaks_for(request, name, address)
    }

    /// Checks that the connection of a call may speak for the node of a name and a peer address.
    pub fn check_speaks_for<T>(request: &Request<T>, name: &str, address: &str) -> Result<(), Status> {
        let Some(peer) = request.extensions().get::<Peer>() else { return Ok(()) };
        if peer.may_speak_for([host_of(address), name]) {
            return Ok(());
        }
        let problem = format!("the caller's certificate holds neither for {:?} nor for {name:?}", host_of(address));
        Err(Status::permission_denied(problem))
    }

    /// Id of the member that a call names as its sender; 0: none.
    pub fn sender<T>(request: &Request<T>) -> u64 {
        text(request.metadata(), FROM).parse().unwrap_or_default()
    }
}

/// Reason why a call failed, with the cause of a lost or refused connection.
pub(crate) fn reason(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match cause.map(ToString::to_string) {
        Some(cause) if cause != status.message() => format!("{}: {cause}", status.message()),
        _ => status.message().to_owned(),
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> &'a str {
    metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// How long a member is called at the address that it announced, unless it repeats the announcement. It may move back
/// without announcing that.
pub(crate) const HEARD_MAX: Duration = Duration::from_secs(10);

/// The connections of this node.
#[derive(Default)]
pub struct Peers {
    dialer: Dialer,
    channels: Mutex<HashMap<(String, Lane), Opened>>,
    /// Addresses of the members, by id.
    places: Mutex<HashMap<u64, Place>>,
    pub(super) reached: Reached,
}

/// A channel, the round-trip time on it, and when it was opened.
struct Opened {
    channel: Channel,
    round_trip: Arc<RoundTrip>,
    at: Instant,
}

/// Addresses of a member.
struct Place {
    recorded: String,
    /// Announced address, and when the member was found there.
    heard: Option<(String, Instant)>,
}

impl Place {
    fn addresses(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.recorded.as_str()).chain(self.heard.as_ref().map(|(address, _)| address.as_str()))
    }
}

impl Peers {
    /// An empty set of connections, which `dialer` will make.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, channels: Mutex::default(), places: Mutex::default(), reached: Reached::default() }
    }

    /// A client for a member. `known` is the address that the caller has, which is used only if this node has no record
    /// of the member.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub fn member(&self, node_id: u64, known: &str, lane: Lane) -> Result<RaftServiceClient<Channel>, Status> {
        self.client(&self.address_of(node_id, known), lane)
    }

    /// Address at which a member is called.
    pub(crate) fn address_of(&self, node_id: u64, known: &str) -> String {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = places.get(&node_id) else { return known.to_owned() };
        match &place.heard {
            Some((address, at)) if at.elapsed() < HEARD_MAX => address.clone(),
            _ => place.recorded.clone(),
        }
    }

    /// Sets the recorded addresses of the members in place of all earlier ones. Connections to other addresses are
    /// dropped.
    pub(crate) fn record<'a>(&self, members: impl Iterator<Item = (u64, &'a str)>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *places);
        for (node_id, address) in members {
            let same = before.remove(&node_id).filter(|place| place.recorded == address);
            places.insert(node_id, same.unwrap_or_else(|| Place { recorded: address.to_owned(), heard: None }));
        }
        // Addresses come and go with their nodes. A call in flight keeps its channel, and a later call makes a new one.
        let called: HashSet<&str> = places.values().flat_map(Place::addresses).collect();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(address, _), _| called.contains(address.as_str()));
    }

    /// Looks at the error of a call to a member. If the node at its address rejected the call before it processed it,
    /// it may be another one. The member's connections are then dropped, so that the next call resolves the name again.
    /// A connection is kept for [`MISTAKEN_MIN`] in any case, because a node that rejects calls for another reason will
    /// do so again.
    pub(crate) fn note_error(&self, status: &Status, node_id: u64, known: &str) {
        if status.code() != Code::PermissionDenied {
            return;
        }
        let address = self.address_of(node_id, known);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(at, _), opened| *at != address || opened.at.elapsed() < MISTAKEN_MIN);
    }

    /// Records that a member was found at an address that is not recorded yet. It is called there for [`HEARD_MAX`].
    pub(crate) fn found(&self, node_id: u64, address: &str) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(&node_id) {
            place.heard = Some((address.to_owned(), Instant::now()));
        }
    }

    /// A client for the peer at `address`. Connects on the first call.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub fn client(&self, address: &str, lane: Lane) -> Result<RaftServiceClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), lane);
        let channel = match channels.get(&key) {
            Some(opened) => opened.channel.clone(),
            None => {
                let MeasuredChannel { channel, round_trip } = self.dialer.channel(endpoint(address)?, CONNECT);
                let channel = Channel::from(channel);
                channels.insert(key, Opened { channel: channel.clone(), round_trip, at: Instant::now() });
                channel
            }
        };
        Ok(raft_client(channel))
    }

    /// A client for a member that makes a connection of its own, and the shortest round-trip time that the connections
    /// to the member have measured.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub(crate) fn connect_anew(
        &self,
        node_id: u64,
        known: &str,
    ) -> Result<(RaftServiceClient<Channel>, Duration), Status> {
        let address = self.address_of(node_id, known);
        let client = raft_client(Channel::from(self.dialer.channel(endpoint(&address)?, CONNECT).channel));
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let round_trips =
            channels.iter().filter(|((at, _), _)| *at == address).map(|(_, opened)| opened.round_trip.latest());
        Ok((client, round_trips.filter(|round_trip| !round_trip.is_zero()).min().unwrap_or_default()))
    }
}

fn raft_client(channel: Channel) -> RaftServiceClient<Channel> {
    RaftServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(format!("peer address {address:?}: {error}")))?;
    Ok(endpoint
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE * 2)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(cluster: &str, id: u64) -> Credentials {
        Credentials::new(cluster, id, "n1", "n1:50052").expect("plain text")
    }

    #[test]
    fn a_call_must_name_cluster_and_target() {
        let server = credentials("c1", 2);
        let check = |client: &Credentials, target| {
            server.check(client.sign(target, ()).metadata()).map_err(|status| status.code())
        };
        let denied = Err(tonic::Code::PermissionDenied);
        assert_eq!(check(&credentials("c1", 1), 2), Ok(()));
        assert_eq!(check(&credentials("c2", 1), 2), denied);
        assert_eq!(check(&credentials("c1", 1), 3), denied);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_to_another_node_is_made_anew() {
        let peers = Peers::default();
        peers.record([(1, "n1:1"), (2, "n2:1")].into_iter());
        let open = |peers: &Peers| peers.channels.lock().unwrap().len();
        for lane in [Lane::Control, Lane::Replication] {
            peers.member(1, "n1:1", lane).unwrap();
            peers.member(2, "n2:1", lane).unwrap();
        }
        let rejected = Status::permission_denied("wrong target id");
        peers.note_error(&rejected, 2, "n2:1");
        assert_eq!(open(&peers), 4, "it is not made anew for every call");
        tokio::time::advance(MISTAKEN_MIN).await;
        peers.note_error(&Status::unavailable("stopping"), 2, "n2:1");
        assert_eq!(open(&peers), 4, "it is the member that is not available");
        peers.note_error(&rejected, 2, "n2:1");
        assert_eq!(open(&peers), 2, "those of the other member stay");
        peers.member(2, "n2:1", Lane::Control).unwrap();
        assert_eq!(open(&peers), 3);
    }

    #[tokio::test]
    async fn addresses_that_no_member_has_are_forgotten() {
        let peers = Peers::default();
        let known = |peers: &Peers| {
            let mut addresses: Vec<String> = peers.channels.lock().unwrap().keys().map(|(at, _)| at.clone()).collect();
            addresses.sort();
            addresses
        };
        for address in ["n1:1", "n1:2", "n2:1", "stranger:1"] {
            peers.client(address, Lane::Control).unwrap();
        }
        peers.record([(1, "n1:1"), (2, "n2:1")].into_iter());
        assert_eq!(known(&peers), ["n1:1", "n2:1"]);
        peers.found(2, "n2:2");
        peers.member(2, "n2:1", Lane::Control).unwrap();
        peers.record([(1, "n1:2"), (2, "n2:1")].into_iter());
        assert_eq!(known(&peers), ["n2:1", "n2:2"]);
    }
}
