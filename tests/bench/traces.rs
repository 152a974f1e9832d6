//! A trace collector for the terminal: prints each trace as a tree, once nothing has come to it for a while.
//!
//! ```text
//! cargo run --release --example traces
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 OTEL_BSP_SCHEDULE_DELAY=200 chatd local ...
//! chatctl --trace send bob hello
//! ```
//!
//! With `--count` it prints nothing but, every second, how many spans have come.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tonic::{Request, Response, Status, transport::Server};

const ADDRESS: &str = "127.0.0.1:4317";
/// A trace to which nothing was added for so long is printed.
const QUIET: Duration = Duration::from_secs(2);
/// Traces that may wait to be printed; more are left out.
const TRACES_MAX: usize = 1000;

/// A span, and the node that it is of.
type NodeSpan = (String, Span);

/// The spans of a trace, and when the last of them came.
type Trace = (Vec<NodeSpan>, Instant);

#[derive(Clone, Default)]
struct Collector {
    count_only: bool,
    traces: Arc<Mutex<HashMap<Vec<u8>, Trace>>>,
    spans: Arc<Mutex<u64>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let node = text(&of_resource.resource.unwrap_or_default().attributes, "service.instance.id");
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                *self.spans.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                if self.count_only {
                    continue;
                }
                let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
                if traces.len() < TRACES_MAX || traces.contains_key(&span.trace_id) {
                    let (spans, newest) =
                        traces.entry(span.trace_id.clone()).or_insert_with(|| (Vec::new(), Instant::now()));
                    *newest = Instant::now();
                    spans.push((node.clone(), span));
                }
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value =
        attributes.iter().find(|attribute| attribute.key == key).and_then(|found| found.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

/// Prints what is under a span, by the time of its start.
fn print_below(spans: &[NodeSpan], parent: &[u8], depth: usize, began: u64) {
    let mut below: Vec<_> = spans.iter().filter(|(_, span)| span.parent_span_id == parent).collect();
    below.sort_by_key(|(_, span)| span.start_time_unix_nano);
    for (node, span) in below {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let (at, took) = (
            span.start_time_unix_nano.saturating_sub(began),
            span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
        );
        let peer = text(&span.attributes, "chat.peer");
        let arrow = if peer.is_empty() { String::new() } else { format!(" -> {peer}") };
        let failed = span.status.as_ref().filter(|status| status.code == 2);
        let failed = failed.map(|status| format!("  failed: {}", status.message)).unwrap_or_default();
        println!("{:>9.3} {:>9.3} ms  {node:<4} {}{}{arrow}{failed}", ms(at), ms(took), "  ".repeat(depth), span.name);
        print_below(spans, &span.span_id, depth + 1, began);
    }
}

fn print(trace_id: &[u8], spans: &[NodeSpan]) {
    println!("\ntrace {}, {} spans\n    after      took", hex::encode(trace_id), spans.len());
    let began = spans.iter().map(|(_, span)| span.start_time_unix_nano).min().unwrap_or_default();
    // The callers' own spans are not here: what is directly below them comes first.
    let mut roots: Vec<&[u8]> = spans.iter().map(|(_, span)| span.parent_span_id.as_slice()).collect();
    roots.retain(|parent| !spans.iter().any(|(_, span)| span.span_id == *parent));
    roots.sort_unstable();
    roots.dedup();
    for root in roots {
        print_below(spans, root, 0, began);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count_only = std::env::args().any(|argument| argument == "--count");
    let collector = Collector { count_only, ..Collector::default() };
    let service = TraceServiceServer::new(collector.clone()).max_decoding_message_size(64 << 20);
    tokio::spawn(async move {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let spans = *collector.spans.lock().unwrap_or_else(PoisonError::into_inner);
            if collector.count_only && spans != before {
                println!("{spans} spans");
            }
            before = spans;
            let mut traces = collector.traces.lock().unwrap_or_else(PoisonError::into_inner);
            traces.retain(|trace_id, (spans, newest)| {
                let waits = newest.elapsed() < QUIET;
                if !waits {
                    print(trace_id, spans);
                }
                waits
            });
        }
    });
    println!("waiting for spans at {ADDRESS}");
    Server::builder().add_service(service).serve(ADDRESS.parse()?).await?;
    Ok(())
}
