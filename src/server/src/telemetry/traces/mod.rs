//! OpenTelemetry traces: makes the sampling decision, stores the spans, and exports them to a collector over OTLP.
//!
//! This is the only user of OpenTelemetry. The parts of the node record steps with [`trace`].
//!
//! Invariants:
//! - Recording never waits. Spans beyond the queue's capacity are dropped and counted.
//! - A collector that is slow, absent or invalid costs spans and nothing else.
//! - Without an endpoint, there is no thread, no connection and no span.
//!
//! Does not cover: reading the `OTEL_*` variables (`config`).

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
    resource::TelemetryResourceDetector,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler as AnySampler, SdkTracer, SdkTracerProvider, SpanLimits},
};
use tonic::metadata::MetadataMap;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use export::{Collector, Counted};
use net::Dialer;
use recorder::{Ids, OtelRecorder};
use trace::{SpanCounts, TraceContext, Tracer};

/// The instrumentation scope of all spans.
const SCOPE: &str = "quorum-chat";

/// The sampling of traces that begin here, and whether the decision of callers takes precedence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The share of traces that are recorded, from 0 to 1.
    pub ratio: f64,
    /// Whether a trace that the caller began is recorded if and only if the caller records it.
    pub parent_based: bool,
}

impl Sampler {
    /// Whether a call's trace is recorded. The caller began the trace (`parent`), or it has the new id `trace_id`. With
    /// equal ratios all nodes record the same traces, because the low bits of the id, which are random, decide.
    fn samples(&self, parent: Option<TraceContext>, trace_id: u128) -> bool {
        /// 2 to the 63.
        const ALL: f64 = 9_223_372_036_854_775_808.0;
        match parent {
            Some(parent) if self.parent_based => parent.is_sampled(),
            _ => self.ratio >= 1.0 || u128::from(trace_id as u64 >> 1) < (self.ratio * ALL) as u128,
        }
    }
}

/// Settings of the traces and their collector. The names of the variables are those of the OpenTelemetry specification.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// `http://host:port` or `https://host:port`.
    pub endpoint: tonic::transport::Uri,
    /// Connects to the endpoint, over TCP or TLS.
    pub dialer: Dialer,
    /// Headers of each export. The values are secrets.
    pub headers: MetadataMap,
    /// Time limit for an export, including its retries.
    pub timeout: Duration,
    /// The sampling of traces.
    pub sampler: Sampler,
    /// The resource of the spans: `service.name` and more.
    pub resource: Vec<(String, String)>,
    /// Capacity of the queue of ended spans.
    pub queue_max: usize,
    /// Most spans in one export.
    pub batch_max: usize,
    /// Interval between two exports, unless a batch is full earlier.
    pub delay: Duration,
}

/// Numbers of spans by result since the start.
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

/// Stores the spans and exports them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sampler: Sampler,
    counts: Arc<Counts>,
}

impl Traces {
    /// Starts the exporter: a thread, and a connection that is opened for the first export. Needs a tokio runtime.
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
            // The sampling decision is made before a span exists, because an unsampled trace must cost next to nothing.
            .with_sampler(AnySampler::AlwaysOn)
            .with_span_limits(SpanLimits::default())
            .with_id_generator(Ids::default())
            .with_resource(
                Resource::builder_empty()
                    .with_detector(Box::new(TelemetryResourceDetector))
                    .with_attributes(resource)
                    .build(),
            )
            .with_span_processor(Counted { next: processor, counts: Arc::clone(&counts) })
            .build();
        let tracer = provider.tracer(SCOPE);
        Self { provider, tracer, sampler: settings.sampler, counts }
    }

    /// The tracer for the parts that process messages.
    pub fn tracer(&self) -> Tracer {
        Tracer::new(Arc::new(OtelRecorder::new(self.tracer.clone(), self.sampler, Arc::clone(&self.counts))))
    }

    /// Records the spans of calls, with the warnings and errors that are logged within them.
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
        // The beginning of the names of all of our crates that log within a call.
        layer.with_filter(Targets::new().with_target("quorum_chat", tracing::Level::WARN))
    }

    /// Exports the queued spans within `limit`, and stops.
    pub fn shutdown(self, limit: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(limit) {
            tracing::warn!(%error, "The last spans may not have reached the trace collector");
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn context(trace_id: u128, sampled: bool) -> Option<TraceContext> {
        TraceContext::new(trace_id, 1, sampled)
    }

    #[test]
    fn the_parent_decides_where_it_is_asked_and_the_id_does_where_there_is_none() {
        const SMALL: u128 = 0x0100_0000_0000_0000;
        const LARGE: u128 = 0xff00_0000_0000_0000;
        for ratio in [0.0, 0.01, 0.5, 1.0] {
            let based = Sampler { ratio, parent_based: true };
            assert!(based.samples(context(LARGE, true), LARGE) && !based.samples(context(SMALL, false), SMALL));
            let free = Sampler { ratio, parent_based: false };
            for sampled in [true, false] {
                assert_eq!(free.samples(context(SMALL, sampled), SMALL), ratio >= 0.01, "{ratio}");
                assert_eq!(free.samples(context(LARGE, sampled), LARGE), ratio >= 1.0, "{ratio}");
            }
            assert_eq!(based.samples(None, SMALL), ratio >= 0.01);
            assert_eq!(based.samples(None, LARGE), ratio >= 1.0);
        }
        let all = Sampler { ratio: 1.0, parent_based: false };
        assert!(all.samples(None, u128::MAX), "every id there is");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_trace_has_the_id_by_which_it_was_judged() {
        let sampler = Sampler { ratio: 0.5, parent_based: true };
        let settings = TraceSettings {
            endpoint: "http://127.0.0.1:9".parse().unwrap(),
            dialer: Dialer::default(),
            headers: MetadataMap::new(),
            timeout: Duration::from_millis(1),
            sampler,
            resource: vec![],
            queue_max: 1,
            batch_max: 1,
            delay: Duration::from_secs(1),
        };
        let traces = Traces::start(&settings);
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        let called = |parent| traces.tracer().call("chat.v1.ChatService/Login", parent).context().unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let roots: Vec<TraceContext> = (0..200).map(|_| called(None)).collect();
            let sampled = roots.iter().filter(|root| root.is_sampled()).count();
            assert!((50..150).contains(&sampled), "{sampled}");
            for root in roots {
                assert_eq!(root.is_sampled(), sampler.samples(None, root.trace_id()), "{root}");
            }
            let parent = context(7, true);
            let below = called(parent);
            assert_eq!((below.trace_id(), below.is_sampled()), (7, true));
            assert_ne!(Some(below), parent, "a span of its own");
            assert_eq!(Some(called(context(7, false))), context(7, false), "no span");
        });
        assert_eq!(traces.counts.get().ended, traces.tracer().counts().ended);
        assert!(traces.counts.get().ended >= 51, "the spans of the sampled calls have ended");
        traces.shutdown(Duration::from_millis(100));
    }

    #[test]
    fn of_random_ids_the_share_is_that_of_the_ratio() {
        use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
        let sampler = Sampler { ratio: 0.1, parent_based: true };
        let ids = RandomIdGenerator::default();
        let sampled = |_: &u32| sampler.samples(None, u128::from_be_bytes(ids.new_trace_id().to_bytes()));
        let count = (0..100_000).filter(sampled).count();
        // Ten standard deviations.
        assert!((9_051..=10_949).contains(&count), "{count}");
    }
}
