//! How many connections each port keeps, and how long a caller may take to begin.
//!
//! Does not cover: which connection makes room for another ([`Gate`]), and what an open connection may ask for ([`api`]).
//!
//! [`api`]: crate::api

use std::{sync::Arc, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    net::{
        Listener,
        bounded::{Bounded, Demand},
        gate::{Drop, Gate, Pools},
    },
    telemetry::metrics::Metrics,
};

/// Time limit for the HTTP/2 preface, TLS handshake included.
const PREFACE_MAX: Duration = Duration::from_secs(5);
/// Bytes of the preface that every HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;

/// Connections of gRPC clients, and as many of browsers, if there are file descriptors for them. One in ten is for callers
/// that have not made an authenticated call.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections of members: a handful for each, and those that are about to end.
const PEERS: Pools = Pools { proven: 256, unproven: 64, equals_displace: false };
/// Connections of probes and of Prometheus. One that has sent a whole request is proven.
const PROBES: Pools = Pools { proven: 128, unproven: 128, equals_displace: true };
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
            "Only {each} connections of clients and as many of browsers, because the process may open only {files} files: raise \
             the hard limit (ulimit -Hn, LimitNOFILE, --ulimit nofile)"
        );
    }
    each.min(CONNECTIONS_MAX)
}

/// The port that a gate belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum GatedPort {
    /// With this many connections.
    Clients(usize),
    Peers,
    /// With this many connections.
    Web(usize),
    Metrics,
}

impl GatedPort {
    /// Which connections the port keeps.
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

/// The connections of `listener`, which have to begin with HTTP/2.
pub(super) fn http2<L: Listener>(listener: L, gate: Gate) -> Bounded<L> {
    Bounded::new(listener, gate, Demand::FirstBytes { bytes: PREFACE_BYTES, within: PREFACE_MAX })
}
