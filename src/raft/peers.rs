//! Connections to the other nodes, and the identity that each call carries.
//!
//! Whether the caller is a node at all is proven by the connection (TLS, see [`crate::net::tls`]), not by the call: no secret is ever
//! sent. A call names its cluster, its target and its sender, against mistakes; with certificates of an operator's authority the
//! sender is also checked against the certificate ([`Credentials::check_sender`]).
//!
//! Members are called where their records say, or where they were found since.
//!
//! A lane is a connection of its own, so that a heartbeat never waits behind a snapshot. Connections are made on the
//! first call and again after each failure; the peer's name is resolved each time, as addresses change under names.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Endpoint,
};

use crate::{
    net::{
        Dialer,
        dial::Patience,
        tls::{Peer, host_of},
    },
    proto::{Channel, raft::v1::raft_service_client::RaftServiceClient},
};

/// Largest message between peers: one replication message (4 MiB of entries, or one entry that is larger).
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

const CLUSTER: &str = "quorum-cluster";
const TARGET: &str = "quorum-target";
const FROM: &str = "quorum-from";
const NAME: &str = "quorum-name";
const ADDRESS: &str = "quorum-address";

/// How long a call waits for a connection, and how long one is tried to be made: a node that moves is found by its name again meanwhile.
const CONNECT: Patience = Patience { call: Duration::from_millis(500), all: Duration::from_secs(5) };

/// Shortest time without an answer after which a connection is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Log entries.
    Replication,
    /// Heartbeats, votes, read index: small and urgent.
    Control,
    /// Snapshots.
    Bulk,
    /// Commands of a follower's callers.
    Forward,
}

/// Who calls, and for which cluster.
#[derive(Clone)]
pub struct Credentials {
    cluster_id: MetadataValue<Ascii>,
    node_id: MetadataValue<Ascii>,
    name: MetadataValue<Ascii>,
    address: MetadataValue<Ascii>,
    own_id: u64,
}

impl Credentials {
    /// Credentials of node `node_id` in `cluster_id`, which presents itself with its name and `host:port` of its peer port.
    /// Cluster and id are empty and 0 while there is no cluster.
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

    /// The node that these belong to.
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

    /// Adds name and address only: for calls outside of a cluster.
    pub fn present<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(NAME, self.name.clone());
        metadata.insert(ADDRESS, self.address.clone());
        request
    }

    /// Checks that a call is of this cluster and meant for this node.
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

    /// Checks that the connection of a call may speak for its sender. `record` gives the name and peer address of a member by
    /// its id. A sender that is not a member, as far as this node knows, has to hold what it says of itself: this node may be
    /// behind.
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

    /// The id of the member that a call says it comes from; 0: none.
    pub fn sender<T>(request: &Request<T>) -> u64 {
        text(request.metadata(), FROM).parse().unwrap_or_default()
    }
}

/// Why a call failed, with the cause of a lost or refused connection.
pub(super) fn reason(status: &Status) -> String {
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

/// How long a member is looked for where it said that it is, unless it says so again: it may move back without a word.
pub(super) const HEARD_MAX: Duration = Duration::from_secs(10);

/// The connections of this node.
#[derive(Default)]
pub struct Peers {
    dialer: Dialer,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
    /// Where members are, by id.
    places: Mutex<HashMap<u64, Place>>,
}

/// Where a member is.
struct Place {
    recorded: String,
    /// Where it said that it is, and when.
    heard: Option<(String, Instant)>,
}

impl Peers {
    /// No connections yet; `dialer` will make them.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, channels: Mutex::default(), places: Mutex::default() }
    }

    /// A client for a member, of which the caller knows the address `known`: it may have been changed since.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub fn member(&self, node_id: u64, known: &str, lane: Lane) -> Result<RaftServiceClient<Channel>, Status> {
        self.client(&self.address_of(node_id, known), lane)
    }

    /// Where a member is called.
    pub(super) fn address_of(&self, node_id: u64, known: &str) -> String {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = places.get(&node_id) else { return known.to_owned() };
        match &place.heard {
            Some((address, at)) if at.elapsed() < HEARD_MAX => address.clone(),
            _ => place.recorded.clone(),
        }
    }

    /// The members have these addresses now, whatever they had before.
    pub(super) fn record<'a>(&self, members: impl Iterator<Item = (u64, &'a str)>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *places);
        for (node_id, address) in members {
            let same = before.remove(&node_id).filter(|place| place.recorded == address);
            places.insert(node_id, same.unwrap_or_else(|| Place { recorded: address.to_owned(), heard: None }));
        }
    }

    /// A member was found at an address that is not recorded yet: it is called there for [`HEARD_MAX`].
    pub(super) fn found(&self, node_id: u64, address: &str) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(&node_id) {
            place.heard = Some((address.to_owned(), Instant::now()));
        }
    }

    /// A client for the peer at `address`. Connects with the first call.
    ///
    /// # Errors
    /// The address is not `host:port`.
    pub fn client(&self, address: &str, lane: Lane) -> Result<RaftServiceClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), lane);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = Channel::from(self.dialer.line(endpoint(address)?, CONNECT).channel);
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(RaftServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
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
}
