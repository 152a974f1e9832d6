//! Options of a client: timeouts, backoff, TLS and acknowledgements.

use std::{path::Path, time::Duration};

use chat::TraceContext;
use net::{
    Dialer,
    tls::{Connector, TlsError},
};

/// Options of a [`super::Client`]. The defaults suit interactive use and services.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time limit for a call, retries included. Default 10 s.
    pub deadline: Duration,
    /// Time limit for one attempt of a call before another node is asked. Doubled after the second unanswered attempt
    /// and after each further one. Default 700 ms: short, so that a hung node does not use up the deadline. Calls that
    /// hash a password get more.
    pub attempt_timeout: Duration,
    /// Time that an attempt waits for a connection before another node is tried. The connection attempt continues in
    /// the background for up to [`Options::deadline`], so that a later attempt can reach a distant node. Default 300
    /// ms.
    pub connect_timeout: Duration,
    /// Upper bound of the first pause before a retry. Default 20 ms.
    pub backoff_min: Duration,
    /// Upper bound of any pause before a retry. Default 250 ms.
    pub backoff_max: Duration,
    /// Interval of the heartbeats that nodes send on an idle event stream. The stream reconnects after two missed
    /// heartbeats. Default 15 s, as the nodes send them.
    pub heartbeat: Duration,
    /// Time that an event stream tries to reconnect before it ends with an error. Default 10 min.
    pub reconnect_timeout: Duration,
    /// Whether event streams acknowledge the delivery of messages. Default true.
    pub acknowledge: bool,
    /// The trace that all calls belong to, with their parent span (W3C Trace Context). Default: none. Each call then
    /// has its own trace, if the nodes trace at all.
    pub trace: Option<TraceContext>,
    /// Opens the connections. Default: plain TCP. See [`Options::with_tls`].
    pub dialer: Dialer,
}

impl Options {
    /// Returns the options with connections over TLS. The nodes have to present a certificate that is issued by one of
    /// the authorities in a PEM file and is valid for the host in their address. For the system's authorities, use its
    /// bundle; on Debian `/etc/ssl/certs/ca-certificates.crt`.
    ///
    /// # Errors
    /// The file cannot be read, or contains no certificate.
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
            reconnect_timeout: Duration::from_secs(600),
            acknowledge: true,
            trace: None,
            dialer: Dialer::default(),
        }
    }
}
