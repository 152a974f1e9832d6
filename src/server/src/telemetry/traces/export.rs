//! Export of spans to the collector: OTLP over gRPC.
//!
//! This replaces OpenTelemetry's own exporter, for two reasons. That exporter uses a plain tonic channel, on which an
//! answer that is not OTLP can end the process ([`proto::Channel`]). It also does not report the results of its
//! exports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{runtime::Handle, time::timeout};
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Endpoint};
use tonic_types::StatusExt as _;

use super::{Counts, TraceSettings};
use net::dial::ConnectTimeouts;
use proto::Channel;

/// First delay between two attempts to export the same spans. It doubles with each attempt.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time limit for connecting, within an attempt.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Keepalive interval while an answer of the collector is pending, to detect a half-open connection.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Timeout for the answer to a keepalive ping.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Counts the spans that end, and passes them on.
#[derive(Debug)]
pub(super) struct Counted {
    pub next: BatchSpanProcessor,
    pub counts: Arc<Counts>,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.counts.ended.fetch_add(1, Ordering::Relaxed);
        self.next.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Sends spans to the collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: TraceServiceClient<Channel>,
    headers: MetadataMap,
    timeout: Duration,
    resource: ResourceAttributesWithSchema,
    /// Exports run on a thread outside the runtime.
    runtime: Handle,
    counts: Arc<Counts>,
    /// Whether the loss of spans was logged.
    failing: AtomicBool,
}

impl Collector {
    /// Needs a tokio runtime for the connection.
    pub(super) fn new(settings: &TraceSettings, counts: Arc<Counts>) -> Self {
        let timeouts = ConnectTimeouts { per_call: CONNECT_MAX.min(settings.timeout), total: CONNECT_MAX };
        let endpoint = Endpoint::from(settings.endpoint.clone())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        Self {
            client: TraceServiceClient::new(Channel::from(settings.dialer.channel(endpoint, timeouts).channel)),
            headers: settings.headers.clone(),
            timeout: settings.timeout,
            resource: ResourceAttributesWithSchema::default(),
            runtime: Handle::current(),
            counts,
            failing: AtomicBool::new(false),
        }
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let request =
            ExportTraceServiceRequest { resource_spans: group_spans_by_resource_and_scope(batch, &self.resource) };
        let sending = send(self.client.clone(), self.headers.clone(), request);
        let limit = self.timeout;
        let result = self.runtime.spawn(async move { timeout(limit, sending).await }).await;
        let result = match result {
            Ok(Ok(Ok(refused))) => Ok(refused.min(spans)),
            Ok(Ok(Err(status))) => Err(format!("{}: {}", status.code(), status.message())),
            Ok(Err(_)) => Err("it did not take them in time".to_owned()),
            Err(_) => Err("the node is stopping".to_owned()),
        };
        let failed = *result.as_ref().unwrap_or(&spans);
        self.counts.exported.fetch_add(spans - failed, Ordering::Relaxed);
        self.counts.failed.fetch_add(failed, Ordering::Relaxed);
        if failed > 0 && !self.failing.swap(true, Ordering::Relaxed) {
            let reason = result.as_ref().err().map_or("it refused some", String::as_str);
            tracing::warn!(reason, "Spans are lost, because the trace collector does not accept them");
        }
        if failed == 0 && self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(lost_so_far = self.counts.get().failed, "The trace collector accepts spans again");
        }
        result.map(drop).map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Sends until the collector has answered. Returns the number of spans that it rejected. The caller bounds the time.
async fn send(
    mut client: TraceServiceClient<Channel>,
    headers: MetadataMap,
    message: ExportTraceServiceRequest,
) -> Result<u64, Status> {
    let mut delay = RETRY_DELAY;
    loop {
        let mut request = Request::new(message.clone());
        *request.metadata_mut() = headers.clone();
        match client.export(request).await {
            Ok(response) => {
                let refused = response.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
                return Ok(u64::try_from(refused).unwrap_or(0));
            }
            Err(status) => match pause(&status, delay) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(status),
            },
        }
        delay = delay.saturating_mul(2);
    }
}

/// The delay before another attempt; `None` if it cannot succeed. Follows the OTLP specification: the delay that the
/// collector requests takes precedence over `own`. RESOURCE_EXHAUSTED is retried only if the collector requests a
/// delay.
fn pause(status: &Status, own: Duration) -> Option<Duration> {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Some(asked.unwrap_or(own)),
        Code::ResourceExhausted => asked,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_what_may_succeed_is_tried_again() {
        const OWN: Duration = Duration::from_millis(100);
        const ASKED: Duration = Duration::from_secs(3);
        let plain = |code| pause(&Status::new(code, ""), OWN);
        let asking =
            |code| pause(&Status::with_error_details(code, "", ErrorDetails::with_retry_info(Some(ASKED))), OWN);
        assert_eq!((plain(Code::Unavailable), asking(Code::Unavailable)), (Some(OWN), Some(ASKED)));
        // A batch that is too large stays too large.
        assert_eq!((plain(Code::ResourceExhausted), asking(Code::ResourceExhausted)), (None, Some(ASKED)));
        for code in [Code::InvalidArgument, Code::Unimplemented, Code::Unauthenticated, Code::Internal] {
            assert_eq!(plain(code), None);
        }
    }
}
