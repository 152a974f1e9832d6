//! Connections to the other nodes, and the credentials that each call carries.
//!
//! A lane is a connection of its own, so that a heartbeat never waits behind a snapshot. Connections are made on the
//! first call and again after each failure; the peer's name is resolved each time, as addresses change under names.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Endpoint,
};

use crate::{
    net::Dialer,
    proto::{Channel, raft::v1::raft_service_client::RaftServiceClient},
};

/// Largest message between peers: one replication message (4 MiB of entries, or one entry that is larger).
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

const CLUSTER: &str = "quorum-cluster";
const TARGET: &str = "quorum-target";
const FROM: &str = "quorum-from";
const SECRET: &str = "quorum-secret";

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
    secret: Option<MetadataValue<Ascii>>,
    own_id: u64,
}

impl Credentials {
    /// Credentials of node `node_id` in `cluster_id`. Both are empty while there is no cluster.
    ///
    /// # Errors
    /// The cluster id or the secret has characters that cannot be sent as metadata.
    pub fn new(
        cluster_id: &str,
        node_id: u64,
        secret: Option<&str>,
    ) -> Result<Self, tonic::metadata::errors::InvalidMetadataValue> {
        Ok(Self {
            cluster_id: cluster_id.parse()?,
            node_id: MetadataValue::from(node_id),
            secret: secret.map(str::parse).transpose()?,
            own_id: node_id,
        })
    }

    /// The node that these belong to.
    pub fn node_id(&self) -> u64 {
        self.own_id
    }

    /// Adds the credentials to a call meant for `target`.
    pub fn sign<T>(&self, target: u64, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster_id.clone());
        metadata.insert(FROM, self.node_id.clone());
        metadata.insert(TARGET, MetadataValue::from(target));
        self.sign_secret(metadata);
        request
    }

    /// Adds only the secret: for calls before there is a cluster.
    pub fn sign_secret(&self, metadata: &mut MetadataMap) {
        if let Some(secret) = &self.secret {
            metadata.insert(SECRET, secret.clone());
        }
    }

    /// Checks the secret of a call.
    pub fn check_secret(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(expected) = &self.secret else { return Ok(()) };
        let given = metadata.get(SECRET).map(MetadataValue::as_bytes).unwrap_or_default();
        if constant_time_eq(given, expected.as_bytes()) {
            Ok(())
        } else {
            Err(Status::permission_denied("the peer secret is missing or wrong"))
        }
    }

    /// Checks that a call is of this cluster and meant for this node.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.check_secret(metadata)?;
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (cluster, target) = (text(CLUSTER), text(TARGET));
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
}

/// Does not tell by its time how much of the secret was right.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// The connections of this node.
#[derive(Default)]
pub struct Peers {
    dialer: Dialer,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
}

impl Peers {
    /// No connections yet; `dialer` will make them.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, channels: Mutex::default() }
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
                let channel = Channel::from(self.dialer.channel(endpoint(address)?));
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
        .connect_timeout(Duration::from_millis(500))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE * 2)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(cluster: &str, id: u64, secret: Option<&str>) -> Credentials {
        Credentials::new(cluster, id, secret).expect("plain text")
    }

    #[test]
    fn a_call_must_name_cluster_target_and_secret() {
        let server = credentials("c1", 2, Some("the secret of the peers"));
        let check = |client: &Credentials, target| {
            server.check(client.sign(target, ()).metadata()).map_err(|status| status.code())
        };
        let denied = Err(tonic::Code::PermissionDenied);
        assert_eq!(check(&credentials("c1", 1, Some("the secret of the peers")), 2), Ok(()));
        assert_eq!(check(&credentials("c2", 1, Some("the secret of the peers")), 2), denied);
        assert_eq!(check(&credentials("c1", 1, Some("the secret of the peers")), 3), denied);
        assert_eq!(check(&credentials("c1", 1, Some("another secret of theirs")), 2), denied);
        assert_eq!(check(&credentials("c1", 1, None), 2), denied);
    }
}
