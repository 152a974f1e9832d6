//! The feed against an in-memory hub and backlog: order, cursors, cuts, resumption.

use std::sync::{Arc, Mutex};

use tonic::Code;

use super::*;
use crate::delivery::QUEUE_EVENTS_MAX;
use chat::{AccountId, ClientId, ConversationId, EventKind, Member, Seq, SessionId};

const ALICE: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);
const CAROL: AccountId = AccountId(3);
const LONG: Duration = Duration::from_secs(3600);

fn message(revision: u64, from: AccountId, to: AccountId) -> Event {
    let member = |account: AccountId| Member { account, username: format!("u{account}").into() };
    Event {
        revision: Revision(revision),
        time: TimeMs(revision),
        conversation: ConversationId(1),
        members: [member(from), member(to)].into(),
        kind: EventKind::Message {
            seq: Seq(revision),
            sender: from,
            sender_name: "sender".into(),
            client_id: ClientId([7; 16]),
            body: "hello".into(),
            deleted: false,
        },
        trace: None,
    }
}

/// A hub with a database.
#[derive(Clone)]
struct World {
    hub: Hub,
    stored: Arc<Mutex<Vec<Event>>>,
    /// Messages that are published, one by one, while a page is read.
    meanwhile: Arc<Mutex<Vec<u64>>>,
    session_open: Arc<Mutex<bool>>,
    /// The age of the stored data; zero after an event was published while a page was read.
    age: Arc<Mutex<Duration>>,
}

impl World {
    fn new() -> Self {
        Self {
            hub: Hub::new(Revision(0), TimeMs(0)),
            stored: Arc::default(),
            meanwhile: Arc::default(),
            session_open: Arc::new(Mutex::new(true)),
            age: Arc::default(),
        }
    }

    fn commit(&self, event: Event) {
        self.stored.lock().unwrap().push(event.clone());
        let (revision, time) = (event.revision, event.time);
        self.hub.publish(vec![Arc::new(event)], &[], revision, time);
    }

    fn commit_messages(&self, revisions: std::ops::RangeInclusive<u64>) {
        revisions.for_each(|revision| self.commit(message(revision, ALICE, BOB)));
    }

    /// Bob's feed.
    fn open(&self, after: Option<u64>, heartbeat: Duration) -> Feed<World> {
        let caller = Caller {
            session: SessionId(1),
            account: BOB,
            username: "bob".into(),
            expires_at: TimeMs(u64::MAX),
            touch_due: crate::api::auth::TouchDue::default(),
        };
        Feed::open(self.hub.clone(), self.clone(), caller, after.map(Revision), heartbeat).unwrap()
    }
}

impl Backlog for World {
    fn age(&self) -> Option<Duration> {
        Some(*self.age.lock().unwrap())
    }

    async fn confirm_clock(&self, _caller: &Caller) -> Result<TimeMs, Status> {
        Err(status::token_expired())
    }

    async fn page(&self, scope: BacklogScope, after: Revision, up_to: Revision) -> Result<Vec<Event>, Status> {
        if !*self.session_open.lock().unwrap() {
            return Err(status::token_invalid());
        }
        let wanted = |event: &&Event| {
            let others = !matches!(event.kind, EventKind::Message { sender: BOB, .. });
            event.concerns(BOB)
                && event.revision > after
                && event.revision <= up_to
                && (scope == BacklogScope::All || others)
        };
        let page = self.stored.lock().unwrap().iter().filter(wanted).take(PAGE_EVENTS).cloned().collect();
        for revision in std::mem::take(&mut *self.meanwhile.lock().unwrap()) {
            self.commit(message(revision, ALICE, BOB));
            *self.age.lock().unwrap() = Duration::ZERO;
        }
        Ok(page)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Cursor and message id.
    Message(u64, u64),
    Heartbeat(u64),
}

fn seen(response: pb::SubscribeResponse) -> Seen {
    match response.event {
        Some(pb::subscribe_response::Event::Message(event)) => {
            Seen::Message(response.revision, event.message.unwrap().message_id)
        }
        Some(pb::subscribe_response::Event::Heartbeat(_)) => Seen::Heartbeat(response.revision),
        other => panic!("unexpected {other:?}"),
    }
}

async fn take(feed: &mut Feed<World>, count: usize) -> Vec<Seen> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(seen(feed.next().await.unwrap()));
    }
    all
}

fn messages(revisions: std::ops::RangeInclusive<u64>) -> Vec<Seen> {
    revisions.map(|revision| Seen::Message(revision, revision)).collect()
}

/// Messages up to `last`, ignoring heartbeats.
async fn messages_until(feed: &mut Feed<World>, last: u64) -> Vec<Seen> {
    let mut all = Vec::new();
    while all.last() != Some(&Seen::Message(last, last)) {
        let next = seen(feed.next().await.unwrap());
        if !matches!(next, Seen::Heartbeat(_)) {
            all.push(next);
        }
    }
    all
}

#[tokio::test]
async fn a_resumed_feed_reads_the_database_then_the_queue() {
    let world = World::new();
    world.commit_messages(1..=200);
    let mut feed = world.open(Some(10), LONG);
    world.commit_messages(201..=203);
    assert_eq!(take(&mut feed, 190).await, messages(11..=200));
    assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(200)]);
    assert_eq!(take(&mut feed, 3).await, messages(201..=203));
}

#[tokio::test]
async fn what_was_undelivered_comes_first_and_without_a_cursor() {
    let world = World::new();
    world.commit_messages(1..=100);
    world.commit(message(101, BOB, ALICE));
    let mut feed = world.open(None, LONG);
    world.commit_messages(102..=103);
    let expected: Vec<_> = (1..=100).map(|revision| Seen::Message(0, revision)).collect();
    assert_eq!(take(&mut feed, 100).await, expected);
    assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(101)], "bob's own message was not undelivered");
    assert_eq!(take(&mut feed, 2).await, messages(102..=103));
}

#[tokio::test]
async fn an_overflow_during_catch_up_is_read_from_the_database() {
    let overflow = 2 * QUEUE_EVENTS_MAX as u64;
    for after in [Some(0), None] {
        let world = World::new();
        world.commit_messages(1..=100);
        world.meanwhile.lock().unwrap().extend(101..=overflow);
        let mut feed = world.open(after, LONG);
        let first = take(&mut feed, 100).await;
        match after {
            Some(_) => assert_eq!(first, messages(1..=100)),
            None => assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(100)]),
        }
        assert_eq!(messages_until(&mut feed, overflow).await, messages(101..=overflow));
        assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(overflow)]);
        world.commit_messages(overflow + 1..=overflow + 1);
        assert_eq!(take(&mut feed, 1).await, messages(overflow + 1..=overflow + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_tells_the_age_of_what_was_sent_before_it() {
    let seconds = Duration::from_secs;
    let overflow = 2 * QUEUE_EVENTS_MAX as u64;
    let world = World::new();
    world.commit_messages(1..=2);
    world.meanwhile.lock().unwrap().extend(3..=overflow);
    *world.age.lock().unwrap() = seconds(5);
    let mut feed = world.open(None, LONG);
    // The queue overflows while the page is read, so the feed has a new subscription when it sends the first message.
    take(&mut feed, 1).await;
    tokio::time::advance(seconds(30)).await;
    take(&mut feed, 1).await;
    let heartbeat = async |feed: &mut Feed<World>| match feed.next().await.unwrap().event {
        Some(pb::subscribe_response::Event::Heartbeat(heartbeat)) => heartbeat.age_ms.unwrap(),
        other => panic!("{other:?} is no heartbeat"),
    };
    assert_eq!(heartbeat(&mut feed).await, 35_000, "what is undelivered is that of the beginning");
    messages_until(&mut feed, overflow).await;
    assert_eq!(heartbeat(&mut feed).await, 30_000);
}

#[tokio::test]
async fn a_slow_reader_is_cut_once_it_was_level() {
    let world = World::new();
    let mut feed = world.open(Some(0), Duration::ZERO);
    // The first heartbeat shows that the catch-up is complete, the second that the queue was seen empty.
    assert_eq!(take(&mut feed, 2).await, [Seen::Heartbeat(0), Seen::Heartbeat(0)]);
    world.commit_messages(1..=QUEUE_EVENTS_MAX as u64 + 1);
    let end = feed.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Aborted);
}

#[tokio::test]
async fn an_installed_snapshot_is_not_noticed() {
    let world = World::new();
    world.commit_messages(1..=3);
    let mut feed = world.open(Some(3), LONG);
    assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(3)]);
    // The content of the snapshot was never published here.
    world.stored.lock().unwrap().extend((4..=90).map(|revision| message(revision, ALICE, BOB)));
    world.hub.reset(Revision(90), TimeMs(90));
    world.commit_messages(91..=92);
    assert_eq!(messages_until(&mut feed, 92).await, messages(4..=92));
}

#[tokio::test]
async fn a_heartbeat_says_how_far_the_silence_goes() {
    let world = World::new();
    let mut feed = world.open(Some(0), Duration::ZERO);
    assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(0)]);
    world.commit(message(1, ALICE, CAROL));
    assert_eq!(take(&mut feed, 1).await, [Seen::Heartbeat(1)]);
    world.commit(message(2, ALICE, BOB));
    world.commit(message(3, ALICE, CAROL));
    assert_eq!(take(&mut feed, 2).await, [Seen::Message(2, 2), Seen::Heartbeat(3)]);
}

#[tokio::test]
async fn it_ends_with_the_session() {
    let world = World::new();
    let mut live = world.open(Some(0), LONG);
    assert_eq!(take(&mut live, 1).await, [Seen::Heartbeat(0)]);
    world.hub.publish(vec![], &[SessionId(1)], Revision(1), TimeMs(1));
    assert_eq!(live.next().await.unwrap_err().code(), Code::Unauthenticated);

    *world.session_open.lock().unwrap() = false;
    let mut closed_before = world.open(Some(1), LONG);
    assert_eq!(closed_before.next().await.unwrap_err().code(), Code::Unauthenticated);

    *world.session_open.lock().unwrap() = true;
    let mut expiring = world.open(Some(1), LONG);
    expiring.caller.expires_at = TimeMs(auth::now(&world.hub).0 + 30);
    assert_eq!(take(&mut expiring, 1).await, [Seen::Heartbeat(1)]);
    let end = expiring.next().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unauthenticated, status::token_expired().message()));
}

#[tokio::test]
async fn it_ends_when_the_node_stops() {
    let world = World::new();
    let mut feed = world.open(Some(0), LONG);
    world.hub.stop();
    assert_eq!(feed.next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.open(Some(0), LONG).next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn resuming_anywhere_under_load_has_no_gap_and_no_duplicate() {
    const LAST: u64 = 20_000;
    let world = World::new();
    let publisher = std::thread::spawn({
        let world = world.clone();
        move || {
            for revision in 1..=LAST {
                let to = if revision.is_multiple_of(3) { CAROL } else { BOB };
                world.commit(message(revision, ALICE, to));
                std::thread::yield_now();
            }
            world.commit(message(LAST + 1, ALICE, BOB));
        }
    });
    let expected = |revision: u64| !revision.is_multiple_of(3) || revision > LAST;
    let (mut cursor, mut seen_revisions, mut streams) = (0, Vec::new(), 0);
    while cursor <= LAST {
        let mut feed = world.open(Some(cursor), LONG);
        streams += 1;
        for _ in 0..(streams * 37) % 900 + 1 {
            // A live feed that falls behind may be cut. The test continues with the next one.
            let Ok(response) = feed.next().await else { break };
            assert!(response.revision >= cursor);
            cursor = response.revision;
            if let Seen::Message(revision, _) = seen(response) {
                seen_revisions.push(revision);
            }
            if cursor > LAST {
                break;
            }
        }
    }
    publisher.join().unwrap();
    let all: Vec<_> = (1..=LAST + 1).filter(|revision| expected(*revision)).collect();
    assert_eq!(seen_revisions, all);
}
