//! Sends and their retries, unread counts, receipts, notes.

use proto::chat::{
    v1 as pb,
    v1::{MessageStatus, read_conversation_request, send_message_request::To, subscribe_response::Event},
};
use tonic::Code;

use super::{
    node::Node,
    person::{Person, message, new_id, next, refused, up_to_heartbeat},
};

#[tokio::test]
async fn a_repeat_answers_the_first_outcome_and_stores_nothing() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let id = new_id();
    let first = alice.try_send(message("bob", "hello", &id)).await.unwrap().into_inner();
    assert!(!first.repeated);
    let upper = id.to_uppercase();
    let by_conversation =
        pb::SendMessageRequest { to: Some(To::ConversationId(first.conversation_id)), ..message("", "hello", &id) };
    for again in [message("bob", "hello", &id), message("bob", "hello", &upper), by_conversation] {
        let again = alice.try_send(again).await.unwrap().into_inner();
        assert_eq!(again, pb::SendMessageResponse { repeated: true, ..first });
    }
    // Another message under the same id is an error. The message of another account is not.
    for other in [message("bob", "goodbye", &id), message("alice", "hello", &id)] {
        refused(alice.try_send(other).await, Code::InvalidArgument, "CLIENT_MESSAGE_ID_REUSED", "client_message_id");
    }
    let theirs = bob.try_send(message("alice", "hello", &id)).await.unwrap().into_inner();
    assert_eq!((theirs.seq, theirs.repeated), (2, false));
    // A rejection is an outcome as well: it stays the same when the recipient is created later.
    let to_nobody = message("carol", "hello", &new_id());
    refused(alice.try_send(to_nobody.clone()).await, Code::NotFound, "USER_UNKNOWN", "");
    Person::join(&node, "carol").await;
    refused(alice.try_send(to_nobody).await, Code::NotFound, "USER_UNKNOWN", "");
    assert_eq!(alice.send("carol", "hello").await.seq, 1);
    let page = bob.read("alice").await;
    assert_eq!((page.total_count, page.last_seq), (2, 2));
    // The sender gets the id of its own messages only.
    let ids: Vec<_> = page.messages.iter().map(|message| message.client_message_id.as_str()).collect();
    assert_eq!(ids, [id.as_str(), ""]);
}

#[tokio::test]
async fn the_same_id_at_the_same_time_is_stored_once() {
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let request = message("bob", "hello", &new_id());
    let attempts = (0..50).map(|_| {
        let (mut alice, request) = (alice.clone(), request.clone());
        tokio::spawn(async move { alice.try_send(request).await.expect("stored").into_inner() })
    });
    let mut first = 0;
    let mut ids = std::collections::BTreeSet::new();
    for attempt in attempts.collect::<Vec<_>>() {
        let answer = attempt.await.unwrap();
        first += u32::from(!answer.repeated);
        ids.insert((answer.message_id, answer.seq, answer.time_ms));
    }
    assert_eq!((first, ids.len()), (1, 1));
    assert_eq!(bob.read("alice").await.total_count, 1);
}

#[tokio::test]
async fn unread_counts_are_of_others_messages_that_are_there() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut sent = Vec::new();
    for i in 0..5 {
        sent.push(alice.send("bob", &format!("message {i}")).await);
    }
    bob.send("alice", "one of my own does not count").await;
    let conversation = sent[0].conversation_id;
    let unread = async |bob: &mut Person| {
        let (page, partners) = (bob.read("alice").await, bob.partners().await);
        let login = super::person::log_in(&mut bob.chat, "bob").await;
        assert_eq!((page.unread_count, page.unread_count), (partners[0].unread_count, login.unread_count));
        page.unread_count
    };
    assert_eq!(unread(&mut bob).await, 5);
    assert_eq!(alice.read("bob").await.unread_count, 1);
    // Messages that are hidden, or deleted for everyone, are not unread any more.
    assert_eq!(bob.delete(&[sent[0].message_id], false).await, (1, 0));
    assert_eq!(unread(&mut bob).await, 4);
    assert_eq!(alice.delete(&[sent[1].message_id], true).await, (1, 0));
    assert_eq!(unread(&mut bob).await, 3);
    let marked = bob.mark_read(conversation, 3).await;
    assert_eq!((marked.read_seq, marked.unread_count), (3, 2));
    assert_eq!(unread(&mut bob).await, 2);
    // A smaller seq changes nothing; one beyond the end means all messages.
    let marked = bob.mark_read(conversation, 1).await;
    assert_eq!((marked.read_seq, marked.unread_count), (3, 2));
    let marked = bob.mark_read(conversation, u64::MAX).await;
    assert_eq!((marked.read_seq, marked.unread_count), (6, 0));
    alice.send("bob", "a new one").await;
    assert_eq!(unread(&mut bob).await, 1);
    let all = bob.mark_read(conversation, 0).await;
    assert_eq!((all.read_seq, all.unread_count), (7, 0));
}

#[tokio::test]
async fn receipts_only_move_forward_and_only_when_the_recipient_says_so() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let conversation = alice.send("bob", "one").await.conversation_id;
    alice.send("bob", "two").await;
    let last = alice.send("bob", "three").await;
    let mut watching = alice.subscribe(Some(last.revision)).await;
    up_to_heartbeat(&mut watching).await;
    let statuses = async |alice: &mut Person| {
        let page = alice.read("bob").await;
        page.messages.iter().rev().map(pb::Message::status).collect::<Vec<_>>()
    };
    // Neither a stream nor a read counts as delivery.
    let mut stream = bob.subscribe(None).await;
    assert_eq!(up_to_heartbeat(&mut stream).await.0.len(), 3);
    bob.read("alice").await;
    use MessageStatus::{Delivered, Read, Sent};
    assert_eq!(statuses(&mut alice).await, [Sent, Sent, Sent]);
    let mut seen = Vec::new();
    for (seq, read, expected) in [
        (2, false, [Delivered, Delivered, Sent]),
        (1, false, [Delivered, Delivered, Sent]),
        (1, true, [Read, Delivered, Sent]),
        (u64::MAX, false, [Read, Delivered, Delivered]),
        (1, true, [Read, Delivered, Delivered]),
        (3, true, [Read, Read, Read]),
        (0, false, [Read, Read, Read]),
        (1, false, [Read, Read, Read]),
    ] {
        match read {
            true => drop(bob.mark_read(conversation, seq).await),
            false => bob.acknowledge(conversation, seq).await,
        }
        assert_eq!(statuses(&mut alice).await, expected, "after {seq} {read}");
    }
    // Alice received a receipt for each step forward, and no others.
    alice.send("bob", "the end").await;
    loop {
        let response = next(&mut watching).await;
        match response.event {
            Some(Event::Receipt(receipt)) => {
                assert_eq!((receipt.member.as_str(), receipt.conversation_id), ("bob", conversation));
                seen.push((receipt.delivered_seq, receipt.read_seq));
            }
            Some(Event::Message(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [(2, 0), (2, 1), (3, 1), (3, 3)]);
}

#[tokio::test]
async fn notes_to_oneself_are_a_conversation_of_one() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let empty = alice.read("alice").await;
    assert_eq!((empty.conversation_id, empty.members.len(), empty.messages.len()), (0, 1, 0));
    let mut stream = alice.subscribe(None).await;
    up_to_heartbeat(&mut stream).await;
    let note = alice.send("alice", "buy milk").await;
    let Some(Event::Message(event)) = next(&mut stream).await.event else { panic!("my own note comes") };
    assert_eq!(event.members, ["alice"]);
    let page = alice.read("alice").await;
    assert_eq!((page.conversation_id, page.members.len(), page.unread_count), (note.conversation_id, 1, 0));
    assert_eq!((page.messages[0].status(), page.messages[0].body.as_str()), (MessageStatus::Read, "buy milk"));
    let partners = alice.partners().await;
    assert_eq!((partners.len(), partners[0].username.as_str(), partners[0].unread_count), (1, "alice", 0));
    assert_eq!(super::person::log_in(&mut alice.chat, "alice").await.unread_count, 0);
    // No other account sees the notes, not even by the conversation's id.
    let mut eve = Person::join(&node, "eve").await;
    assert!(eve.partners().await.is_empty());
    let which = Some(read_conversation_request::Conversation::ConversationId(note.conversation_id));
    let request = eve.ask(pb::ReadConversationRequest { conversation: which, ..Default::default() });
    refused(eve.chat.read_conversation(request).await, Code::NotFound, "CONVERSATION_UNKNOWN", "");
    assert_eq!(alice.delete(&[note.message_id], true).await, (1, 0));
    assert!(alice.read("alice").await.messages[0].deleted);
}

#[tokio::test]
async fn pages_of_a_long_conversation_have_no_gap_and_no_repeat() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    Person::join(&node, "bob").await;
    let sends = (1..=120).map(|i| {
        let mut alice = alice.clone();
        tokio::spawn(async move { alice.send("bob", &i.to_string()).await })
    });
    for send in sends.collect::<Vec<_>>() {
        send.await.unwrap();
    }
    let which = || Some(read_conversation_request::Conversation::Partner("bob".into()));
    for (limit, expected) in [(0, &[50, 50, 20][..]), (200, &[120]), (60, &[60, 60]), (119, &[119, 1])] {
        let (mut seqs, mut sizes, mut before_seq) = (Vec::new(), Vec::new(), 0);
        loop {
            let request = pb::ReadConversationRequest { conversation: which(), limit, before_seq, consistency: None };
            let page = alice.chat.read_conversation(alice.ask(request)).await.unwrap().into_inner();
            assert_eq!((page.total_count, page.last_seq), (120, 120));
            sizes.push(page.messages.len());
            seqs.extend(page.messages.iter().map(|message| message.seq));
            if !page.has_more {
                break;
            }
            before_seq = *seqs.last().expect("a page that has more is not empty");
        }
        assert_eq!(sizes, expected);
        assert_eq!(seqs, (1..=120).rev().collect::<Vec<_>>());
    }
}
