//! The asynchronous runtime, and the export of traces.

use prometheus::{Counter, IntCounter, IntGauge};

use super::made::MetricBuilder;

/// Spans. Ended spans that were neither exported nor failed are queued, or were dropped from a full queue.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    /// Ended spans of sampled traces.
    pub ended: IntCounter,
    /// Spans that the collector has accepted.
    pub exported: IntCounter,
    /// Spans that the collector did not accept.
    pub failed: IntCounter,
}

/// The asynchronous runtime.
#[derive(Debug, Clone)]
pub struct RuntimeMetrics {
    /// Tasks of the runtime that are alive.
    pub tasks: IntGauge,
    /// Tasks that wait for a worker.
    pub queue_depth: IntGauge,
    /// Seconds that the workers were busy.
    pub busy_seconds: Counter,
}

impl TraceMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            ended: new.counter("trace_spans_total", "Spans of sampled traces that ended here."),
            exported: new.counter("trace_spans_exported_total", "Spans that the trace collector accepted."),
            failed: new.counter(
                "trace_spans_failed_total",
                "Spans that the trace collector rejected, or that could not be sent to it.",
            ),
        }
    }
}

impl RuntimeMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            tasks: new.gauge("runtime_tasks", "Live tasks of the asynchronous runtime."),
            queue_depth: new.gauge("runtime_queue_depth", "Tasks that wait in the runtime's shared queue."),
            busy_seconds: new.seconds("runtime_busy_seconds_total", "Total busy time of the runtime's workers."),
        }
    }
}
