//! The number of connections of each port, given the limit on open files, and the time limit for the start of a
//! connection.
//!
//! Does not cover: which connection makes room for another ([`Gate`]), and the requests on an open connection
//! ([`api`]).
//!
//! [`api`]: crate::api

use std::{sync::Arc, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ServerError;
use crate::telemetry::metrics::Metrics;
use net::{
    Listener,
    bounded::{Bounded, IdlePolicy},
    gate::{Drop, Gate, Pools},
};

/// Time limit for the HTTP/2 preface, TLS handshake included.
const PREFACE_MAX: Duration = Duration::from_secs(5);
/// Bytes of the preface that every HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;

/// Connections of gRPC clients, and as many of browsers, if there are enough file descriptors. One in ten is reserved
/// for callers that have made no authenticated call.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections of members: a few for each, and those that are about to end.
const PEERS: Pools = Pools { proven: 256, unproven: 64, equals_displace: false };
/// Connections to the admin socket.
pub(super) const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Connections of probes and of Prometheus. A connection is proven once it has sent a complete request.
const PROBES: Pools = Pools { proven: 128, unproven: 128, equals_displace: true };
/// File descriptors for everything but clients and browsers: the pools above, connections to the admin socket, and
/// the databases. An idle node in a cluster of five has about fifty open files.
const OTHER_FILES: usize = 768;

/// The lowest limit on open files that a node runs with.
const FILES_MIN: usize = OTHER_FILES + 32;
const _: () = assert!(
    PEERS.proven + PEERS.unproven + PROBES.proven + PROBES.unproven + ADMIN_CONNECTIONS_MAX + 100 < OTHER_FILES
);

/// The limit on open files, raised as far as possible. The usual soft limit of 1024 is meant for programs that use
/// `select`.
///
/// # Errors
/// The limit is too low. With fewer files, opening a database would fail at random, as if the disk had failed.
pub(super) fn files() -> Result<usize, ServerError> {
    let limit = getrlimit(Resource::Nofile);
    let mut files = limit.current;
    if limit.current != limit.maximum
        && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok()
    {
        files = limit.maximum;
    }
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    if files < FILES_MIN { Err(ServerError::TooFewFiles { limit: files, needed: FILES_MIN }) } else { Ok(files) }
}

/// The number of connections for gRPC clients, and also for browsers, if the process may open `files` files.
pub(super) fn connections(files: usize) -> usize {
    let each = files.saturating_sub(OTHER_FILES) / 2;
    if each < CONNECTIONS_MAX {
        tracing::warn!(
            "Only {each} connections of clients and as many of browsers, because the process may open only {files} \
             files: raise the hard limit (ulimit -Hn, LimitNOFILE, --ulimit nofile)"
        );
    }
    each.min(CONNECTIONS_MAX)
}

/// The port that a gate belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum GatedPort {
    /// The client port, with this number of connections.
    Clients(usize),
    Peers,
    /// The web port, with this number of connections.
    Web(usize),
    Metrics,
}

impl GatedPort {
    /// The gate of the port.
    pub(super) fn gate(self, metrics: &Metrics) -> Gate {
        let shared =
            |count: usize| Pools { proven: count - count / 10, unproven: (count / 10).max(1), equals_displace: false };
        let (name, pools) = match self {
            Self::Clients(count) => ("clients", shared(count)),
            Self::Peers => ("peers", PEERS),
            Self::Web(count) => ("web", shared(count)),
            Self::Metrics => ("metrics", PROBES),
        };
        for reason in [Drop::Displaced, Drop::Unread] {
            metrics.may_drop_connections(name, reason.name());
        }
        let metrics = metrics.clone();
        Gate::new(pools, Arc::new(move |reason| metrics.connection_dropped(name, reason.name())))
    }
}

/// Wraps `listener` so that its connections have to begin with the HTTP/2 preface.
pub(super) fn http2<L: Listener>(listener: L, gate: Gate) -> Bounded<L> {
    Bounded::new(listener, gate, IdlePolicy::FirstBytes { bytes: PREFACE_BYTES, within: PREFACE_MAX })
}
