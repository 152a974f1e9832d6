//! From steps to OpenTelemetry's spans.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _,
    },
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SdkTracer, Span};
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Counts, Sampler};
use crate::trace::{Attribute, Kind, Recorder, Recording, SpanCounts, TraceContext, Value};

/// Records steps with a tracer of the SDK.
pub(super) struct OtelRecorder {
    /// Samples whatever it is asked for.
    tracer: SdkTracer,
    sampler: Sampler,
    ids: RandomIdGenerator,
    counts: Arc<Counts>,
}

impl OtelRecorder {
    pub(super) fn new(tracer: SdkTracer, sampler: Sampler, counts: Arc<Counts>) -> Self {
        Self { tracer, sampler, ids: RandomIdGenerator::default(), counts }
    }
}

impl Recorder for OtelRecorder {
    fn call(&self, method: &str, parent: Option<TraceContext>) -> (tracing::Span, Option<TraceContext>) {
        let trace_id = || u128::from_be_bytes(self.ids.new_trace_id().to_bytes());
        let span_id = || u64::from_be_bytes(self.ids.new_span_id().to_bytes());
        let unsampled = match parent {
            Some(parent) => TraceContext::new(parent.trace_id(), parent.span_id(), false),
            None => TraceContext::new(trace_id(), span_id(), false),
        };
        if !self.sampler.samples(parent, unsampled.map_or(0, TraceContext::trace_id)) {
            return (tracing::Span::none(), unsampled);
        }
        // An error's level: whatever the log leaves out, the layer takes it.
        let span = tracing::error_span!(
            parent: None,
            "call",
            "otel.name" = method,
            "otel.kind" = "server",
            "otel.status_code" = Empty,
            "rpc.system.name" = "grpc",
            "rpc.method" = method,
            "rpc.response.status_code" = Empty,
            "error.type" = Empty,
        );
        if let Some(parent) = parent {
            // It fails only where nobody takes spans: then there is no context below, either.
            let _ = span.set_parent(remote(parent));
        }
        let context = ours(span.context().span().span_context());
        (span, context)
    }

    fn begin(&self, name: &'static str, kind: Kind, parent: TraceContext, at: Instant) -> Box<dyn Recording> {
        let kind = match kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
            Kind::Producer => SpanKind::Producer,
        };
        let builder = self.tracer.span_builder(name).with_kind(kind).with_start_time(time_of(at));
        Box::new(OtelRecording(self.tracer.build_with_context(builder, &remote(parent)), parent))
    }

    fn counts(&self) -> SpanCounts {
        self.counts.get()
    }
}

/// A span under way, and its parent.
struct OtelRecording(Span, TraceContext);

impl Recording for OtelRecording {
    fn context(&self) -> TraceContext {
        ours(self.0.span_context()).unwrap_or(self.1)
    }

    fn set(&mut self, (name, value): Attribute) {
        self.0.set_attribute(match value {
            Value::Text(text) => KeyValue::new(name, text),
            Value::Number(number) => KeyValue::new(name, number),
        });
    }

    fn fail(&mut self, why: String) {
        self.0.set_status(Status::error(why));
    }

    fn end(mut self: Box<Self>, at: Instant) {
        self.0.end_with_timestamp(time_of(at));
    }
}

fn remote(context: TraceContext) -> Context {
    let flags = TraceFlags::default().with_sampled(context.is_sampled());
    let trace_id = TraceId::from_bytes(context.trace_id().to_be_bytes());
    let span_id = SpanId::from_bytes(context.span_id().to_be_bytes());
    Context::new().with_remote_span_context(SpanContext::new(trace_id, span_id, flags, true, TraceState::NONE))
}

fn ours(context: &SpanContext) -> Option<TraceContext> {
    let trace_id = u128::from_be_bytes(context.trace_id().to_bytes());
    let span_id = u64::from_be_bytes(context.span_id().to_bytes());
    TraceContext::new(trace_id, span_id, context.is_sampled())
}

/// What the clock showed at a moment that is not long ago.
fn time_of(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}
