//! Subscriptions: the first events, resuming at every revision, limits, and how they end.

use proto::chat::{v1 as pb, v1::subscribe_response::Event};
use rustix::process::Signal;
use tonic::{Code, Streaming};

use super::{
    node::Node,
    person::{Person, end, next, refusal, refused, up_to_heartbeat},
};

const PER_ACCOUNT_MAX: usize = 64;

/// Creates a conversation with every kind of event. Returns the last revision.
async fn history(alice: &mut Person, bob: &mut Person) -> u64 {
    let mut ids = Vec::new();
    for i in 0..6 {
        ids.push(alice.send("bob", &format!("a{i}")).await);
        ids.push(bob.send("alice", &format!("b{i}")).await);
        bob.acknowledge(ids[0].conversation_id, 2 * i + 1).await;
        alice.mark_read(ids[0].conversation_id, 2 * i + 2).await;
    }
    alice.send("alice", "a note").await;
    alice.delete(&[ids[0].message_id, ids[1].message_id], false).await;
    bob.delete(&[ids[2].message_id], false).await;
    bob.delete(&[ids[3].message_id, ids[5].message_id], true).await;
    alice.send("bob", "the last").await.revision
}

async fn after(person: &mut Person, revision: u64) -> (Vec<pb::SubscribeResponse>, u64) {
    let mut stream = person.subscribe(Some(revision)).await;
    up_to_heartbeat(&mut stream).await
}

fn key(event: &Event) -> Option<(u64, String)> {
    match event {
        Event::Receipt(receipt) => Some((receipt.conversation_id, receipt.member.clone())),
        _ => None,
    }
}

/// The revisions of a live stream's events that are sent again when they are read later. Receipts are watermarks, so
/// only the newest of each member is.
fn as_read_later(live: &[pb::SubscribeResponse], after: u64) -> Vec<u64> {
    let later = |event: &pb::SubscribeResponse| {
        let receipt = event.event.as_ref().and_then(key);
        let newer = |other: &&pb::SubscribeResponse| {
            other.revision > event.revision && other.event.as_ref().and_then(key) == receipt
        };
        receipt.is_some() && live.iter().any(|other| newer(&other))
    };
    live.iter().filter(|event| event.revision > after && !later(event)).map(|event| event.revision).collect()
}

#[tokio::test]
async fn a_stream_resumed_at_any_revision_gives_exactly_what_comes_after() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut carol = Person::join(&node, "carol").await;
    let mut streams = [alice.subscribe(Some(0)).await, bob.subscribe(Some(0)).await];
    for stream in &mut streams {
        assert!(up_to_heartbeat(stream).await.0.is_empty());
    }
    // Carol does not appear in the events of the others.
    carol.send("carol", "nobody's business").await;
    let last = history(&mut alice, &mut bob).await;
    for (person, stream) in [&mut alice, &mut bob].into_iter().zip(&mut streams) {
        let mut live: Vec<pb::SubscribeResponse> = Vec::new();
        while live.last().is_none_or(|event| event.revision < last) {
            live.push(next(stream).await);
        }
        assert!(live.is_sorted_by(|a, b| a.revision < b.revision));
        for revision in 0..=last {
            let (events, heartbeat) = after(person, revision).await;
            assert_eq!(heartbeat, last);
            let revisions: Vec<_> = events.iter().map(|event| event.revision).collect();
            assert_eq!(revisions, as_read_later(&live, revision), "{} after {revision}", person.name);
        }
    }
}

#[tokio::test]
async fn a_stream_resumed_while_others_write_has_no_gap_and_no_repeat() {
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    const MESSAGES: usize = 600;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut alice = alice.clone();
            tokio::spawn(async move {
                for i in 0..MESSAGES / 4 {
                    alice.send("bob", &format!("{writer}.{i}")).await;
                }
            })
        })
        .collect();
    let (mut seqs, mut cursor) = (Vec::new(), 0);
    'all: loop {
        let mut stream = bob.subscribe(Some(cursor)).await;
        // Reads a few events at a time, and then simulates a lost connection.
        for _ in 0..25 {
            let response = next(&mut stream).await;
            assert!(response.revision >= cursor);
            cursor = response.revision;
            if let Some(Event::Message(pb::MessageEvent { message: Some(message), .. })) = response.event {
                seqs.push(message.seq);
            }
            if seqs.len() == MESSAGES {
                break 'all;
            }
        }
    }
    assert_eq!(seqs, (1..=MESSAGES as u64).collect::<Vec<_>>());
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_first() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let conversation = alice.send("bob", "one").await.conversation_id;
    alice.send("bob", "two").await;
    let mut last = alice.send("bob", "three").await.revision;
    for (acknowledged, expected) in [(0, &[1, 2, 3][..]), (2, &[3]), (3, &[])] {
        if acknowledged > 0 {
            bob.acknowledge(conversation, acknowledged).await;
            last += 1;
        }
        let mut stream = bob.subscribe(None).await;
        let (events, heartbeat) = up_to_heartbeat(&mut stream).await;
        assert!(events.iter().all(|event| event.revision == 0), "no cursor yet");
        assert_eq!((seqs(&events), heartbeat), (expected.to_vec(), last));
    }
}

fn seqs(events: &[pb::SubscribeResponse]) -> Vec<u64> {
    let seq = |event: &pb::SubscribeResponse| match &event.event {
        Some(Event::Message(message)) => message.message.as_ref().map(|message| message.seq),
        _ => None,
    };
    events.iter().filter_map(seq).collect()
}

#[tokio::test]
async fn an_account_has_a_limited_number_of_streams() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut streams: Vec<Streaming<_>> = Vec::new();
    for _ in 0..PER_ACCOUNT_MAX {
        let mut stream = alice.subscribe(Some(0)).await;
        up_to_heartbeat(&mut stream).await;
        streams.push(stream);
    }
    let one_more = alice.try_subscribe(None).await;
    refused(one_more, Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", "");
    bob.subscribe(None).await;
    // All of them work, and the end of one makes room for another.
    let sent = bob.send("alice", "to all").await;
    for stream in &mut streams {
        assert_eq!(next(stream).await.revision, sent.revision);
    }
    streams.pop();
    let deadline = tokio::time::Instant::now() + super::node::PATIENCE;
    while alice.try_subscribe(None).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "there is no room again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_cursor_from_the_future_is_refused() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let now = alice.send("alice", "hello").await.revision;
    alice.subscribe(Some(now)).await;
    for future in [now + 1, 1 << 40, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
        refused(alice.try_subscribe(Some(future)).await, Code::OutOfRange, "REVISION_IN_FUTURE", "");
    }
    // With a short deadline, the node can only answer that it does not have the revision. There is a leader.
    let mut hasty = alice.ask(pb::SubscribeRequest { after_revision: Some(now + 1), consistency: None });
    hasty.set_timeout(std::time::Duration::from_millis(500));
    let answer = alice.chat.subscribe(hasty).await.map(|_| tonic::Response::new(()));
    refused(answer, Code::DeadlineExceeded, "REVISION_NOT_REACHED", "");
}

#[tokio::test]
async fn a_terminal_that_is_closed_stops_the_node_in_order() {
    let mut node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut stream = alice.subscribe(None).await;
    up_to_heartbeat(&mut stream).await;
    let (status, ended) = tokio::join!(end(&mut stream), node.end_with(Signal::HUP));
    assert_eq!(refusal(&status).1, "NODE_STOPPING");
    assert!(ended.success(), "{ended}\n{}", node.log());
}
