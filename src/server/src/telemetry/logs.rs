//! Log lines on standard error.
//!
//! The format is text, `2024-03-20 10:15:30 - INFO - [127.0.0.1:50051] Server started with 4 peers key=value` (UTC,
//! coloured by level on a terminal), or one JSON object per line. Client input cannot break a line or colour the
//! terminal, because control characters are escaped.
//!
//! No place in the program floods the log (see `limit`), and logging never waits for the reader (see
//! [`terminal::unhurried`]).
//!
//! Levels: events with the target [`HEARTBEAT_TARGET`] have a level of their own. Unless the level is `debug`,
//! libraries log from `warn` on, and nothing during a planned stop; the consensus library logs errors alone, because it
//! warns of each call that fails, and the node says itself which members it cannot reach. Spans are not written,
//! because they are for traces. A line of a call with a known trace ends with its `trace_id`.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use super::{limit::Limit, time::Civil, traces::Traces};
use terminal::unhurried::{LAST_LINES_MAX, Unhurried};

/// Target of the events about heartbeats between the nodes.
pub const HEARTBEAT_TARGET: &str = "heartbeat";

/// Crates with verbose logs: the transports.
const TALKATIVE: [&str; 5] = ["h2", "hyper", "hyper_util", "tonic", "tower"];
/// The consensus library.
const CONSENSUS: &str = "openraft";
/// The module that reports as an error that a caller no longer waits for an answer, and the prefixes of others that
/// begin with the same letters.
const CONSENSUS_CALLS: &str = "openraft::raft";
const NOT_CONSENSUS_CALLS: [&str; 2] = ["openraft::raft::", "openraft::raft_"];

/// Settings of the log.
#[derive(Debug, Clone, Copy)]
pub struct LogSettings {
    /// Least severe level that is written.
    pub level: Level,
    /// The same for [`HEARTBEAT_TARGET`].
    pub heartbeat_level: Level,
    /// Whether to write JSON objects instead of text lines.
    pub json: bool,
}

/// The writer of this process's log lines.
static OUTPUT: OnceLock<Unhurried> = OnceLock::new();

/// Whether a stop of this process was requested.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Standard error is closed, or the thread cannot be started.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// A subscriber is installed already.
    #[error(transparent)]
    Installed(#[from] TryInitError),
}

/// Installs the process's log writer, and `traces` to record the spans of calls. `label` is part of every line: the
/// address by which clients reach this node.
///
/// # Errors
/// A subscriber is installed already, or standard error is closed.
pub fn init(settings: &LogSettings, label: &str, traces: Option<&Traces>) -> Result<(), LogError> {
    let colour = !settings.json && io::stderr().is_terminal();
    let output = Unhurried::start(io::stderr().as_fd())?;
    subscriber(settings, label, colour, output.clone(), traces, &STOPPING).try_init()?;
    // Set once, like the subscriber.
    let _ = OUTPUT.set(output);
    Ok(())
}

/// Records that the process is stopping as requested. From now on, log lines of libraries are suppressed, except at the
/// level `debug`. They are about connections that close. The node logs its own failures.
pub fn stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Log lines that were lost because their reader was too slow or has closed the stream.
pub fn lost() -> u64 {
    OUTPUT.get().map_or(0, Unhurried::lost)
}

/// Waits at most a second until the last lines are written. For the end of the process.
pub fn finish() {
    if let Some(output) = OUTPUT.get() {
        output.finish(LAST_LINES_MAX);
    }
}

fn subscriber<W>(
    settings: &LogSettings,
    label: &str,
    colour: bool,
    writer: W,
    traces: Option<&Traces>,
    stopping: &'static AtomicBool,
) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let silences_libraries = (settings.level < Level::DEBUG).then_some(stopping);
    let form = Line { json: settings.json, label: label.to_owned(), limit: Limit::new(), silences_libraries };
    let layer = tracing_subscriber::fmt::layer().with_ansi(colour).event_format(form).with_writer(writer);
    tracing_subscriber::registry().with(layer.with_filter(filter(settings))).with(traces.map(Traces::layer))
}

fn filter(settings: &LogSettings) -> Targets {
    let level = LevelFilter::from_level(settings.level);
    let most = |most: LevelFilter| if level >= LevelFilter::DEBUG { level } else { level.min(most) };
    Targets::new()
        .with_default(level)
        .with_targets(TALKATIVE.map(|target| (target, most(LevelFilter::WARN))))
        .with_target(CONSENSUS, most(LevelFilter::ERROR))
        .with_target(CONSENSUS_CALLS, most(LevelFilter::OFF))
        .with_targets(NOT_CONSENSUS_CALLS.map(|target| (target, most(LevelFilter::ERROR))))
        .with_target(HEARTBEAT_TARGET, LevelFilter::from_level(settings.heartbeat_level))
}

/// Formats one event as one line.
struct Line {
    json: bool,
    label: String,
    limit: Limit<Identifier>,
    silences_libraries: Option<&'static AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(left_out) = self.admit(event.metadata()) else {
            // An empty event produces no line.
            return Ok(());
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if left_out > 0 {
            fields.others.push(("left_out".to_owned(), left_out.into()));
        }
        if let Some(trace) = trace::current() {
            fields.others.push(("trace_id".to_owned(), trace.trace_id_text().into()));
        }
        let now = Civil::from_system(SystemTime::now());
        let level = *event.metadata().level();
        if self.json {
            writeln!(writer, "{}", self.object(&now, level, event.metadata().target(), fields))
        } else {
            let colour = writer.has_ansi_escapes();
            writeln!(writer, "{}", self.text(&now, level, colour, &fields))
        }
    }
}

impl Line {
    /// The number of suppressed lines of the same place since the last one; `None` if this event is suppressed. The
    /// program's own errors are never suppressed, as they explain a stop. Neither are events at `debug` and below,
    /// which are enabled only on demand.
    fn admit(&self, event: &Metadata<'_>) -> Option<u64> {
        let is_library = TALKATIVE.iter().chain([&CONSENSUS]).any(|library| is_of(event.target(), library));
        if is_library && self.silences_libraries.is_some_and(|silent| silent.load(Ordering::Relaxed)) {
            return None;
        }
        if *event.level() == Level::ERROR && !is_library || *event.level() > Level::INFO {
            return Some(0);
        }
        self.limit.admit(event.callsite(), Instant::now())
    }

    fn text(&self, now: &Civil, level: Level, colour: bool, fields: &Fields) -> String {
        let (before, after) = if colour { (colour_of(level), "\x1b[0m") } else { ("", "") };
        let mut line = format!("{before}{} - {level} - [{}] ", now.text(), self.label);
        push_escaped(&mut line, &fields.message);
        for (name, value) in &fields.others {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if text.is_empty() || text.contains([' ', '"', '=']) {
                let _ = write!(line, " {name}={text:?}");
            } else {
                let _ = write!(line, " {name}=");
                push_escaped(&mut line, &text);
            }
        }
        line.push_str(after);
        line
    }

    fn object(&self, now: &Civil, level: Level, target: &str, fields: Fields) -> Value {
        let mut object = Map::new();
        object.insert("timestamp".to_owned(), now.rfc3339().into());
        object.insert("level".to_owned(), level.as_str().into());
        object.insert("node".to_owned(), self.label.clone().into());
        object.insert("target".to_owned(), target.into());
        object.insert("message".to_owned(), fields.message.into());
        object.insert("fields".to_owned(), fields.others.into_iter().collect::<Map<_, _>>().into());
        Value::Object(object)
    }
}

/// Whether a target is a module of a crate.
fn is_of(target: &str, library: &str) -> bool {
    target.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn colour_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[90m",
    }
}

/// Appends `text` with escapes (`\n`, `\u{1b}`) for line ends, control characters, and characters that reorder the
/// line.
fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
}

/// The values of one event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
        } else {
            self.others.push((field.name().to_owned(), value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.push(field, text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;
    use tracing::{debug, error, info, subscriber::with_default, warn};

    use super::*;
    use crate::telemetry::limit;
    use trace::{TraceContext, Tracer};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const INFO: LogSettings = LogSettings { level: Level::INFO, heartbeat_level: Level::WARN, json: false };

    /// The output of `events`.
    fn written(settings: LogSettings, colour: bool, events: impl FnOnce()) -> String {
        written_with(settings, colour, None, events)
    }

    fn written_with(settings: LogSettings, colour: bool, traces: Option<&Traces>, events: impl FnOnce()) -> String {
        static GOES_ON: AtomicBool = AtomicBool::new(false);
        written_while(&GOES_ON, settings, colour, traces, events)
    }

    fn written_while(
        stopping: &'static AtomicBool,
        settings: LogSettings,
        colour: bool,
        traces: Option<&Traces>,
        events: impl FnOnce(),
    ) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let output = move || writer.clone();
        with_default(subscriber(&settings, "127.0.0.1:50051", colour, output, traces, stopping), events);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// The lines without their time stamp of 19 characters.
    fn untimed(text: &str) -> Vec<&str> {
        text.lines().map(|line| &line[19..]).collect()
    }

    #[test]
    fn a_line_has_the_known_shape() {
        let text = written(INFO, false, || {
            info!("Server started with {} peers", 4);
            warn!(peer = "n2", lag = 7_u64, ratio = 0.5, why = "no route", empty = "", "slow");
        });
        assert_eq!(
            untimed(&text),
            [
                " - INFO - [127.0.0.1:50051] Server started with 4 peers",
                " - WARN - [127.0.0.1:50051] slow peer=n2 lag=7 ratio=0.5 why=\"no route\" empty=\"\"",
            ]
        );
        let moment = &text[..19];
        assert!(moment.chars().zip("0000-00-00 00:00:00".chars()).all(|(a, b)| a == b || a.is_ascii_digit()));
    }

    #[test]
    fn a_line_of_a_call_has_the_id_of_its_trace() {
        let text = written(INFO, false, || {
            // Without tracing, it is the caller's.
            let call = Tracer::off().call("chat.v1.ChatService/Login", TraceContext::new(7, 1, false));
            call.run(async { error!(why = "disk", "within") }).now_or_never().unwrap();
            let call = Tracer::off().call("chat.v1.ChatService/Login", None);
            call.run(async { error!("untraced") }).now_or_never().unwrap();
            error!("without");
        });
        let id = "00000000000000000000000000000007";
        let within = format!(" - ERROR - [127.0.0.1:50051] within why=disk trace_id={id}");
        let others = ["untraced", "without"].map(|what| format!(" - ERROR - [127.0.0.1:50051] {what}"));
        assert_eq!(untimed(&text), [&within, &others[0], &others[1]]);
    }

    #[test]
    fn input_cannot_forge_lines_or_colours() {
        let evil = "x\n2024-03-20 10:15:30 - INFO - [a] forged\x1b[31m\u{202e}";
        let text = written(INFO, false, || {
            info!("{evil}");
            info!(name = %evil, other = evil, plain = "a\nb", "ok");
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains(['\x1b', '\u{202e}']));
        assert!(text.contains("plain=a\\nb"), "{text}");
    }

    #[test]
    fn colour_is_by_level_and_only_when_asked_for() {
        let text = written(INFO, true, || error!("bad"));
        assert!(text.starts_with("\x1b[31m") && text.ends_with("\x1b[0m\n"), "{text:?}");
        assert!(!written(INFO, false, || error!("bad")).contains('\x1b'));
    }

    #[test]
    fn json_is_one_object_per_line() {
        let settings = LogSettings { json: true, ..INFO };
        let text = written(settings, false, || {
            let error = io::Error::other("disk");
            info!(count = 2_u64, error = &error as &dyn std::error::Error, "two\nlines");
        });
        assert_eq!(text.lines().count(), 1);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["node"], "127.0.0.1:50051");
        assert_eq!(object["message"], "two\nlines");
        assert_eq!(object["fields"]["count"], 2);
        assert_eq!(object["fields"]["error"], "disk");
        assert!(object["target"].as_str().unwrap().ends_with("telemetry::logs::tests"));
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn no_place_floods_the_log() {
        let many = limit::LINES_MAX as usize + 5;
        let text = written(LogSettings { level: Level::DEBUG, ..INFO }, false, || {
            for _ in 0..many {
                warn!(peer = "n2", "no answer");
                error!("a reason to stop");
                error!(target: "openraft::replication", "trouble");
            }
            warn!(peer = "n3", "no answer");
            (0..many).for_each(|_| debug!("a detail"));
        });
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(count("no answer peer=n2"), limit::LINES_MAX as usize);
        assert_eq!(count("a reason to stop"), many, "errors of its own are all written");
        assert_eq!(count("trouble"), limit::LINES_MAX as usize);
        assert_eq!(count("a detail"), many, "who asks for details gets them");
        assert_eq!(count("no answer peer=n3"), 1, "another place has lines of its own");
        assert!(!text.lines().any(str::is_empty), "{text}");
    }

    #[test]
    fn heartbeats_and_libraries_have_their_own_levels() {
        let events = || {
            info!(target: "heartbeat", "beat");
            warn!(target: "heartbeat", "missed beat");
            info!(target: "hyper::proto", "chatter");
            warn!(target: "hyper::proto", "trouble");
            warn!(target: "openraft::engine", "a call failed");
            error!(target: "openraft::engine", "a fault");
            error!(target: "openraft::raft", "nobody waits");
            error!(target: "openraft::raft::api", "it has stopped");
            debug!("detail");
            info!("news");
        };
        let all = |text: String| {
            text.lines().map(|line| line.split("] ").nth(1).unwrap().to_owned()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(all(written(INFO, false, events)), "missed beat|trouble|a fault|it has stopped|news");
        let beats = LogSettings { heartbeat_level: Level::TRACE, level: Level::ERROR, json: false };
        assert_eq!(all(written(beats, false, events)), "beat|missed beat|a fault|it has stopped");
        let debugging = LogSettings { level: Level::DEBUG, ..INFO };
        assert_eq!(
            all(written(debugging, false, events)),
            "missed beat|chatter|trouble|a call failed|a fault|nobody waits|it has stopped|detail|news"
        );
    }

    #[test]
    fn a_planned_stop_is_quiet_about_connections_that_end() {
        static STOPPED: AtomicBool = AtomicBool::new(false);
        let events = || {
            STOPPED.store(false, Ordering::Relaxed);
            error!(target: "openraft::core", "before");
            STOPPED.store(true, Ordering::Relaxed);
            error!(target: "openraft::core", "a connection is gone");
            warn!("news");
            error!("a reason");
        };
        let text = written_while(&STOPPED, INFO, false, None, events);
        let written: Vec<_> = text.lines().map(|line| line.rsplit("] ").next().unwrap()).collect();
        assert_eq!(written, ["before", "news", "a reason"]);
        let debugging = LogSettings { level: Level::DEBUG, ..INFO };
        assert!(written_while(&STOPPED, debugging, false, None, events).contains("a connection is gone"));
    }
}
