//! Hostile and abandoned connections. Each is closed or held back, the node's memory stays bounded, and requests of
//! other users work meanwhile.

use std::{net::SocketAddr, time::Duration};

use proto::chat::{v1 as pb, v1::subscribe_response::Event};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::{
    Code, Request,
    codegen::{http::uri::PathAndQuery, tokio_stream},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    node::{Node, soon, until},
    person::{Chat, PASSWORD, Person, message, new_id, next, refusal},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
/// A request takes milliseconds. On a busy machine this is still far from what a user would call stuck.
const NOTICEABLE: Duration = Duration::from_secs(5);

/// Sends `words`, and then nothing more.
async fn say(address: SocketAddr, words: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the port takes connections");
    // The reaction of the other side is checked later.
    let _ = stream.write_all(words).await;
    stream
}

/// Waits until the node has closed or reset the connection.
async fn cut_off(mut stream: TcpStream) {
    let read = async {
        let mut bytes = [0; 4096];
        while matches!(stream.read(&mut bytes).await, Ok(count) if count > 0) {}
    };
    soon("a connection is cut off", read).await;
}

/// Makes requests as another user, each with a time limit.
async fn others_notice_nothing(person: &mut Person, requests: usize) {
    for _ in 0..requests {
        let start = Instant::now();
        let own_name = person.name.clone();
        let sent = person.send(&own_name, "as if nothing were").await;
        assert_eq!(person.read(&own_name).await.last_seq, sent.seq);
        assert!(start.elapsed() < NOTICEABLE, "{:?}", start.elapsed());
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| uuid::Uuid::new_v4().into_bytes()).flatten().take(bytes).collect()
}

#[tokio::test]
async fn garbage_is_cut_off_on_both_ports() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    others_notice_nothing(&mut alice, 3).await;
    let (files, memory) = (node.open_files(), node.resident_bytes());
    let hello_of_tls = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &noise(505)].concat();
    let frames_of_noise = [PREFACE, SETTINGS, &noise(50_000)].concat();
    let frame_too_large = [PREFACE, SETTINGS, b"\xff\xff\xff\0\0\0\0\0\x01", &noise(1000)].concat();
    let no_stream_zero = [PREFACE, SETTINGS, b"\0\0\x05\0\0\0\0\0\0hello"].concat();
    let words: [&[u8]; 8] = [
        &noise(24),
        &noise(100_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\nxxxxxxxxxxxxxxxx",
        &hello_of_tls,
        &frames_of_noise,
        &frame_too_large,
        &no_stream_zero,
    ];
    for address in [node.grpc, node.peer] {
        let mut connections = Vec::new();
        for word in words.iter().cycle().take(80) {
            connections.push(say(address, word).await);
        }
        others_notice_nothing(&mut alice, 3).await;
        for connection in connections {
            cut_off(connection).await;
        }
    }
    until("the node has closed them all", || node.open_files() <= files + 2).await;
    let grown = node.resident_bytes().saturating_sub(memory);
    assert!(grown < 32 << 20, "{} KiB more", grown >> 10);
}

#[tokio::test]
async fn connections_that_fall_silent_are_cut_off() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let (files, memory) = (node.open_files(), node.resident_bytes());
    let mut silent = Vec::new();
    for i in 0..200 {
        let address = if i % 4 == 0 { node.peer } else { node.grpc };
        // Some send the beginning of a preface.
        silent.push(say(address, &PREFACE[..if i % 5 == 0 { 20 } else { 0 }]).await);
    }
    let mut half_open = Vec::new();
    for address in [node.grpc, node.peer] {
        for words in [&[PREFACE][..], &[PREFACE, SETTINGS], &[PREFACE, SETTINGS, b"\0\0\x20\x01"]] {
            half_open.push(say(address, &words.concat()).await);
        }
    }
    others_notice_nothing(&mut alice, 10).await;
    let grown = node.resident_bytes().saturating_sub(memory);
    assert!(grown < 32 << 20, "{} KiB more", grown >> 10);
    // The silent ones run into the time limit for the preface, the others into that of the keepalive.
    for connection in silent.into_iter().chain(half_open) {
        cut_off(connection).await;
    }
    others_notice_nothing(&mut alice, 3).await;
    until("the node has closed them all", || node.open_files() <= files + 2).await;
}

/// Time limit for a stop, which transfers leadership and closes files. Less than a wait for connections that never end.
const STOP_MAX: Duration = Duration::from_secs(6);
/// A socket that accepts no data for this long is full.
const FULL: Duration = Duration::from_secs(1);

#[tokio::test]
async fn nobody_who_is_silent_holds_up_a_stop() {
    let mut node = Node::start().await;
    let half_a_body: &[u8] = b"POST /chat.v1.ChatService/Login HTTP/1.1\r\nHost: localhost\r\n\
        Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let words = [b"", &PREFACE[..3], PREFACE, &[PREFACE, SETTINGS].concat(), b"GET /livez HTTP/1.1\r\nHo", half_a_body];
    let mut silent = Vec::new();
    let mut operators = Vec::new();
    for words in words {
        for address in [node.grpc, node.peer, node.web, node.metrics] {
            silent.push(say(address, words).await);
        }
        let mut operator = UnixStream::connect(node.admin().trim_start_matches("unix:")).await.expect("it listens");
        let _ = operator.write_all(words).await;
        operators.push(operator);
    }
    // A stream that never ends, and a caller that sends requests and reads no answers.
    let mut alice = Person::join(&node, "alice").await;
    let _stream = alice.subscribe(Some(0)).await;
    let mut health = HealthClient::new(node.channel().await);
    let _watched = health.watch(HealthCheckRequest { service: String::new() }).await.expect("it can be watched");
    let mut greedy = TcpStream::connect(node.web).await.expect("the port takes connections");
    let question = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", node.web);
    // Until the buffers of both sides are full.
    while timeout(FULL, greedy.write_all(question.repeat(100).as_bytes())).await.is_ok_and(|written| written.is_ok()) {}
    let start = Instant::now();
    let ended = node.end_with(Signal::TERM).await;
    assert!(ended.success(), "{ended}\n{}", node.log());
    assert!(start.elapsed() < STOP_MAX, "{:?}\n{}", start.elapsed(), node.log());
}

/// Starts calls whose message never arrives. Returns how each ended.
fn endless_requests(channel: &Channel, count: usize) -> JoinSet<Code> {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        calls.spawn(async move {
            grpc.ready().await.expect("connected");
            let codec = tonic_prost::ProstCodec::<pb::LoginRequest, pb::LoginResponse>::default();
            let path = PathAndQuery::from_static("/chat.v1.ChatService/Login");
            let never = tokio_stream::pending::<pb::LoginRequest>();
            let answer = grpc.client_streaming(Request::new(never), path, codec).await;
            answer.map(drop).expect_err("there is no request to answer").code()
        });
    }
    calls
}

#[tokio::test]
async fn requests_that_never_end_are_given_up() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let channel = node.channel().await;
    // The maximum number of concurrent calls of a connection.
    let mut calls = endless_requests(&channel, 256);
    others_notice_nothing(&mut alice, 10).await;
    while let Some(code) = soon("a request is given up", calls.join_next()).await {
        let code = code.unwrap();
        assert!(matches!(code, Code::Cancelled | Code::DeadlineExceeded), "{code:?}");
    }
    let mut on_the_same_connection = Chat::new(channel);
    super::person::log_in(&mut on_the_same_connection, "alice").await;
}

#[tokio::test]
async fn what_callers_alone_bring_about_is_no_fault_of_the_service() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    // Half a request, and then the connection is closed, or the call is cancelled.
    for _ in 0..3 {
        let channel = node.channel().await;
        let mut calls = endless_requests(&channel, 20);
        others_notice_nothing(&mut alice, 1).await;
        calls.abort_all();
        while calls.join_next().await.is_some() {}
        drop(channel);
    }
    // Half a request, for as long as the node waits.
    let channel = node.channel().await;
    let mut calls = endless_requests(&channel, 2);
    while soon("a request is given up", calls.join_next()).await.is_some() {}
    // A deadline that is too short, a revision that does not exist, a method that does not exist.
    // A password takes its time on every machine, by design; a message can be stored within a millisecond.
    let password = PASSWORD.to_owned();
    let mut hasty = Request::new(pb::LoginRequest { username: "alice".into(), password, device_token: String::new() });
    hasty.set_timeout(Duration::from_millis(1));
    alice.chat.login(hasty).await.expect_err("there was no time");
    let ahead = pb::ReadConsistency { level: Some(pb::read_consistency::Level::AtLeastRevision(u64::MAX)) };
    let mut ahead = alice.ask(pb::ListChatPartnersRequest { consistency: Some(ahead), ..Default::default() });
    ahead.set_timeout(Duration::from_secs(1));
    let status = alice.chat.list_chat_partners(ahead).await.expect_err("there is no such revision");
    assert_eq!(refusal(&status).1, "REVISION_NOT_REACHED");
    let mut grpc = tonic::client::Grpc::new(node.channel().await);
    grpc.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<pb::LoginRequest, pb::LoginResponse>::default();
    let nowhere = PathAndQuery::from_static("/chat.v1.ChatService/Shout");
    let answer = grpc.unary(Request::new(pb::LoginRequest::default()), nowhere, codec).await;
    assert_eq!(answer.expect_err("there is no such method").code(), Code::Unimplemented);

    let blamed = |who: &str| {
        let metrics = node.metrics();
        let is_it =
            |line: &&str| line.starts_with("chat_rpc_requests_total{") && line.contains(&format!("fault=\"{who}\""));
        metrics.lines().filter(is_it).map(str::to_owned).collect::<Vec<_>>()
    };
    until("all of them are counted", || node.metric("chat_rpc_in_flight{method=\"Login\"") == 0.0).await;
    assert_eq!(blamed("service"), [""; 0]);
    for code in ["CANCELLED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"] {
        assert!(blamed("caller").iter().any(|line| line.contains(code)), "{code} in {:?}", blamed("caller"));
    }
    assert!(!node.log().contains("A call failed"), "{}", node.log());
}

#[tokio::test]
async fn many_requests_on_one_connection_wait_their_turn() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let greedy = Person::join(&node, "greedy").await;
    let memory = node.resident_bytes();
    let mut sends = JoinSet::new();
    for i in 0..5000 {
        let mut greedy = greedy.clone();
        sends.spawn(async move { greedy.try_send(message("alice", &i.to_string(), &new_id())).await.map(drop) });
    }
    others_notice_nothing(&mut alice, 10).await;
    while let Some(sent) = soon("a send is answered", sends.join_next()).await {
        sent.unwrap().expect("all are stored");
    }
    // The same, without waiting for the answers.
    for _ in 0..20 {
        let mut abandoned = JoinSet::new();
        for _ in 0..500 {
            let mut greedy = greedy.clone();
            abandoned.spawn(async move { greedy.read("alice").await });
        }
        tokio::task::yield_now().await;
        abandoned.abort_all();
        while abandoned.join_next().await.is_some() {}
    }
    others_notice_nothing(&mut alice, 10).await;
    let grown = node.resident_bytes().saturating_sub(memory);
    assert!(grown < 128 << 20, "{} KiB more", grown >> 10);
    assert_eq!(alice.read("greedy").await.last_seq, 5000);
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_cut_and_can_be_resumed() {
    const MESSAGES: u64 = 20_000;
    const WRITERS: u64 = 200;
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut carol = Person::join(&node, "carol").await;
    // Small, so that unread data soon fills the node's buffers and not those of this process.
    let small_windows = Endpoint::from_shared(format!("http://{}", node.grpc))
        .expect("an address")
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(16 * 1024);
    bob.chat = Chat::new(small_windows.connect().await.expect("connected"));
    let mut stream = bob.subscribe(Some(0)).await;
    assert!(matches!(next(&mut stream).await.event, Some(Event::Heartbeat(_))));
    let memory = node.resident_bytes();
    let body = "x".repeat(500);
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (mut alice, body) = (alice.clone(), body.clone());
        writers.spawn(async move {
            for _ in 0..MESSAGES / WRITERS {
                alice.send("bob", &body).await;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
        others_notice_nothing(&mut carol, 1).await;
    }
    let grown = node.resident_bytes().saturating_sub(memory);
    assert!(grown < 96 << 20, "{} KiB more for {} KiB of messages", grown >> 10, (MESSAGES * 500) >> 10);
    until("the stream is cut", || node.metric("chat_slow_subscriber_cuts_total") == 1.0).await;
    until("and gone", || node.metric("chat_subscriptions") == 0.0).await;
    // Once the stream is read, it has its beginning without a gap, and then the reason of its end.
    let mut cursor = 0;
    let mut seen = 0;
    let status = loop {
        match soon("the stream ends", stream.message()).await {
            Ok(Some(response)) => {
                seen += 1;
                let Some(Event::Message(event)) = response.event else { panic!("only messages") };
                assert_eq!(event.message.map(|message| message.seq), Some(seen));
                cursor = response.revision;
            }
            Ok(None) => panic!("the stream ends without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status).1, "SLOW_SUBSCRIBER");
    assert!((1..MESSAGES).contains(&seen), "{seen} were sent");
    let mut stream = bob.subscribe(Some(cursor)).await;
    while seen < MESSAGES {
        let response = next(&mut stream).await;
        let Some(Event::Message(event)) = response.event else { continue };
        seen += 1;
        assert_eq!(event.message.map(|message| message.seq), Some(seen));
    }
}
