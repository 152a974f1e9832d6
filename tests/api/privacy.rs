//! The view of others on a person who hides reads and the use of sessions.

use proto::chat::{
    v1 as pb,
    v1::{MessageStatus, subscribe_response::Event},
};

use super::{
    node::Node,
    person::{Person, invalid, next, up_to_heartbeat},
};

async fn set(person: &mut Person, read_receipts: Option<bool>, session_activity: Option<bool>) -> u64 {
    let request = person.ask(pb::SetPrivacyRequest { read_receipts, session_activity });
    person.chat.set_privacy(request).await.expect("it is set").into_inner().revision
}

async fn settings(person: &mut Person) -> (bool, bool) {
    let request = person.ask(pb::GetPrivacyRequest {});
    let settings = person.chat.get_privacy(request).await.expect("it is read").into_inner();
    (settings.read_receipts, settings.session_activity)
}

async fn sessions(person: &mut Person) -> Vec<pb::Session> {
    let request = person.ask(pb::ListSessionsRequest {});
    person.chat.list_sessions(request).await.expect("they are listed").into_inner().sessions
}

/// The read watermark of `member` that `person` sees on the page and in the list, and the status of the newest message
/// there.
async fn seen(person: &mut Person, partner: &str, member: &str) -> (u64, u64, MessageStatus) {
    let (page, partners) = (person.read(partner).await, person.partners().await);
    let read = |members: &[pb::Member]| members.iter().find(|m| m.username == member).expect("a member").read_seq;
    let status = page.messages[0].status();
    assert_eq!(partners[0].last_message.as_ref().expect("a message").status(), status);
    (read(&page.members), read(&partners[0].members), status)
}

#[tokio::test]
async fn hidden_reads_are_told_to_nobody_else() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    assert_eq!(settings(&mut bob).await, (true, true));
    alice.send("bob", "one").await;
    let sent = alice.send("bob", "two").await;
    let conversation = sent.conversation_id;
    bob.acknowledge(conversation, 2).await;
    bob.mark_read(conversation, 1).await;
    let hidden_from = set(&mut bob, Some(false), None).await;
    assert_eq!(settings(&mut bob).await, (false, true));
    assert_eq!(set(&mut bob, Some(false), None).await, hidden_from, "nothing changes");

    let mut watching = alice.subscribe(Some(hidden_from)).await;
    let mut second = Person::log_in(bob.chat.clone(), "bob").await;
    let mut own = second.subscribe(Some(hidden_from)).await;
    up_to_heartbeat(&mut watching).await;
    up_to_heartbeat(&mut own).await;
    let marked = bob.mark_read(conversation, 2).await;
    assert_eq!((marked.read_seq, marked.unread_count), (2, 0));
    // The person's other device gets the event, and has the same counts.
    let response = next(&mut own).await;
    let Some(Event::Receipt(receipt)) = response.event else { panic!("not a receipt: {response:?}") };
    assert_eq!((receipt.member.as_str(), receipt.read_seq), ("bob", 2));
    assert_eq!(second.read("alice").await.unread_count, 0);
    // The sender still sees reads that were shown before.
    assert_eq!(seen(&mut alice, "bob", "bob").await, (1, 1, MessageStatus::Delivered));
    assert_eq!(seen(&mut bob, "alice", "bob").await, (2, 2, MessageStatus::Read));

    // The next event is the next message: there was none for the read. A resumed stream has none either.
    let third = alice.send("bob", "three").await;
    let response = next(&mut watching).await;
    assert!(matches!(&response.event, Some(Event::Message(_))), "{response:?}");
    let mut resumed = alice.subscribe(Some(hidden_from)).await;
    let (events, _) = up_to_heartbeat(&mut resumed).await;
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [third.revision]);
    let mut resumed = second.subscribe(Some(hidden_from)).await;
    let (events, _) = up_to_heartbeat(&mut resumed).await;
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [marked.revision, third.revision]);
    // A read that implies the delivery shows only the delivery.
    bob.mark_read(conversation, 3).await;
    let response = next(&mut watching).await;
    let Some(Event::Receipt(receipt)) = response.event else { panic!("not a receipt: {response:?}") };
    assert_eq!((receipt.delivered_seq, receipt.read_seq), (3, 1));
}

#[tokio::test]
async fn reads_are_mutual_and_earlier_ones_stay_hidden() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let conversation = alice.send("bob", "one").await.conversation_id;
    set(&mut bob, Some(false), None).await;
    bob.mark_read(conversation, 1).await;
    bob.send("alice", "two").await;
    // Alice hides nothing, but Bob, who hides his reads, does not see hers.
    alice.mark_read(conversation, 2).await;
    assert_eq!(seen(&mut bob, "alice", "alice").await, (0, 0, MessageStatus::Delivered));
    set(&mut bob, Some(true), None).await;
    assert_eq!(settings(&mut bob).await, (true, true));
    // A repeated read does not reveal the hidden one.
    bob.mark_read(conversation, 1).await;
    alice.mark_read(conversation, 2).await;
    assert_eq!(seen(&mut alice, "bob", "bob").await.0, 0);
    assert_eq!(seen(&mut bob, "alice", "alice").await, (0, 0, MessageStatus::Delivered));
    alice.send("bob", "three").await;
    bob.mark_read(conversation, 3).await;
    assert_eq!(seen(&mut alice, "bob", "bob").await, (3, 3, MessageStatus::Read));
    let request = bob.ask(pb::SetPrivacyRequest::default());
    invalid(bob.chat.set_privacy(request).await, "read_receipts");
}

#[tokio::test]
async fn without_activity_no_use_of_a_session_is_shown() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    Person::log_in(alice.chat.clone(), "alice").await;
    assert!(sessions(&mut alice).await.iter().all(|session| session.used_ms >= session.created_ms));
    set(&mut alice, None, Some(false)).await;
    let listed = sessions(&mut alice).await;
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|session| session.used_ms == 0 && session.created_ms > 0 && session.expires_at_ms > 0));
    assert_eq!(settings(&mut alice).await, (true, false));
    set(&mut alice, None, Some(true)).await;
    assert!(sessions(&mut alice).await.iter().all(|session| session.used_ms == session.created_ms));
}
