//! Converts steps to spans of OpenTelemetry.

use std::{
    cell::Cell,
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
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer, Span};
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Counts, Sampler};
use trace::{Attribute, Kind, Recorder, Recording, SpanCounts, TraceContext, Value};

thread_local! {
    /// The id of the trace whose first span is created next on this thread.
    static NEXT: Cell<Option<u128>> = const { Cell::new(None) };
}

/// Makes random ids, but gives a trace the id that its sampling decision was based on.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT.take().map_or_else(|| self.0.new_trace_id(), |id| TraceId::from_bytes(id.to_be_bytes()))
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// Records steps with a tracer of the SDK.
pub(super) struct OtelRecorder {
    /// Samples everything that it receives.
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
        // At the level of errors, so that the layer records it regardless of the log level.
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
            // Fails only if no layer records spans. Then there is no context below, either.
            let _ = span.set_parent(below(parent, true));
        }
        // Creates the span, with the id of the sampling decision.
        let context = NEXT.with(|next| {
            next.set(unsampled.filter(|_| parent.is_none()).map(TraceContext::trace_id));
            let context = ours(span.context().span().span_context());
            next.set(None);
            context
        });
        (span, context)
    }

    fn begin(&self, name: &'static str, kind: Kind, parent: TraceContext, at: Instant) -> Box<dyn Recording> {
        let kind = match kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
            Kind::Producer => SpanKind::Producer,
        };
        let now = SystemTime::now();
        let began = now.checked_sub(at.elapsed()).unwrap_or(now);
        let builder = self.tracer.span_builder(name).with_kind(kind.clone()).with_start_time(began);
        // In a call of another node, the parent span is remote.
        let context = below(parent, kind == SpanKind::Server);
        Box::new(OtelRecording { span: self.tracer.build_with_context(builder, &context), parent, began: (at, began) })
    }

    fn counts(&self) -> SpanCounts {
        self.counts.get()
    }
}

/// A span in progress.
struct OtelRecording {
    span: Span,
    parent: TraceContext,
    /// The beginning by both clocks. The end is computed from it, so that it is never earlier.
    began: (Instant, SystemTime),
}

impl Recording for OtelRecording {
    fn context(&self) -> TraceContext {
        ours(self.span.span_context()).unwrap_or(self.parent)
    }

    fn set(&mut self, (name, value): Attribute) {
        self.span.set_attribute(match value {
            Value::Text(text) => KeyValue::new(name, text),
            Value::Number(number) => KeyValue::new(name, number),
        });
    }

    fn fail(&mut self, why: String) {
        self.span.set_status(Status::error(why));
    }

    fn end(mut self: Box<Self>, at: Instant) {
        let (began, time) = self.began;
        self.span.end_with_timestamp(time + at.saturating_duration_since(began));
    }
}

/// A parent context, of another node (`is_remote`) or of this one.
fn below(parent: TraceContext, is_remote: bool) -> Context {
    let flags = TraceFlags::default().with_sampled(parent.is_sampled());
    let trace_id = TraceId::from_bytes(parent.trace_id().to_be_bytes());
    let span_id = SpanId::from_bytes(parent.span_id().to_be_bytes());
    Context::new().with_remote_span_context(SpanContext::new(trace_id, span_id, flags, is_remote, TraceState::NONE))
}

fn ours(context: &SpanContext) -> Option<TraceContext> {
    let trace_id = u128::from_be_bytes(context.trace_id().to_bytes());
    let span_id = u64::from_be_bytes(context.span_id().to_bytes());
    TraceContext::new(trace_id, span_id, context.is_sampled())
}
