//! The hub: recipients of events, cuts, and exactly-once delivery to the queues.

use super::*;
use chat::{ClientId, ConversationId, EventKind, Member, Seq};

const ALICE: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);
const CAROL: AccountId = AccountId(3);

fn members(accounts: &[AccountId]) -> Arc<[Member]> {
    accounts.iter().map(|account| Member { account: *account, username: format!("u{account}").into() }).collect()
}

fn message(revision: u64, between: &[AccountId]) -> Arc<Event> {
    Arc::new(Event {
        revision: Revision(revision),
        time: TimeMs(revision),
        conversation: ConversationId(1),
        members: members(between),
        kind: EventKind::Message {
            seq: Seq(revision),
            sender: between[0],
            sender_name: "u".into(),
            client_id: ClientId::default(),
            body: "hello".into(),
            deleted: false,
        },
        trace: None,
    })
}

fn publish(hub: &Hub, event: Arc<Event>) {
    let revision = event.revision;
    hub.publish(vec![event], &[], revision, TimeMs(revision.0));
}

fn drain(subscription: &mut Subscription) -> Vec<u64> {
    std::iter::from_fn(|| subscription.try_next()).map_while(Result::ok).map(|e| e.revision.0).collect()
}

#[test]
fn events_reach_members_only() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let mut alice = hub.subscribe(ALICE, SessionId(1)).unwrap();
    let mut alice_too = hub.subscribe(ALICE, SessionId(2)).unwrap();
    let mut carol = hub.subscribe(CAROL, SessionId(3)).unwrap();
    publish(&hub, message(1, &[ALICE, BOB]));
    publish(&hub, message(2, &[BOB, CAROL]));
    let hidden = EventKind::DeletedForMember { member: BOB, seqs: vec![Seq(1)] };
    publish(&hub, Arc::new(Event { kind: hidden, ..(*message(3, &[ALICE, BOB])).clone() }));
    assert_eq!(drain(&mut alice), [1]);
    assert_eq!(drain(&mut alice_too), [1]);
    assert_eq!(drain(&mut carol), [2]);
    assert_eq!(hub.current(), (Revision(3), TimeMs(3)));
}

#[test]
fn no_gap_and_no_duplicate_while_publishing() {
    const LAST: u64 = 20_000;
    let hub = Hub::new(Revision(0), TimeMs(0));
    let publisher = std::thread::spawn({
        let hub = hub.clone();
        move || (1..=LAST).for_each(|revision| publish(&hub, message(revision, &[ALICE, BOB])))
    });
    let mut subscribed = 0;
    while hub.current().0.0 < LAST {
        let mut subscription = hub.subscribe(BOB, SessionId(1)).unwrap();
        subscribed += 1;
        let seen = drain(&mut subscription);
        let first = subscription.start.0 + 1;
        assert_eq!(seen, (first..first + seen.len() as u64).collect::<Vec<_>>());
    }
    publisher.join().unwrap();
    assert!(subscribed > 0);
    assert_eq!(hub.stats().subscriptions, 0);
}

#[test]
fn the_revision_is_announced_after_its_events_are_queued() {
    const LAST: u64 = 5_000;
    let hub = Hub::new(Revision(0), TimeMs(0));
    let mut subscription = hub.subscribe(BOB, SessionId(1)).unwrap();
    let publisher = std::thread::spawn({
        let hub = hub.clone();
        move || {
            for revision in 1..=LAST {
                publish(&hub, message(revision, &[ALICE, BOB]));
            }
        }
    });
    let mut last = 0;
    while last < LAST {
        let (announced, _) = hub.current();
        match subscription.try_next() {
            Some(Ok(event)) => last = event.revision.0,
            // Overflow is not the subject of this test.
            Some(Err(cut)) => {
                assert_eq!(cut, DisconnectReason::Slow);
                break;
            }
            None => assert!(announced.0 <= last, "empty after {last}, though {announced} was announced"),
        }
    }
    publisher.join().unwrap();
}

#[test]
fn a_slow_subscriber_is_cut_and_the_others_are_not() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let mut slow = hub.subscribe(ALICE, SessionId(1)).unwrap();
    let mut quick = hub.subscribe(ALICE, SessionId(2)).unwrap();
    for revision in 1..=QUEUE_EVENTS_MAX as u64 {
        publish(&hub, message(revision, &[ALICE, BOB]));
        assert_eq!(drain(&mut quick), [revision]);
    }
    assert_eq!(slow.cut(), None);
    publish(&hub, message(1000, &[ALICE, BOB]));
    publish(&hub, message(1001, &[ALICE, BOB]));
    assert_eq!(slow.try_next(), Some(Err(DisconnectReason::Slow)));
    assert_eq!(drain(&mut quick), [1000, 1001]);
    assert_eq!(hub.stats(), HubStats { subscriptions: 1, slow_cuts: 1 });
}

#[test]
fn a_closed_session_takes_its_subscriptions_along() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let noticed = Arc::new(Mutex::new(Vec::new()));
    hub.on_closed({
        let noticed = noticed.clone();
        move |closed| match closed {
            Closed::Sessions(sessions) => noticed.lock().unwrap().extend_from_slice(sessions),
            Closed::Any => noticed.lock().unwrap().clear(),
        }
    });
    let one = hub.subscribe(ALICE, SessionId(1)).unwrap();
    let two = hub.subscribe(ALICE, SessionId(1)).unwrap();
    let mut other = hub.subscribe(ALICE, SessionId(2)).unwrap();
    hub.publish(vec![], &[SessionId(1), SessionId(9)], Revision(1), TimeMs(1));
    assert_eq!((one.cut(), two.cut()), (Some(DisconnectReason::SessionClosed), Some(DisconnectReason::SessionClosed)));
    publish(&hub, message(2, &[ALICE, BOB]));
    assert_eq!(drain(&mut other), [2]);
    assert_eq!(*noticed.lock().unwrap(), [SessionId(1), SessionId(9)]);
    hub.reset(Revision(7), TimeMs(7));
    assert!(noticed.lock().unwrap().is_empty());
}

#[test]
fn reset_and_stop_cut_all() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let before = hub.subscribe(ALICE, SessionId(1)).unwrap();
    hub.reset(Revision(70), TimeMs(7));
    assert_eq!(before.cut(), Some(DisconnectReason::Reset));
    let after = hub.subscribe(ALICE, SessionId(1)).unwrap();
    assert_eq!((after.start, after.cut()), (Revision(70), None));
    hub.stop();
    assert_eq!(after.cut(), Some(DisconnectReason::Stopping));
    assert_eq!(hub.subscribe(ALICE, SessionId(1)).unwrap().cut(), Some(DisconnectReason::Stopping));
}

#[test]
fn an_account_has_a_limit_and_dropping_makes_room() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let mut open: Vec<_> =
        (0..SUBSCRIPTIONS_PER_ACCOUNT_MAX).map(|i| hub.subscribe(ALICE, SessionId(i as u64)).unwrap()).collect();
    assert_eq!(hub.subscribe(ALICE, SessionId(99)).err(), Some(TooManySubscriptions));
    assert!(hub.subscribe(BOB, SessionId(100)).is_ok());
    open.pop();
    assert!(hub.subscribe(ALICE, SessionId(99)).is_ok());
}

#[tokio::test]
async fn next_waits_for_an_event_and_for_the_end() {
    let hub = Hub::new(Revision(0), TimeMs(0));
    let mut subscription = hub.subscribe(ALICE, SessionId(1)).unwrap();
    let waiting = tokio::spawn(async move { (subscription.next().await, subscription.next().await) });
    publish(&hub, message(1, &[ALICE, BOB]));
    tokio::task::yield_now().await;
    // Whether or not the task has received the event yet, the cut follows or replaces it, and ends the wait.
    hub.stop();
    let (first, second) = waiting.await.unwrap();
    assert!(first.is_ok_and(|e| e.revision == Revision(1)) || second == Err(DisconnectReason::Stopping));
}
