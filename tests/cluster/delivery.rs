//! The delivery of a message, with the two people on different nodes.

use client::{Client, Consistency, EventKind, EventStream, MessageStatus, Options};

use support::{Cluster, PASSWORD};

async fn next(events: &mut EventStream) -> EventKind {
    tokio::time::timeout(support::PATIENCE, events.next()).await.expect("an event comes").unwrap().unwrap().kind
}

/// The next receipt of `member`: its delivered and read watermarks.
async fn receipt(events: &mut EventStream, member: &str) -> (u64, u64) {
    loop {
        if let EventKind::Receipt(receipt) = next(events).await
            && receipt.member == member
        {
            return (receipt.delivered_seq, receipt.read_seq);
        }
    }
}

async fn statuses(client: &Client, partner: &str) -> Vec<MessageStatus> {
    let page = client.read_conversation(partner, 0, 200, Consistency::Linearizable).await.unwrap();
    page.messages.iter().rev().map(|message| message.status.expect("a read has it")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_undelivered_comes_first_and_receipts_reach_the_sender() {
    use MessageStatus::{Delivered, Read, Sent};
    let mut cluster = Cluster::five().await;
    let (alice, _) = cluster.register("alice").await;
    let by_hand = cluster.client_with(Options { acknowledge: false, ..Options::default() }).await;
    by_hand.create_account("bob", PASSWORD).await.unwrap();
    by_hand.login("bob", PASSWORD).await.unwrap();
    let mut receipts = alice.events(None);

    let mut sent = Vec::new();
    for body in ["one", "two", "three"] {
        sent.push(alice.send_message("bob", body).await.unwrap());
    }
    let conversation_id = sent[0].conversation_id;
    assert_eq!(statuses(&alice, "bob").await, [Sent; 3]);

    // Messages are sent again until they are acknowledged, also by another leader.
    for _ in 0..2 {
        let mut events = by_hand.events(None);
        for expected in &sent {
            let EventKind::Message(message) = next(&mut events).await else { panic!("messages come first") };
            assert_eq!((message.message_id, message.seq), (expected.message_id, expected.seq));
        }
        let leader = cluster.leader().await;
        cluster[leader].kill();
        cluster.restart(leader).await;
        assert_eq!(statuses(&alice, "bob").await, [Sent; 3], "sent to bob's client is not delivered");
    }

    let up_to = |seq| [(conversation_id, seq)];
    by_hand.acknowledge_delivery(&up_to(2)).await.unwrap();
    assert_eq!(receipt(&mut receipts, "bob").await, (2, 0));
    assert_eq!(statuses(&alice, "bob").await, [Delivered, Delivered, Sent]);
    by_hand.mark_read("alice", 1).await.unwrap();
    assert_eq!(receipt(&mut receipts, "bob").await, (2, 1));
    assert_eq!(statuses(&alice, "bob").await, [Read, Delivered, Sent]);

    // Neither watermark goes back.
    by_hand.acknowledge_delivery(&up_to(1)).await.unwrap();
    assert_eq!(by_hand.mark_read("alice", 1).await.unwrap().read_seq, 1);
    assert_eq!(statuses(&alice, "bob").await, [Read, Delivered, Sent]);

    // Only the third message is left. A client that acknowledges automatically does so.
    let bob = cluster.client().await;
    bob.login("bob", PASSWORD).await.unwrap();
    let mut events = bob.events(None);
    let EventKind::Message(message) = next(&mut events).await else { panic!("messages come first") };
    assert_eq!(message.seq, 3);
    assert_eq!(receipt(&mut receipts, "bob").await, (3, 1));
    assert_eq!(statuses(&alice, "bob").await, [Read, Delivered, Delivered]);
    assert_eq!(bob.mark_read("alice", 0).await.unwrap().unread_count, 0);
    assert_eq!(receipt(&mut receipts, "bob").await, (3, 3));
    assert_eq!(statuses(&alice, "bob").await, [Read; 3]);
    events.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_does_not_tell_of_what_was_acknowledged_meanwhile() {
    let mut cluster = Cluster::five().await;
    let (alice, _) = cluster.register("alice").await;
    let (bob, token) = cluster.register("bob").await;
    for _ in 0..5 {
        let sent = alice.send_message("bob", "hello").await.unwrap();
        let still = cluster.follower().await;
        cluster.level(&token, sent.revision).await;
        cluster[still].stop();
        bob.acknowledge_delivery(&[(sent.conversation_id, sent.seq)]).await.unwrap();
        cluster[still].go_on();
        let (ids, heartbeat) = cluster.direct(still, &token).undelivered(Consistency::Linearizable).await.unwrap();
        assert!(ids.is_empty(), "{ids:?} were acknowledged");
        assert!(heartbeat.age_ms.is_some());
    }
}
