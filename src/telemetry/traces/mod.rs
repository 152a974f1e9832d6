//! Traces by OpenTelemetry: decides what is sampled, keeps the spans, hands them to a collector over OTLP.
//!
//! The only user of OpenTelemetry: the parts of the node record steps with [`crate::trace`]. Invariants:
//! - To record never waits: what the queue does not hold is dropped, and counted.
//! - A collector that is slow, gone, or not one at all costs spans and nothing else.
//! - With no endpoint there is none of this: no thread, no connection, no span.
//!
//! Left out: reading the `OTEL_*` variables (that is `config`).

mod export;
mod recorder;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler as SdkSampler, SdkTracer, SdkTracerProvider, SpanLimits},
};
use tonic::metadata::MetadataMap;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use crate::{
    net::Dialer,
    trace::{SpanCounts, Tracer},
};
use export::{Collector, Counted};
use recorder::OtelRecorder;

/// The instrumentation scope of all spans.
const SCOPE: &str = "quorum-chat";

/// Which traces are recorded that begin here, and whether those of callers are judged by the caller's decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The share of traces that are recorded, from 0 to 1.
    pub ratio: f64,
    /// A trace that the caller began is recorded if and only if the caller records it.
    pub parent_based: bool,
}

/// What is told to which collector. The names of the variables are those of the OpenTelemetry specification.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// `http://host:port` or `https://host:port`.
    pub endpoint: tonic::transport::Uri,
    /// Connects to it: over TCP, or TLS.
    pub dialer: Dialer,
    /// Sent with each export. The values are secrets.
    pub headers: MetadataMap,
    /// Longest time for an export, with its repetitions.
    pub timeout: Duration,
    /// What is recorded.
    pub sampler: Sampler,
    /// What the spans are of: `service.name` and more.
    pub resource: Vec<(String, String)>,
    /// Spans that may wait to be exported.
    pub queue_max: usize,
    /// Spans in one export.
    pub batch_max: usize,
    /// Between two exports, unless a batch is full before.
    pub delay: Duration,
}

/// What became of spans since the start.
#[derive(Debug, Default)]
struct Counts {
    ended: AtomicU64,
    exported: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn get(&self) -> SpanCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SpanCounts { ended: read(&self.ended), exported: read(&self.exported), failed: read(&self.failed) }
    }
}

/// What keeps the spans and exports them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counts: Arc<Counts>,
}

impl Traces {
    /// Starts the exporter: a thread, and a connection that is made when there is something to export. Needs a tokio runtime.
    pub fn start(settings: &TraceSettings) -> Self {
        let counts = Arc::<Counts>::default();
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue_max)
            .with_max_export_batch_size(settings.batch_max)
            .with_scheduled_delay(settings.delay)
            .build();
        let collector = Collector::new(settings, Arc::clone(&counts));
        let processor = BatchSpanProcessor::builder(collector).with_batch_config(batch).build();
        let resource = settings.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let provider = SdkTracerProvider::builder()
            .with_sampler(sdk_sampler(settings.sampler))
            .with_span_limits(SpanLimits::default())
            .with_resource(Resource::builder_empty().with_attributes(resource).build())
            .with_span_processor(Counted { next: processor, counts: Arc::clone(&counts) })
            .build();
        let tracer = provider.tracer(SCOPE);
        Self { provider, tracer, counts }
    }

    /// For those who do something for messages.
    pub fn tracer(&self) -> Tracer {
        Tracer::new(Arc::new(OtelRecorder::new(self.tracer.clone(), Arc::clone(&self.counts))))
    }

    /// Takes the spans of calls, with the warnings and errors that are logged within them.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let layer = OpenTelemetryLayer::new(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        layer.with_filter(Targets::new().with_target("quorum_chat", tracing::Level::WARN))
    }

    /// Exports what waits, at most for `limit`, and ends.
    pub fn shutdown(self, limit: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(limit) {
            tracing::warn!(%error, "The last spans may not have reached the trace collector");
        }
    }
}

fn sdk_sampler(sampler: Sampler) -> SdkSampler {
    let root = match sampler.ratio {
        ratio if ratio >= 1.0 => SdkSampler::AlwaysOn,
        ratio if ratio <= 0.0 => SdkSampler::AlwaysOff,
        ratio => SdkSampler::TraceIdRatioBased(ratio),
    };
    if sampler.parent_based { SdkSampler::ParentBased(Box::new(root)) } else { root }
}
