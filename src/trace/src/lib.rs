//! One trace for each message: the recorder of its steps. And [`blocking`], the seam for blocking work.
//!
//! Owns the [`Tracer`], a handle for every part that processes a message. The [`TraceContext`] that travels with a
//! message is part of its event, and defined there ([`chat`]).
//!
//! Invariants:
//! - A step of an unsampled trace costs the check of one bit. With tracing off, nothing is recorded.
//! - The sampling decision is made once, where the trace begins, and respected everywhere.
//! - Recording never waits.
//!
//! Many messages share one write, one fsync and one replication call. Such a step is recorded afterwards, once for each
//! traced message in it, so that each message has a complete trace.
//!
//! Does not cover: storing and exporting spans (`telemetry::traces`).

pub mod blocking;

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Instant};

use tracing::{Instrument as _, Span};

pub use chat::TraceContext;

/// The role of a span towards the remote side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work within a node.
    Internal,
    /// A call to another node.
    Client,
    /// The processing of a call from another node.
    Server,
    /// The delivery of an event to a subscriber.
    Producer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

/// The name and the value of an attribute.
pub type Attribute = (&'static str, Value);

/// Records traces. Called while messages are processed, so it must not block.
pub trait Recorder: Send + Sync + 'static {
    /// Decides whether a call's trace is sampled and, if so, begins its span, under the caller's context if it gave
    /// one. `method` is `package.Service/Method`. An unsampled trace has an id as well.
    fn call(&self, method: &str, parent: Option<TraceContext>) -> (Span, Option<TraceContext>);
    /// Begins a step of a sampled trace, at a time that may lie in the past.
    fn begin(&self, name: &'static str, kind: Kind, parent: TraceContext, at: Instant) -> Box<dyn Recording>;
    /// The numbers of spans by result.
    fn counts(&self) -> SpanCounts {
        SpanCounts::default()
    }
}

/// Numbers of spans since the start. An ended span in neither of the other counts waits for its export, or was dropped
/// from a full queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanCounts {
    /// Ended spans of sampled traces.
    pub ended: u64,
    /// Spans that the collector has accepted.
    pub exported: u64,
    /// Spans that the collector rejected, or that could not be sent to it.
    pub failed: u64,
}

/// A span in progress.
pub trait Recording: Send + Sync {
    /// The context for child spans.
    fn context(&self) -> TraceContext;
    /// Sets an attribute.
    fn set(&mut self, attribute: Attribute);
    /// Marks the step as failed, with the reason.
    fn fail(&mut self, why: String);
    /// Ends the step, at a time that may lie in the past.
    fn end(self: Box<Self>, at: Instant);
}

/// Records the processing of messages, or nothing. Clones share the recorder.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<dyn Recorder>>);

impl Tracer {
    /// A tracer that records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// A tracer that records with `recorder`.
    pub fn new(recorder: Arc<dyn Recorder>) -> Self {
        Self(Some(recorder))
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The numbers of spans by result.
    pub fn counts(&self) -> SpanCounts {
        self.0.as_ref().map(|recorder| recorder.counts()).unwrap_or_default()
    }

    /// Begins a client's call. See [`Recorder::call`].
    pub fn call(&self, method: &str, parent: Option<TraceContext>) -> Call {
        match &self.0 {
            Some(recorder) => {
                let (span, context) = recorder.call(method, parent);
                Call { span, context: context.or(parent) }
            }
            None => Call { span: Span::none(), context: parent },
        }
    }

    /// Begins a step now. Without a sampled parent nothing is recorded.
    pub fn begin(&self, name: &'static str, kind: Kind, parent: Option<TraceContext>) -> Step {
        match (&self.0, parent) {
            (Some(recorder), Some(context)) if context.is_sampled() => {
                Step { recording: Some(recorder.begin(name, kind, context, Instant::now())), parent }
            }
            _ => Step { recording: None, parent },
        }
    }

    /// Records a step of several traces that took from `began` to `ended`.
    pub fn record<const N: usize>(
        &self,
        name: &'static str,
        kind: Kind,
        parents: &[TraceContext],
        (began, ended): (Instant, Instant),
        attributes: [Attribute; N],
    ) {
        let Some(recorder) = &self.0 else { return };
        for parent in parents.iter().filter(|parent| parent.is_sampled()) {
            let mut recording = recorder.begin(name, kind, *parent, began);
            attributes.iter().for_each(|attribute| recording.set(attribute.clone()));
            recording.end(ended);
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// The trace of the current call, sampled or not, if it has one.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// Runs `work` for a call. Meanwhile, [`current`] is its trace, and log lines contain its id.
pub async fn within<F: Future>(context: Option<TraceContext>, work: F) -> F::Output {
    match context {
        Some(context) => CURRENT.scope(context, work).await,
        None => work.await,
    }
}

/// A client's call in progress.
#[derive(Debug)]
pub struct Call {
    span: Span,
    context: Option<TraceContext>,
}

impl Call {
    /// The field of the result code. This field and the next ones are set at the end of the span, so they must be
    /// declared when it is made.
    pub const CODE: &str = "rpc.response.status_code";
    /// The field of the result code of a failed call.
    pub const ERROR: &str = "error.type";
    /// The field that is then set to `ERROR`.
    pub const STATUS: &str = "otel.status_code";

    /// The context for the steps of the call; without tracing, the context that the caller gave.
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Runs `work` to answer the call; see [`within`].
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        within(self.context, work.instrument(self.span.clone())).await
    }

    /// Records the result code, in the spelling of the protocol, and whether the server is at fault (`failed`).
    pub fn end(&self, code: &'static str, failed: bool) {
        self.span.record(Self::CODE, code);
        if failed {
            self.span.record(Self::ERROR, code);
            self.span.record(Self::STATUS, "ERROR");
        }
    }
}

/// A step in progress. It ends when it is dropped.
#[derive(Default)]
pub struct Step {
    recording: Option<Box<dyn Recording>>,
    parent: Option<TraceContext>,
}

impl Step {
    /// The context for child steps.
    pub fn context(&self) -> Option<TraceContext> {
        self.recording.as_ref().map(|recording| recording.context()).or(self.parent)
    }

    /// Whether the step is recorded.
    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(recording) = &mut self.recording {
            recording.set((name, value.into()));
        }
    }

    /// Marks the step as failed. `why` is called only if the step is recorded.
    pub fn fail<T: Into<String>>(&mut self, why: impl FnOnce() -> T) {
        if let Some(recording) = &mut self.recording {
            recording.fail(why().into());
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            recording.end(Instant::now());
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("context", &self.context()).finish_non_exhaustive()
    }
}
