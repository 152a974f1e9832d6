//! The way of spans to the collector: OTLP over gRPC.
//!
//! Not OpenTelemetry's own exporter: that one talks to the endpoint through a plain tonic channel, on which an answer that is
//! not OTLP's can end the process ([`crate::proto::Channel`]); and what became of the spans would be known to nobody.

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

use super::{Counts, TraceSettings};
use crate::proto::Channel;

/// Between two attempts to export the same spans: at first, and doubled each time.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Longest time for a connection to be made, within an attempt.
const CONNECT_MAX: Duration = Duration::from_secs(3);

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
    /// Exports are asked for by a thread that is not of the runtime.
    runtime: Handle,
    counts: Arc<Counts>,
    /// Whether it was said that spans are lost.
    failing: AtomicBool,
}

impl Collector {
    /// Needs a tokio runtime, for the connection.
    pub(super) fn new(settings: &TraceSettings, counts: Arc<Counts>) -> Self {
        let endpoint = Endpoint::from(settings.endpoint.clone()).connect_timeout(CONNECT_MAX.min(settings.timeout));
        Self {
            client: TraceServiceClient::new(Channel::from(settings.dialer.channel(endpoint))),
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
            tracing::warn!(reason, "Spans are lost: the trace collector does not take them");
        }
        if failed == 0 && self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(lost_so_far = self.counts.get().failed, "The trace collector takes spans again");
        }
        result.map(drop).map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Sends until the collector has answered; returns how many spans it refused. The caller bounds the time.
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
            Err(status) if !is_temporary(status.code()) => return Err(status),
            Err(_) => tokio::time::sleep(delay).await,
        }
        delay *= 2;
    }
}

/// Whether another attempt may succeed: the list is that of the OTLP specification.
fn is_temporary(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}
