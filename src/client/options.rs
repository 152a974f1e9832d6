//! What a caller may set about a client: times, and whether deliveries are acknowledged.

use std::{path::Path, time::Duration};

use crate::{
    net::{
        Dialer,
        tls::{Connector, TlsError},
    },
    trace::TraceContext,
};

/// How a [`super::Client`] behaves. The defaults suit people and services alike.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a call may take in all, retries included. Default 10 s.
    pub deadline: Duration,
    /// How long one attempt of a call may take before another node is asked; doubled after the second attempt without
    /// an answer and each further one. Default 700 ms: short, so that a hung node does not eat the deadline. Calls that hash a password get
    /// more.
    pub attempt_timeout: Duration,
    /// How long an attempt waits for a connection to its node before it goes to another one. Connecting goes on meanwhile, for up to
    /// [`Options::deadline`], so that a node that is far away is reached by a later attempt. Default 300 ms.
    pub connect_timeout: Duration,
    /// Upper bound of the first pause before a retry. Default 20 ms.
    pub backoff_min: Duration,
    /// Upper bound of any pause before a retry. Default 250 ms.
    pub backoff_max: Duration,
    /// How often a silent event stream hears a heartbeat from its node; after two missed ones it reconnects.
    /// Default 15 s, as the nodes send them.
    pub heartbeat: Duration,
    /// How long an event stream tries to reconnect before it ends with an error. Default 10 min.
    pub reconnect_patience: Duration,
    /// Whether event streams tell the senders that their messages were delivered. Default true.
    pub acknowledge: bool,
    /// The trace that all calls belong to, and their parent in it (W3C Trace Context). Default: none; then each call has a trace of
    /// its own, if the nodes trace at all.
    pub trace: Option<TraceContext>,
    /// Makes the connections. Default: over TCP. See [`Options::with_tls`].
    pub dialer: Dialer,
}

impl Options {
    /// The same over TLS: the nodes have to show a certificate that one of the authorities in a PEM file vouches for, and
    /// that holds for the host in their address. The system's authorities are in a file as well; on Debian
    /// `/etc/ssl/certs/ca-certificates.crt`.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn with_tls(self, authorities: &Path) -> Result<Self, TlsError> {
        Ok(Self { dialer: Connector::trusting(authorities)?.into(), ..self })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_millis(700),
            connect_timeout: Duration::from_millis(300),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(250),
            heartbeat: Duration::from_secs(15),
            reconnect_patience: Duration::from_secs(600),
            acknowledge: true,
            trace: None,
            dialer: Dialer::default(),
        }
    }
}
