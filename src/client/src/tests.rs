//! The client against fake nodes: retries, choice of nodes, reported errors.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{
    Client, ClientError, EventKind, EventStream, Options,
    fake::{Fake, OnSend, failure, heartbeat, message, receipt},
};

const MS: Duration = Duration::from_millis(1);

fn options() -> Options {
    Options { attempt_timeout: 100 * MS, deadline: Duration::from_secs(5), ..Options::default() }
}

/// Connects a client that knows only the last node's address.
async fn client(nodes: &[Fake], options: Options) -> Client {
    let given = nodes.last().expect("a node").address.clone();
    Client::connect([given], options).await.expect("the node answers")
}

async fn send(client: &Client) -> Result<super::Sent, ClientError> {
    client.send_message("bob", "hello").await
}

#[tokio::test]
async fn goes_to_the_leader_that_the_given_node_names() {
    let nodes = Fake::cluster(3).await;
    let client = client(&nodes, options()).await;
    assert_eq!(client.known_leader().as_deref(), Some(nodes[0].address.as_str()));
    let sent = send(&client).await.expect("sent");
    let expected = (nodes[0].address.clone(), sent.client_message_id.to_string());
    assert_eq!(nodes[0].with(|shared| shared.sends.clone()), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_used_however_far_away_it_is() {
    // The largest round trip is that of a geostationary satellite with a busy uplink. All use the default timeouts.
    for round_trip in [70, 299, 320, 700, 1_500] {
        let (nodes, dialer) = Fake::far_cluster(5, round_trip * MS);
        let began = Instant::now();
        let client = Client::connect([nodes[4].address.clone()], Options { dialer, ..Options::default() }).await;
        let client = client.unwrap_or_else(|error| panic!("{round_trip} ms: {error}"));
        assert_eq!(client.known_leader().as_deref(), Some("far:0"), "{round_trip} ms");
        let connected = began.elapsed();
        let sent = send(&client).await.unwrap_or_else(|error| panic!("{round_trip} ms: {error}"));
        assert!(!sent.repeated, "{round_trip} ms: the first attempt was given up although it was answered");
        let took = (began.elapsed() - connected, connected);
        // Budget for connecting: one connection and the list, then connections to all nodes and the leader query; then
        // the send.
        assert!(took.0 <= 2 * round_trip * MS && took.1 <= 5 * round_trip * MS + 500 * MS, "{round_trip} ms: {took:?}");
    }
}

#[tokio::test]
async fn a_retry_keeps_the_id_and_is_stored_once() {
    let nodes = Fake::cluster(3).await;
    let client = client(&nodes, options()).await;
    nodes[0].next_send(OnSend::StoreAndFail(failure(Code::DeadlineExceeded, "OUTCOME_UNKNOWN")));
    nodes[0].next_send(OnSend::Fail(failure(Code::Unavailable, "NO_LEADER")));
    let sent = send(&client).await.expect("sent");
    assert!(sent.repeated, "the first attempt had stored it");
    assert_eq!(sent.client_message_id.get_version_num(), 7);
    let sends = nodes[0].with(|shared| shared.sends.clone());
    assert!(sends.len() >= 2, "{sends:?}");
    assert!(sends.iter().all(|(_, id)| *id == sent.client_message_id.to_string()), "{sends:?}");
    let second = send(&client).await.expect("sent");
    assert_ne!(second.client_message_id, sent.client_message_id);
    assert_eq!((sent.seq, second.seq), (1, 2));
}

#[tokio::test]
async fn the_id_of_the_caller_is_used() {
    let nodes = Fake::cluster(1).await;
    let client = client(&nodes, options()).await;
    let id = Uuid::now_v7();
    let first = client.send_message_with_id(id, "bob", "hello").await.expect("sent");
    let again = client.send_message_with_id(id, "bob", "hello").await.expect("sent");
    assert_eq!((first.repeated, again.repeated, first.message_id), (false, true, again.message_id));
}

#[tokio::test]
async fn follows_the_leader_when_it_dies() {
    let nodes = Fake::cluster(3).await;
    let client = client(&nodes, options()).await;
    send(&client).await.expect("sent");
    nodes[0].kill();
    nodes[1].with(|shared| shared.leader = Some((nodes[1].address.clone(), 2)));
    let sent = send(&client).await.expect("sent");
    assert_eq!(sent.seq, 2);
    send(&client).await.expect("sent");
    assert_eq!(client.known_leader().as_deref(), Some(nodes[1].address.as_str()));
    let last = nodes[1].with(|shared| shared.sends.last().cloned()).expect("a send");
    assert_eq!(last.0, nodes[1].address);
}

#[tokio::test]
async fn a_node_that_hangs_costs_one_attempt() {
    let nodes = Fake::cluster(3).await;
    let client = client(&nodes, options()).await;
    nodes[0].next_send(OnSend::Hang);
    nodes[1].with(|shared| shared.leader = Some((nodes[1].address.clone(), 2)));
    let sent = send(&client).await.expect("sent elsewhere");
    let sends = nodes[0].with(|shared| shared.sends.clone());
    assert_eq!(sends.len(), 2, "{sends:?}");
    assert_eq!(sends[1], (nodes[1].address.clone(), sent.client_message_id.to_string()));
}

#[tokio::test]
async fn a_refusal_comes_back_at_once_with_its_reason() {
    let nodes = Fake::cluster(1).await;
    let client = client(&nodes, options()).await;
    nodes[0].next_send(OnSend::Fail(failure(Code::NotFound, "USER_UNKNOWN")));
    let error = send(&client).await.expect_err("refused");
    assert!(error.has_reason("USER_UNKNOWN") && !error.outcome_unknown, "{error:?}");
    assert_eq!(nodes[0].with(|shared| shared.sends.len()), 1);
    let error = client.send_message("bob", &"x".repeat(10 << 20)).await.expect_err("too long");
    assert_eq!((error.code, error.field.as_deref()), (Code::InvalidArgument, Some("body")));
}

#[tokio::test]
async fn says_whether_anything_may_have_been_applied() {
    let nodes = Fake::cluster(1).await;
    // The last attempt starts early enough for an answer.
    let patient = client(&nodes, Options { deadline: 1000 * MS, attempt_timeout: 800 * MS, ..options() }).await;
    for _ in 0..200 {
        nodes[0].next_send(OnSend::Fail(failure(Code::Unavailable, "NO_LEADER")));
    }
    let error = send(&patient).await.expect_err("no leader");
    assert!(error.is_unavailable() && error.has_reason("NO_LEADER"), "{error:?}");

    let client = client(&nodes, Options { deadline: 300 * MS, ..options() }).await;
    nodes[0].on_send.lock().expect("lock").clear();
    for _ in 0..100 {
        nodes[0].next_send(OnSend::Hang);
    }
    let error = send(&client).await.expect_err("no answer");
    assert!(error.outcome_unknown && !error.is_unavailable(), "{error:?}");

    nodes[0].kill();
    let options = Options { deadline: 300 * MS, ..options() };
    let error = Client::connect([nodes[0].address.clone()], options.clone()).await.err().expect("nobody there");
    assert!(error.is_unavailable(), "{error:?}");

    // The answer of one node is reported, and not the silence of another one, which is known later.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let addresses = [nodes[0].address.clone(), silent.local_addr().expect("bound").to_string()];
    let error = Client::connect(addresses, options.clone()).await.err().expect("nobody there");
    assert!(error.is_unavailable() && error.message.contains("Connection refused"), "{error:?}");
    let alone = [silent.local_addr().expect("bound").to_string()];
    let error = Client::connect(alone, options).await.err().expect("nobody there");
    assert!(error.is_unavailable() && error.message.contains("did not answer"), "{error:?}");
}

#[tokio::test]
async fn a_refused_connection_leaves_no_unknown_outcome() {
    let nodes = Fake::cluster(1).await;
    let client = client(&nodes, Options { deadline: 300 * MS, ..options() }).await;
    nodes[0].kill();
    // The first call may still use the connection while it breaks.
    let _ = send(&client).await;
    let error = send(&client).await.expect_err("nobody there");
    assert!(error.is_unavailable(), "{error:?}");
}

#[tokio::test]
async fn the_token_goes_with_every_call_after_login() {
    let nodes = Fake::cluster(1).await;
    let client = client(&nodes, options()).await;
    send(&client).await.expect("the fake takes it");
    client.login("alice", "password").await.expect("logged in");
    send(&client).await.expect("sent");
    let other = client.with_token("other").expect("a fine token");
    send(&other).await.expect("sent");
    client.logout(false).await.expect("logged out");
    send(&client).await.expect("sent");
    let tokens = nodes[0].with(|shared| std::mem::take(&mut shared.tokens));
    let expected = [None, Some("Bearer token-of-alice"), Some("Bearer other"), None];
    assert_eq!(tokens.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    assert!(client.with_token("line\nbreak").is_err());
}

async fn revisions(events: &mut EventStream, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    for _ in 0..count {
        seen.push(events.next().await.expect("open").expect("an event").revision);
    }
    seen
}

#[tokio::test]
async fn a_stream_resumes_after_what_it_has_seen() {
    let nodes = Fake::cluster(2).await;
    let stopping = || Err(failure(Code::Unavailable, "NODE_STOPPING"));
    nodes[0].with(|shared| {
        shared.streams.push_back(vec![Ok(message(3)), Ok(message(4)), stopping()]);
        shared.streams.push_back(vec![Ok(message(3)), Ok(message(4)), Ok(message(6)), Ok(heartbeat(9))]);
        shared.streams.push_back(vec![Ok(receipt(10)), Err(failure(Code::Aborted, "SLOW_SUBSCRIBER"))]);
        shared.streams.push_back(vec![Ok(receipt(10)), Ok(message(12)), Err(Status::internal("h2 broke"))]);
    });
    let client = client(&nodes, options()).await;
    let mut events = client.events(None);
    assert_eq!(revisions(&mut events, 5).await, [3, 4, 6, 10, 12]);
    assert_eq!(events.cursor(), Some(12));
    let asked = nodes[0].with(|shared| shared.subscriptions.clone());
    assert_eq!(asked[..4], [None, None, Some(9), Some(10)]);
}

#[tokio::test]
async fn a_stream_outlives_its_node() {
    let nodes = Fake::cluster(2).await;
    let mut open = vec![Ok(message(2))];
    nodes[0].with(|shared| shared.streams.push_back(std::mem::take(&mut open)));
    let client = client(&nodes, options()).await;
    let mut events = client.events(Some(1));
    assert_eq!(revisions(&mut events, 1).await, [2]);
    nodes[0].kill();
    nodes[1].with(|shared| {
        shared.leader = Some((nodes[1].address.clone(), 2));
        // The next subscription to any node gets the remaining event.
        shared.streams.push_back(vec![Ok(message(5))]);
    });
    assert_eq!(revisions(&mut events, 1).await, [5]);
}

#[tokio::test]
async fn a_silent_stream_is_opened_again() {
    let nodes = Fake::cluster(1).await;
    let client = client(&nodes, Options { heartbeat: 20 * MS, ..options() }).await;
    let mut events = client.events(Some(7));
    // The first subscription has no script and stays silent. A later one gets this script.
    while nodes[0].with(|shared| shared.subscriptions.is_empty()) {
        tokio::task::yield_now().await;
    }
    nodes[0].with(|shared| shared.streams.push_back(vec![Ok(message(8))]));
    assert_eq!(revisions(&mut events, 1).await, [8]);
    assert!(nodes[0].with(|shared| shared.subscriptions.len()) >= 2);
}

#[tokio::test]
async fn a_refused_subscription_ends_the_stream() {
    let nodes = Fake::cluster(1).await;
    let refusal = Err(failure(Code::Unauthenticated, "TOKEN_EXPIRED"));
    nodes[0].with(|shared| shared.streams.push_back(vec![Ok(message(3)), refusal]));
    let mut events = client(&nodes, options()).await.events(None);
    assert_eq!(revisions(&mut events, 1).await, [3]);
    let error = events.next().await.expect("an error").expect_err("the session is over");
    assert!(error.has_reason("TOKEN_EXPIRED"));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn what_was_returned_is_acknowledged_and_nothing_else() {
    let nodes = Fake::cluster(1).await;
    let mut own = message(5);
    if let Some(proto::chat::v1::subscribe_response::Event::Message(event)) = &mut own.event {
        event.message.as_mut().expect("a message").client_message_id = Uuid::now_v7().to_string();
    }
    nodes[0].with(|shared| shared.streams.push_back(vec![Ok(message(3)), Ok(message(4)), Ok(own), Ok(message(6))]));
    let client = client(&nodes, options()).await;
    let mut events = client.events(Some(0));
    for _ in 0..3 {
        let event = events.next().await.expect("open").expect("an event");
        assert!(matches!(event.kind, EventKind::Message(_)));
    }
    events.close().await;
    assert_eq!(nodes[0].acked.borrow().last(), Some(&(1, 4)), "up to 4: 5 is one's own, 6 was not returned");

    nodes[0].with(|shared| shared.streams.push_back(vec![Ok(message(9))]));
    let quiet = Options { acknowledge: false, ..options() };
    let mut events = self::client(&nodes, quiet).await.events(Some(6));
    assert_eq!(revisions(&mut events, 1).await, [9]);
    events.close().await;
    assert_eq!(nodes[0].acked.borrow().last(), Some(&(1, 4)));
}
