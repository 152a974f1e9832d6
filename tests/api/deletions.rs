//! Deletion of messages, for the caller and for everyone, as both members see it.

use proto::chat::{
    v1 as pb,
    v1::{DeletionEvent, subscribe_response::Event},
};

use super::{
    node::Node,
    person::{Person, next, up_to_heartbeat},
};

/// The conversation as a person sees it, oldest first: `-` is a tombstone.
async fn sees(person: &mut Person, partner: &str) -> String {
    let page = person.read(partner).await;
    let text = |message: &pb::Message| match message.deleted {
        true => {
            assert_eq!(message.body, "");
            "-".to_owned()
        }
        false => message.body.clone(),
    };
    assert_eq!(page.total_count, page.messages.len() as u64);
    page.messages.iter().rev().map(text).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_member_sees_what_it_should() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut ids = Vec::new();
    for body in ["a1", "a2", "a3"] {
        ids.push(alice.send("bob", body).await.message_id);
    }
    let sent = bob.send("alice", "b4").await;
    ids.push(sent.message_id);
    // Hidden by one member: only for that one, also in the list of partners.
    assert_eq!(alice.delete(&[ids[0], ids[3]], false).await, (2, 0));
    assert_eq!(
        (sees(&mut alice, "bob").await.as_str(), sees(&mut bob, "alice").await.as_str()),
        ("a2 a3", "a1 a2 a3 b4")
    );
    assert_eq!(alice.partners().await[0].last_message.as_ref().map(|last| last.body.as_str()), Some("a3"));
    assert_eq!(bob.partners().await[0].last_message.as_ref().map(|last| last.body.as_str()), Some("b4"));
    // Again: there is nothing left to hide.
    assert_eq!(alice.delete(&[ids[0], ids[3]], false).await, (0, 2));
    // For everyone: only the sender may, and messages that the other has hidden stay hidden.
    assert_eq!(bob.delete(&[ids[1]], true).await, (0, 1));
    assert_eq!(alice.delete(&[ids[0], ids[1]], true).await, (2, 0));
    assert_eq!((sees(&mut alice, "bob").await.as_str(), sees(&mut bob, "alice").await.as_str()), ("- a3", "- - a3 b4"));
    assert_eq!(alice.delete(&[ids[1]], true).await, (0, 1));
    // A tombstone can be hidden.
    assert_eq!(bob.delete(&[ids[0]], false).await, (1, 0));
    assert_eq!(sees(&mut bob, "alice").await, "- a3 b4");
    // Later messages do not reuse the seqs.
    assert_eq!(bob.send("alice", "b5").await.seq, 5);
    assert_eq!(
        (sees(&mut alice, "bob").await.as_str(), sees(&mut bob, "alice").await.as_str()),
        ("- a3 b5", "- a3 b4 b5")
    );
    // A partner stays listed when all messages are hidden.
    let all: Vec<u64> = bob.read("alice").await.messages.iter().map(|message| message.message_id).collect();
    assert_eq!(bob.delete(&all, false).await, (4, 0));
    let partners = bob.partners().await;
    assert_eq!((partners.len(), partners[0].last_seq, partners[0].last_message.is_some()), (1, 5, false));
    assert_eq!(partners[0].unread_count, 0);
}

#[tokio::test]
async fn those_who_should_know_are_told() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let one = alice.send("bob", "one").await;
    let two = alice.send("bob", "two").await;
    let mut streams = (alice.subscribe(Some(two.revision)).await, bob.subscribe(Some(two.revision)).await);
    up_to_heartbeat(&mut streams.0).await;
    up_to_heartbeat(&mut streams.1).await;
    bob.delete(&[one.message_id], false).await;
    alice.delete(&[two.message_id, one.message_id], true).await;
    let deletion = |seqs: &[u64], for_everyone| {
        Some(Event::Deletion(DeletionEvent { conversation_id: one.conversation_id, seqs: seqs.into(), for_everyone }))
    };
    // Only Bob's devices get the event for what Bob hides.
    assert_eq!(next(&mut streams.1).await.event, deletion(&[1], false));
    for stream in [&mut streams.0, &mut streams.1] {
        assert_eq!(next(stream).await.event, deletion(&[1, 2], true));
    }
}
