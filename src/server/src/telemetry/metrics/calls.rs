//! Calls of clients, their results, and the ports that they arrive on.

use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{CALL_SECONDS, Metrics, made::MetricBuilder, unix_seconds};

/// Calls of clients and their results.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    /// Messages that were sent again under the same id.
    pub repeated_sends: IntCounter,
    backup_time: GaugeVec,
    certificate_expiry: GaugeVec,
    peers_insecure: IntGauge,
    connections_dropped: IntCounterVec,
}

impl CallMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            requests: new.counters(
                "rpc_requests_total",
                "Finished calls by method, gRPC status code and fault: none, the caller or the service.",
                &["method", "code", "fault"],
            ),
            duration: new.histograms(
                "rpc_duration_seconds",
                "Time from the arrival of a call to its answer, or to the start of its stream.",
                &CALL_SECONDS,
                &["method"],
            ),
            in_flight: new.gauges(
                "rpc_in_flight",
                "Calls that have arrived and are not answered; open streams do not count.",
                &["method"],
            ),
            repeated_sends: new
                .counter("repeated_sends_total", "Sends repeated under the same id, which got the first answer again."),
            certificate_expiry: new.float_gauges(
                "tls_certificate_expiry_timestamp_seconds",
                "Earliest expiry of the certificates that a port presents, in seconds since the Unix epoch; absent \
                 without TLS.",
                &["port"],
            ),
            peers_insecure: new.gauge(
                "peers_insecure",
                "Whether the peer port trusts every host: 1 with CHAT_INSECURE_PEERS=1 and neither secret nor \
                 certificates.",
            ),
            connections_dropped: new.counters(
                "connections_dropped_total",
                "Connections that were dropped to make room for another one, or because the client did not read an \
                 answer.",
                &["port", "reason"],
            ),
            backup_time: new.float_gauges(
                "last_backup_timestamp_seconds",
                "Time of the last backup from this node, in seconds since the Unix epoch; absent before the first.",
                &[],
            ),
        }
    }
}

impl Metrics {
    /// Counts the start of a call. `method` is a method name of the program, never text of the caller.
    pub fn rpc_began(&self, method: &'static str) {
        self.calls.in_flight.with_label_values(&[method]).inc();
    }

    /// Counts the end of a call. `method` is as for [`Self::rpc_began`], `code` the name of a status code, such as
    /// `UNAVAILABLE`, and `fault` the party at fault.
    pub fn rpc_ended(&self, method: &'static str, code: &'static str, fault: &'static str, took: Duration) {
        self.calls.in_flight.with_label_values(&[method]).dec();
        self.calls.requests.with_label_values(&[method, code, fault]).inc();
        self.calls.duration.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// Records that a backup was made now.
    pub fn backed_up(&self) {
        const NO_LABELS: [&str; 0] = [];
        self.calls.backup_time.with_label_values(&NO_LABELS).set(unix_seconds());
    }

    /// Sets whether the peer port accepts calls from any host.
    pub fn set_peers_insecure(&self, insecure: bool) {
        self.calls.peers_insecure.set(i64::from(insecure));
    }

    /// Sets the earliest expiry of the certificates of a port.
    pub fn set_certificate_expiry(&self, port: &'static str, at: SystemTime) {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.calls.certificate_expiry.with_label_values(&[port]).set(at.as_secs_f64());
    }

    /// Creates the series of dropped connections at zero. A series that begins with its first increment hides that
    /// increment from rates.
    pub fn may_drop_connections(&self, port: &'static str, reason: &'static str) {
        self.calls.connections_dropped.with_label_values(&[port, reason]);
    }

    /// Counts a connection that its gate has dropped.
    pub fn connection_dropped(&self, port: &'static str, reason: &'static str) {
        self.calls.connections_dropped.with_label_values(&[port, reason]).inc();
    }
}
