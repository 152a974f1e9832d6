//! Requests with an invalid field, or with a reference to something that belongs to others.

use std::collections::BTreeSet;

use proto::chat::{
    v1 as pb,
    v1::{mark_read_request, read_conversation_request, send_message_request::To},
};
use tonic::Code;

use super::{
    node::Node,
    person::{Answer, Person, invalid, message, new_id, refused},
};

const BODY_MAX: usize = 16 * 1024;

#[tokio::test]
async fn a_message_is_checked_before_it_is_stored() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let too_long = "x".repeat(BODY_MAX + 1);
    let too_long_in_bytes = "é".repeat(BODY_MAX / 2 + 1);
    for body in ["", &too_long, &too_long_in_bytes] {
        invalid(alice.try_send(message("bob", body, &new_id())).await, "body");
    }
    for recipient in ["", "Bob", "b\0b", "bob ", &"b".repeat(33)] {
        invalid(alice.try_send(message(recipient, "hello", &new_id())).await, "recipient");
    }
    for id in ["", "1", "x-y", "0190163d-8694-739b-aea5-966c26f8ad91-", "\0"] {
        invalid(alice.try_send(message("bob", "hello", id)).await, "client_message_id");
    }
    let nowhere = pb::SendMessageRequest { to: None, body: "hello".into(), client_message_id: new_id() };
    invalid(alice.try_send(nowhere).await, "recipient");
    let to_conversation = |id| pb::SendMessageRequest {
        to: Some(To::ConversationId(id)),
        body: "hello".into(),
        client_message_id: new_id(),
    };
    invalid(alice.try_send(to_conversation(0)).await, "conversation_id");
    refused(alice.try_send(message("nobody", "hello", &new_id())).await, Code::NotFound, "USER_UNKNOWN", "");
    assert!(bob.partners().await.is_empty(), "nothing of it is stored");
    // Allowed text is stored unchanged, including control characters.
    for body in ["x".repeat(BODY_MAX), "é".repeat(BODY_MAX / 2), "\0\u{202e}\r\n\u{fffd}".into()] {
        alice.send("bob", &body).await;
        assert_eq!(bob.read("alice").await.messages[0].body, body);
    }
}

#[tokio::test]
async fn what_is_not_the_callers_is_not_there() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut eve = Person::join(&node, "eve").await;
    let theirs = alice.send("bob", "between us").await;
    eve.send("alice", "hello").await;
    for conversation in [theirs.conversation_id, 999_999, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
        let unknown = async |answer| refused(answer, Code::NotFound, "CONVERSATION_UNKNOWN", "");
        let to = Some(To::ConversationId(conversation));
        let request = pb::SendMessageRequest { to, body: "hello".into(), client_message_id: new_id() };
        unknown(eve.try_send(request).await.map(|r| r.map(drop))).await;
        let which = Some(read_conversation_request::Conversation::ConversationId(conversation));
        let request = eve.ask(pb::ReadConversationRequest { conversation: which, ..Default::default() });
        unknown(eve.chat.read_conversation(request).await.map(|r| r.map(drop))).await;
        let which = Some(mark_read_request::Conversation::ConversationId(conversation));
        let request = eve.ask(pb::MarkReadRequest { conversation: which, up_to_seq: 0 });
        unknown(eve.chat.mark_read(request).await.map(|r| r.map(drop))).await;
        // Acknowledgements of others' messages are ignored instead, because they may be late.
        eve.acknowledge(conversation, u64::MAX).await;
    }
    let page = alice.read("bob").await;
    assert_eq!((page.messages.len(), page.messages[0].status()), (1, pb::MessageStatus::Sent));
    assert_eq!(bob.read("alice").await.unread_count, 1);
}

#[tokio::test]
async fn ids_of_messages_that_are_not_the_callers_are_ignored_and_counted() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let mut eve = Person::join(&node, "eve").await;
    let theirs = alice.send("bob", "between us").await.message_id;
    let own = eve.send("alice", "hello").await.message_id;
    let nowhere = [0, 999_999, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX];
    for for_everyone in [false, true] {
        assert_eq!(eve.delete(&nowhere, for_everyone).await, (0, 5));
        assert_eq!(eve.delete(&[theirs], for_everyone).await, (0, 1));
    }
    // Bob may hide the message, but he may not delete it for everyone.
    assert_eq!(bob.delete(&[theirs], true).await, (0, 1));
    assert_eq!(alice.read("bob").await.messages[0].body, "between us");
    assert_eq!(eve.delete(&[theirs, own, own, 7_000_000], true).await, (1, 3));
    let delete = async |ids: Vec<u64>| {
        let request = eve.ask(pb::DeleteMessagesRequest { message_ids: ids, for_everyone: false });
        eve.chat.clone().delete_messages(request).await
    };
    invalid(delete(vec![]).await, "message_ids");
    invalid(delete((1..=1001).collect()).await, "message_ids");
    let most = delete((1_000_000..1_001_000).collect()).await.expect("1000 are allowed").into_inner();
    assert_eq!((most.deleted_count, most.ignored_count), (0, 1000));
}

#[tokio::test]
async fn receipts_are_counted_and_bounded() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let sent = alice.send("bob", "hello").await;
    let acknowledge = async |person: &Person, receipts: Vec<pb::DeliveryReceipt>| -> Answer<_> {
        let request = person.ask(pb::AcknowledgeDeliveryRequest { receipts });
        person.chat.clone().acknowledge_delivery(request).await
    };
    let receipt = |conversation_id| pb::DeliveryReceipt { conversation_id, up_to_seq: 1 };
    invalid(acknowledge(&bob, vec![]).await, "receipts");
    invalid(acknowledge(&bob, vec![receipt(1); 1001]).await, "receipts");
    acknowledge(&bob, vec![receipt(999_999); 1000]).await.expect("ignored");
    assert_eq!(alice.read("bob").await.messages[0].status(), pb::MessageStatus::Sent);
    // Among 999 receipts for unknown conversations, the valid one counts.
    let mut mixed = vec![receipt(u64::MAX); 999];
    mixed.push(receipt(sent.conversation_id));
    let answer = acknowledge(&bob, mixed).await.expect("applied").into_inner();
    assert_eq!(alice.read("bob").await.messages[0].status(), pb::MessageStatus::Delivered);
    assert_eq!(answer.revision, sent.revision + 1);
    let which = None;
    let request = bob.ask(pb::MarkReadRequest { conversation: which, up_to_seq: 0 });
    invalid(bob.chat.mark_read(request).await, "partner");
}

#[tokio::test]
async fn pages_have_limits_and_tokens_of_their_own() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    for name in ["bob", "carol", "dave"] {
        Person::join(&node, name).await;
        alice.send(name, "hello").await;
    }
    let read = async |request: pb::ReadConversationRequest| {
        let request = alice.ask(request);
        alice.chat.clone().read_conversation(request).await
    };
    let with = |name: &str| Some(read_conversation_request::Conversation::Partner(name.into()));
    let base = pb::ReadConversationRequest { conversation: with("bob"), ..Default::default() };
    invalid(read(pb::ReadConversationRequest { limit: 201, ..base.clone() }).await, "limit");
    invalid(read(pb::ReadConversationRequest { conversation: None, ..base.clone() }).await, "partner");
    for bad in ["", "Bob", "b%", &"b".repeat(33)] {
        invalid(read(pb::ReadConversationRequest { conversation: with(bad), ..base.clone() }).await, "partner");
    }
    let unknown = pb::ReadConversationRequest { conversation: with("nobody"), ..base.clone() };
    refused(read(unknown).await, Code::NotFound, "USER_UNKNOWN", "");
    for before_seq in [0, 2, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
        let page = read(pb::ReadConversationRequest { limit: 200, before_seq, ..base.clone() }).await.expect("a page");
        assert_eq!(page.into_inner().messages.len(), 1, "before {before_seq}");
    }
    let partners = async |page_size, page_token: &str| {
        let request = pb::ListChatPartnersRequest { page_size, page_token: page_token.into(), consistency: None };
        let request = alice.ask(request);
        alice.chat.clone().list_chat_partners(request).await
    };
    invalid(partners(201, "").await, "page_size");
    let of_another_call = "61626f62";
    for bad in ["x", "63", "6d", "é", of_another_call, "6300000000000000050", &"63".repeat(5000)] {
        invalid(partners(0, bad).await, "page_token");
    }
    // A well-formed token beyond the end is not an error: it is a possible start of a page.
    let from_the_end = format!("63{:016x}{:016x}", u64::MAX, u64::MAX);
    assert_eq!(partners(0, &from_the_end).await.unwrap().into_inner().partners.len(), 3);
    let first = partners(2, "").await.unwrap().into_inner();
    let second = partners(2, &first.next_page_token).await.unwrap().into_inner();
    let names: Vec<_> = first.partners.iter().chain(&second.partners).map(|p| p.username.as_str()).collect();
    assert_eq!((names.as_slice(), second.next_page_token.as_str()), (&["dave", "carol", "bob"][..], ""));
    assert_eq!((first.total_count, second.total_count), (3, 3));
}

#[tokio::test]
async fn who_writes_while_the_list_is_read_is_on_it() {
    const PARTNERS: usize = 9;
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut partners = Vec::new();
    for number in 0..PARTNERS {
        let mut partner = Person::join(&node, &format!("partner{number}")).await;
        partner.send("alice", "hello").await;
        partners.push(partner);
    }
    let (mut listed, mut page_token) = (BTreeSet::new(), String::new());
    for pages in 1.. {
        let request = pb::ListChatPartnersRequest { page_size: 2, page_token, consistency: None };
        let request = alice.ask(request);
        let page = alice.chat.list_chat_partners(request).await.unwrap().into_inner();
        assert!(page.partners.len() <= 2);
        listed.extend(page.partners.into_iter().map(|partner| partner.username));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        assert!(pages <= PARTNERS, "the list ends, although somebody writes all the time");
        // The oldest partner that is not on a page yet, and would have been on one of the last pages.
        let missing = partners.iter_mut().find(|partner| !listed.contains(&partner.name));
        if let Some(partner) = missing {
            partner.send("alice", "and again").await;
        }
    }
    assert_eq!(listed.len(), PARTNERS, "{listed:?}");
}

#[tokio::test]
async fn reads_of_a_revision_that_never_comes_end_with_their_deadline() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    // Without a deadline of the caller, so that the node's deadline applies.
    let reads = [1_000_000, u64::MAX].map(|revision| {
        let level = Some(pb::read_consistency::Level::AtLeastRevision(revision));
        let consistency = Some(pb::ReadConsistency { level });
        let request = alice.ask(pb::ListAccountsRequest { consistency, ..Default::default() });
        let mut chat = alice.chat.clone();
        tokio::spawn(async move { chat.list_accounts(request).await })
    });
    alice.send("alice", "others do not wait").await;
    for read in reads {
        refused(read.await.unwrap(), Code::DeadlineExceeded, "REVISION_NOT_REACHED", "");
    }
}
