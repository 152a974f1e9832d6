//! Accepts gRPC connections: bounded in number, and only kept if the other side speaks HTTP/2.
//!
//! The HTTP/2 keep-alive watches a connection from its preface on; what comes before is watched here: the preface has
//! to be there within [`PREFACE_PATIENCE`], however slowly it drips in.
//!
//! Left out: what an open connection may ask for (limits of the servers), and HTTP/1 (`web`).

use std::{io, time::Duration};

use futures_util::{Stream, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::net::{
    Listener,
    bounded::{Bounded, Connection, Demand},
};

/// Time for the first words of a connection.
const PREFACE_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the preface that every HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;

/// Connections of gRPC clients, and as many of browsers, if there are file descriptors for them.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections of peers: a handful for each node, and those that are about to end.
pub(super) const PEER_CONNECTIONS_MAX: usize = 256;
/// Connections of probes and of Prometheus.
pub(super) const PROBE_CONNECTIONS_MAX: usize = 256;
/// File descriptors for everything but clients and browsers: databases, peers, metrics.
const OTHER_FILES: usize = 1024;

/// How many connections gRPC clients may have, and browsers: the same. Raises the process's limit on open files as far as it may:
/// the usual soft limit of 1024 is for programs that use `select`.
pub(super) fn connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let mut files = limit.current;
    if limit.current != limit.maximum
        && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok()
    {
        files = limit.maximum;
    }
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let each = files.saturating_sub(OTHER_FILES).max(files / 2) / 2;
    if each < CONNECTIONS_MAX {
        tracing::warn!(
            "Only {each} connections of clients and as many of browsers, because the process may open only {files} files"
        );
    }
    each.min(CONNECTIONS_MAX)
}

/// The connections that `listener` accepts, at most `connections` at a time.
pub(super) fn incoming<L: Listener>(
    listener: L,
    connections: usize,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send + 'static {
    let preface = Demand::FirstBytes { bytes: PREFACE_BYTES, within: PREFACE_PATIENCE };
    stream::unfold(Bounded::new(listener, connections, preface), |mut listener| async {
        Some((Ok(listener.accept().await), listener))
    })
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: Some(self.from()) }
    }
}
