//! Traces: one per message, across the nodes; and the behaviour without a working collector.

use std::{collections::BTreeMap, time::Duration};

use client::Options;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use proto::chat::v1::{self as types, chat_service_client::ChatServiceClient, subscribe_response::Event};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_types::StatusExt as _;
use trace::TraceContext;
use uuid::Uuid;

use support::{Cluster, Collector, Direct, PASSWORD, eventually};

/// A client with its own trace context.
struct Caller {
    client: ChatServiceClient<Channel>,
    token: String,
}

impl Caller {
    async fn new(cluster: &Cluster, node: usize, token: &str) -> Self {
        let client = ChatServiceClient::connect(format!("http://{}", cluster[node].grpc)).await.unwrap();
        Self { client, token: token.to_owned() }
    }

    fn request<T>(&self, message: T, trace: Option<TraceContext>) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        if let Some(trace) = trace {
            request.metadata_mut().insert("traceparent", trace.to_string().parse().unwrap());
        }
        request
    }

    async fn send(
        &mut self,
        recipient: &str,
        trace: Option<TraceContext>,
    ) -> Result<Response<types::SendMessageResponse>, Status> {
        let request = types::SendMessageRequest {
            to: Some(types::send_message_request::To::Recipient(recipient.to_owned())),
            body: "hello".to_owned(),
            client_message_id: Uuid::new_v4().to_string(),
        };
        let request = self.request(request, trace);
        self.client.send_message(request).await
    }
}

fn context(trace_id: u128, sampled: bool) -> TraceContext {
    TraceContext::new(trace_id, 0xABCD, sampled).unwrap()
}

/// The trace that the response names.
fn trace_of<T>(response: &Response<T>) -> TraceContext {
    response.metadata().get("traceresponse").expect("it is traced").to_str().unwrap().parse().unwrap()
}

fn name_id(span: &Span) -> u64 {
    u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap())
}

fn trace_to(cluster: &mut Cluster, collector: &str, sampler: &str) {
    cluster.set_all("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{collector}"));
    cluster.set_all("OTEL_BSP_SCHEDULE_DELAY", "50");
    cluster.set_all("OTEL_TRACES_SAMPLER", sampler);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_follows_a_message_across_the_nodes() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::prepared(5);
    // Only calls whose caller requests it are traced.
    trace_to(&mut cluster, &collector.address.to_string(), "parentbased_always_off");
    cluster.start_all().await;
    let (_alice, alice_token) = cluster.register("alice").await;
    let (_bob, bob_token) = cluster.register("bob").await;
    let leader = cluster.leader().await;
    cluster.level(&alice_token, 0).await;
    cluster.level(&bob_token, 0).await;
    let others: Vec<usize> = (0..5).filter(|node| *node != leader).collect();
    let (follower, third, fourth) = (others[0], others[1], others[2]);

    let mut alice = Caller::new(&cluster, follower, &alice_token).await;
    let mut bob = Caller::new(&cluster, third, &bob_token).await;
    let request = bob.request(types::SubscribeRequest { after_revision: None, consistency: None }, None);
    let mut events = bob.client.subscribe(request).await.unwrap().into_inner();
    // After the first heartbeat, all events are live.
    while !matches!(events.message().await.unwrap().unwrap().event, Some(Event::Heartbeat(_))) {}

    // Neither the calls above nor a call that its caller does not sample are recorded.
    let unsampled = alice.send("bob", Some(context(5, false))).await.unwrap();
    assert!(unsampled.metadata().get("traceresponse").is_none(), "there is nothing to look for");
    let sent = alice.send("bob", Some(context(7, true))).await.unwrap();
    let answer = trace_of(&sent);
    assert_eq!((answer.trace_id(), answer.is_sampled()), (7, true));
    let sent = sent.into_inner();

    let mut pushed = BTreeMap::new();
    while !pushed.contains_key(&sent.message_id) {
        let event = events.message().await.unwrap().unwrap();
        if let Some(Event::Message(types::MessageEvent { message: Some(message), .. })) = event.event {
            pushed.insert(message.message_id, event.traceparent);
        }
    }
    assert_eq!(pushed[&unsampled.get_ref().message_id], "");
    let pushed: TraceContext = pushed[&sent.message_id].parse().unwrap();
    assert_eq!((pushed.trace_id(), pushed.is_sampled()), (7, true));
    // Acknowledged through another node, by a caller that does not trace.
    let mut elsewhere = Caller::new(&cluster, fourth, &bob_token).await;
    let receipts = vec![types::DeliveryReceipt { conversation_id: sent.conversation_id, up_to_seq: sent.seq }];
    let request = elsewhere.request(types::AcknowledgeDeliveryRequest { receipts }, None);
    elsewhere.client.acknowledge_delivery(request).await.unwrap();

    let name = |node: usize| cluster[node].name.clone();
    let everywhere = ["log.write", "log.fsync", "raft.commit", "state.apply"];
    let mut expected: Vec<(String, String)> = vec![
        ("/chat.v1.ChatService/SendMessage".trim_start_matches('/').into(), name(follower)),
        ("raft.propose".into(), name(follower)),
        ("raft.queue".into(), name(follower)),
        ("raft.forward".into(), name(follower)),
        ("raft.propose".into(), name(leader)),
        ("raft.queue".into(), name(leader)),
        ("delivery.push".into(), name(third)),
        ("delivery.acknowledge".into(), name(third)),
    ];
    expected.extend((0..5).flat_map(|node| everywhere.map(|step| (step.into(), name(node)))));
    expected.extend(others.iter().map(|_| ("raft.replicate".into(), name(leader))));
    expected.sort();
    let spans = eventually("all spans of the trace", async || {
        let spans = collector.of(7);
        let mut names: Vec<_> = spans.iter().map(|taken| (taken.span.name.clone(), taken.node.clone())).collect();
        names.sort();
        if names == expected { Ok(spans) } else { Err(format!("{names:#?}\ninstead of {expected:#?}")) }
    })
    .await;

    // Connected: from each span, the parents lead to the client's own span.
    let by_id: BTreeMap<u64, &Span> = spans.iter().map(|taken| (name_id(&taken.span), &taken.span)).collect();
    for taken in &spans {
        let (mut at, mut way) = (&taken.span, vec![taken.span.name.as_str()]);
        while at.parent_span_id != 0xABCD_u64.to_be_bytes() {
            let parent = u64::from_be_bytes(at.parent_span_id.as_slice().try_into().unwrap());
            at = by_id.get(&parent).unwrap_or_else(|| panic!("{way:?} leads nowhere"));
            way.push(&at.name);
            assert!(way.len() <= 5, "{way:?}");
        }
        assert_eq!(way.last(), Some(&"chat.v1.ChatService/SendMessage"), "{way:?}");
        let span = &taken.span;
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert!(span.status.as_ref().is_none_or(|status| status.message.is_empty()), "{span:?}");
    }
    let of = |step: &str| spans.iter().filter(move |taken| taken.span.name == step).collect::<Vec<_>>();
    let peers = |step| of(step).iter().map(|taken| taken.text("chat.peer").unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(peers("raft.forward"), [name(leader)]);
    let mut replicated_to = peers("raft.replicate");
    replicated_to.sort();
    assert_eq!(replicated_to, others.iter().map(|node| name(*node)).collect::<Vec<_>>());
    let call = of("chat.v1.ChatService/SendMessage")[0];
    assert_eq!(call.span.kind(), SpanKind::Server);
    assert_eq!(call.text("rpc.response.status_code"), Some("OK"));

    let strangers: Vec<_> =
        collector.taken().into_iter().filter(|taken| taken.span.trace_id != 7_u128.to_be_bytes()).collect();
    assert!(strangers.is_empty(), "nobody asked for {strangers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_has_the_id_of_its_trace_with_tracing_or_without() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::prepared(1);
    trace_to(&mut cluster, &collector.address.to_string(), "always_on");
    cluster.start_all().await;
    let (_alice, token) = cluster.register("alice").await;
    let mut alice = Caller::new(&cluster, 0, &token).await;
    let id = |status: &Status| status.get_error_details().request_info().map(|info| info.request_id.clone());

    let refused = alice.send("nobody", None).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let trace_id = u128::from_str_radix(&id(&refused).expect("a trace of its own"), 16).unwrap();
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "USER_UNKNOWN", "the rest is still there");
    eventually("the spans of the refused call", async || {
        let spans = collector.of(trace_id);
        let call = spans.iter().find(|taken| taken.span.name.ends_with("/SendMessage")).ok_or("not yet")?;
        assert_eq!(call.text("rpc.response.status_code"), Some("NOT_FOUND"));
        assert_eq!(call.text("error.type"), None, "the caller is to blame");
        Ok(())
    })
    .await;
    // The client library supports it too: `Options::trace` names the trace of its calls.
    let options = Options { trace: Some(context(13, false)), ..Options::default() };
    let library = cluster.client_with(options).await.with_token(&token).unwrap();
    let refused = library.send_message("nobody", "hello").await.unwrap_err();
    assert_eq!(refused.trace_id, Some(context(13, false).trace_id_text()));
    // Also in the trailers of a stream.
    let request =
        alice.request(types::SubscribeRequest { after_revision: None, consistency: None }, Some(context(9, true)));
    let mut events = alice.client.subscribe(request).await.unwrap().into_inner();
    Direct::new(cluster[0].grpc, &token).logout().await.unwrap();
    let ended = loop {
        if let Err(ended) = events.message().await {
            break ended;
        }
    };
    assert_eq!((ended.code(), id(&ended)), (Code::Unauthenticated, Some(context(9, true).trace_id_text())));

    // A node that does not trace forwards the context that it gets.
    cluster[0].kill();
    cluster.set_all("OTEL_SDK_DISABLED", "true");
    cluster.restart(0).await;
    let token = cluster.direct(0, "").login("alice", PASSWORD).await.unwrap().token;
    let mut alice = Caller::new(&cluster, 0, &token).await;
    assert_eq!(id(&alice.send("nobody", None).await.unwrap_err()), None);
    let refused = alice.send("nobody", Some(context(11, false))).await.unwrap_err();
    assert_eq!(id(&refused), Some(context(11, false).trace_id_text()));
    assert!(alice.send("alice", Some(context(11, true))).await.unwrap().metadata().get("traceresponse").is_none());
}

/// Asserts that a broken collector costs spans, and nothing else.
async fn nobody_takes_spans(endpoint: String) {
    let mut cluster = Cluster::prepared(1);
    trace_to(&mut cluster, &endpoint, "always_on");
    cluster.set_all("OTEL_BSP_MAX_QUEUE_SIZE", "64");
    cluster.set_all("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16");
    cluster.set_all("OTEL_EXPORTER_OTLP_TIMEOUT", "200");
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    for _ in 0..50 {
        alice.send_message("alice", "hello").await.unwrap();
    }
    eventually("lost spans are counted", async || {
        let ended = cluster[0].metric("chat_trace_spans_total").await;
        let failed = cluster[0].metric("chat_trace_spans_failed_total").await;
        // Seven spans for each send: more than the queue and a batch hold. Spans that found no room are not counted as
        // failed.
        if ended >= 350.0 && failed >= 16.0 { Ok(()) } else { Err(format!("{ended} ended, {failed} failed")) }
    })
    .await;
    assert!(cluster[0].metric("chat_trace_spans_exported_total").await < 1.0);
    cluster[0].logged("Spans are lost").await;
    cluster[0].terminate();
    let ended = tokio::time::timeout(Duration::from_secs(20), cluster[0].ended()).await.expect("it stops");
    assert!(ended.success(), "{}", cluster[0].log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_holds_up_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    nobody_takes_spans(address.to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_nothing() {
    // Connections stay in its backlog, because they are never accepted.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    nobody_takes_spans(listener.local_addr().unwrap().to_string()).await;
    drop(listener);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_answers_nonsense_holds_up_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let nonsense = axum::Router::new().fallback(async || {
        let headers = [("content-type", "application/grpc"), ("grpc-status", "3"), ("grpc-status-details-bin", "}")];
        (headers, "")
    });
    let server = tonic::transport::Server::builder().add_routes(nonsense.into());
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    nobody_takes_spans(address.to_string()).await;
}
