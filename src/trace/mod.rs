//! One trace for each message: the context that goes with it, and the recorder of what is done for it.
//!
//! Owns the [`TraceContext`] ([W3C Trace Context](https://www.w3.org/TR/trace-context/)) that callers give, that the log
//! carries and that subscribers get, and the [`Tracer`], a handle that is passed to whoever does something for a message.
//! Invariants:
//! - A step of a trace that is not sampled costs a look at a bit; with tracing off nothing is recorded at all.
//! - Whether a trace is sampled is decided once, where it begins, and respected everywhere.
//! - To record never waits.
//!
//! Many messages share one write, one fsync and one replication call. Such a step is recorded afterwards, once for each
//! traced message in it, so that each has a whole trace.
//!
//! Left out: how spans are kept and exported (`telemetry::traces`).

mod context;

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Instant};

use tracing::{Instrument as _, Span};

pub use context::TraceContext;

/// What a span is to the one on the other side, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work within a node.
    Internal,
    /// A call to another node.
    Client,
    /// The answer to a call of another node.
    Server,
    /// Something is handed to a subscriber.
    Producer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
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

/// An attribute: its name, and its value.
pub type Attribute = (&'static str, Value);

/// Keeps what is traced. Called on the way of messages: it must not block.
pub trait Recorder: Send + Sync + 'static {
    /// Decides whether a call's trace is sampled, and begins its span if it is: under the caller's context if it gave one.
    /// `method` is `package.Service/Method`. What is not sampled has an id all the same.
    fn call(&self, method: &str, parent: Option<TraceContext>) -> (Span, Option<TraceContext>);
    /// Begins a step of a sampled trace, at a moment that may have passed.
    fn begin(&self, name: &'static str, kind: Kind, parent: TraceContext, at: Instant) -> Box<dyn Recording>;
    /// What became of the spans.
    fn counts(&self) -> SpanCounts {
        SpanCounts::default()
    }
}

/// Spans since the start. What ended and is in neither of the others waits to be exported, or was dropped from a full queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanCounts {
    /// Of sampled traces, ended.
    pub ended: u64,
    /// Taken by the collector.
    pub exported: u64,
    /// Refused by it, or it could not be reached.
    pub failed: u64,
}

/// A span under way.
pub trait Recording: Send + Sync {
    /// What is done under it has this parent.
    fn context(&self) -> TraceContext;
    /// Says more of it.
    fn set(&mut self, attribute: Attribute);
    /// It failed, and why.
    fn fail(&mut self, why: String);
    /// It ended, at a moment that may have passed.
    fn end(self: Box<Self>, at: Instant);
}

/// Records what is done for messages, or nothing. Clones share it.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<dyn Recorder>>);

impl Tracer {
    /// Records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Records with `recorder`.
    pub fn new(recorder: Arc<dyn Recorder>) -> Self {
        Self(Some(recorder))
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What became of the spans.
    pub fn counts(&self) -> SpanCounts {
        self.0.as_ref().map(|recorder| recorder.counts()).unwrap_or_default()
    }

    /// The call of a client begins. See [`Recorder::call`].
    pub fn call(&self, method: &str, parent: Option<TraceContext>) -> Call {
        match &self.0 {
            Some(recorder) => {
                let (span, context) = recorder.call(method, parent);
                Call { span, context: context.or(parent) }
            }
            None => Call { span: Span::none(), context: parent },
        }
    }

    /// A step begins now. Without a sampled parent nothing is recorded.
    pub fn begin(&self, name: &'static str, kind: Kind, parent: Option<TraceContext>) -> Step {
        match (&self.0, parent) {
            (Some(recorder), Some(context)) if context.is_sampled() => {
                Step { recording: Some(recorder.begin(name, kind, context, Instant::now())), parent }
            }
            _ => Step { recording: None, parent },
        }
    }

    /// A step of several traces has been taken, from `began` to `ended`.
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

/// The trace of the call that is being answered, sampled or not, if it has one.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// Does something for a call: [`current`] is its trace meanwhile, and the lines of the log have its id.
pub async fn within<F: Future>(context: Option<TraceContext>, work: F) -> F::Output {
    match context {
        Some(context) => CURRENT.scope(context, work).await,
        None => work.await,
    }
}

/// A client's call under way.
#[derive(Debug)]
pub struct Call {
    span: Span,
    context: Option<TraceContext>,
}

impl Call {
    /// A field of the span that is set at its end, as the next ones: they have to be declared when it is made. How it ended.
    pub const CODE: &str = "rpc.response.status_code";
    /// The same, if it failed.
    pub const ERROR: &str = "error.type";
    /// Then `ERROR`.
    pub const STATUS: &str = "otel.status_code";

    /// For what is done for the call; without tracing, what the caller gave.
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Answers it; see [`within`].
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        within(self.context, work.instrument(self.span.clone())).await
    }

    /// The call was answered with this code, as the protocol spells it; `failed`: it is the server's fault.
    pub fn end(&self, code: &'static str, failed: bool) {
        self.span.record(Self::CODE, code);
        if failed {
            self.span.record(Self::ERROR, code);
            self.span.record(Self::STATUS, "ERROR");
        }
    }
}

/// A step under way. It ends when it is dropped.
#[derive(Default)]
pub struct Step {
    recording: Option<Box<dyn Recording>>,
    parent: Option<TraceContext>,
}

impl Step {
    /// For what is done within it.
    pub fn context(&self) -> Option<TraceContext> {
        self.recording.as_ref().map(|recording| recording.context()).or(self.parent)
    }

    /// Whether anything is recorded of it.
    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Says more of it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(recording) = &mut self.recording {
            recording.set((name, value.into()));
        }
    }

    /// It failed; `why` is asked for only if that is recorded.
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
