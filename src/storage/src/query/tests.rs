//! Queries on a real file, and the pool of connections.

use std::sync::Arc;
use std::sync::mpsc;

use prost::Message as _;

use super::*;
use crate::{AppliedEntry, AppliedPayload, StateMachine, codec};
use chat::{Command, Destination, SessionId};
use proto::log::v1 as pb;

fn apply(machine: &mut StateMachine, commands: &[Command]) {
    let index = machine.applied().log_id.map_or(1, |id| id.index + 1);
    let proposals = commands
        .iter()
        .map(|command| pb::Proposal {
            time_ms: 1000,
            traceparent: String::new(),
            command: Some(codec::encode_command(command)),
        })
        .collect();
    let payload = AppliedPayload::Batch(pb::Batch { proposals, ..Default::default() }.encode_to_vec().into());
    let log_id = pb::LogId { term: 1, node_id: 1, index };
    machine.apply(vec![AppliedEntry { log_id, payload }]).expect("apply");
}

fn create(name: &str) -> Command {
    Command::CreateAccount {
        username: name.into(),
        password_hash: format!("hash of {name}"),
        request_id: None,
        invitation: None,
    }
}

fn login(account: u64) -> Command {
    Command::OpenSession {
        account: AccountId(account),
        token_hash: TokenHash([account as u8; 32]),
        lifetime_ms: 500,
        login: chat::Login::default(),
    }
}

#[test]
fn accounts_are_found_by_part_of_the_name_without_wildcards() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    apply(&mut machine, &["a_c", "abc", "bob", "zabcz"].map(create));
    let readers = Readers::open(dir.path(), 1).expect("readers");
    let names = |contains: &str, after: Option<&str>, limit| {
        let (rows, total) = readers.read(|query| query.accounts(contains, after, limit)).expect("accounts");
        (rows.into_iter().map(|row| row.username).collect::<Vec<_>>(), total)
    };
    assert_eq!(names("", None, 10).1, 4);
    assert_eq!(names("_", None, 10), (vec!["a_c".to_owned()], 1));
    assert_eq!(names("%", None, 10), (vec![], 0));
    assert_eq!(names("b", None, 2), (vec!["abc".to_owned(), "bob".to_owned()], 3));
    assert_eq!(names("b", Some("bob"), 2), (vec!["zabcz".to_owned()], 3));
}

#[test]
fn sessions_are_found_by_id_and_by_token() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    apply(&mut machine, &[create("alice"), login(1)]);
    let readers = Readers::open(dir.path(), 1).expect("readers");
    readers
        .read(|query| {
            let session = query.session_by_token(&TokenHash([1; 32]))?.expect("open");
            assert_eq!((session.id, session.account), (SessionId(2), AccountId(1)));
            assert_eq!((session.username.as_str(), session.expires_at), ("alice", TimeMs(1500)));
            assert_eq!(query.session(SessionId(2))?, Some(session));
            assert_eq!(query.session(SessionId(u64::MAX))?, None);
            assert_eq!(query.session_by_token(&TokenHash([2; 32]))?, None);
            assert_eq!(query.account_by_name("alice")?.expect("there").password_hash, "hash of alice");
            assert_eq!((query.revision()?, query.clock()?), (Revision(2), TimeMs(1000)));
            assert_eq!(query.direct_conversation(AccountId(1), AccountId(1))?, None);
            assert!(!query.is_member(ConversationId(1), AccountId(1))?);
            assert_eq!(query.conversation_page(AccountId(1), ConversationId(9), None, 5)?, Default::default());
            assert!(query.events_after(AccountId(1), Revision(0), Revision(9), 0)?.is_empty());
            Ok(())
        })
        .expect("read");
}

#[test]
fn a_read_sees_one_revision_while_the_writer_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    apply(&mut machine, &[create("alice"), login(1)]);
    let readers = Readers::open(dir.path(), 1).expect("readers");
    readers
        .read(|query| {
            let before = query.revision()?;
            apply(&mut machine, &[create("bob")]);
            assert_eq!(query.revision()?, before);
            assert_eq!(query.account_by_name("bob")?, None);
            Ok(())
        })
        .expect("read");
    assert!(readers.read(|query| query.account_by_name("bob")).expect("read").is_some());
}

#[test]
fn who_finds_no_free_connection_waits_for_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let machine = StateMachine::open(dir.path()).expect("open");
    let readers = Arc::new(Readers::open(dir.path(), 1).expect("readers"));
    let (release, released) = mpsc::channel::<()>();
    let (held, holds) = mpsc::channel();
    let holder = std::thread::spawn({
        let readers = readers.clone();
        move || {
            readers.read(|query| {
                held.send(()).expect("the test waits");
                released.recv().expect("the test says when");
                query.revision()
            })
        }
    });
    holds.recv().expect("the holder has the only connection");
    let waiter = std::thread::spawn({
        let readers = readers.clone();
        move || readers.read(|query| query.revision())
    });
    release.send(()).expect("the holder waits");
    assert_eq!(holder.join().expect("no panic").expect("read"), machine.applied().revision);
    assert_eq!(waiter.join().expect("no panic").expect("read"), machine.applied().revision);
}

#[test]
fn a_failed_read_gives_its_connection_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let _machine = StateMachine::open(dir.path()).expect("open");
    let readers = Readers::open(dir.path(), 1).expect("readers");
    for _ in 0..3 {
        readers.read(|_| Err::<(), _>(StorageError::Closed)).expect_err("as requested");
    }
    readers.read(|query| query.revision()).expect("read");
}

#[test]
fn long_conversations_are_resumed_at_every_point() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    apply(&mut machine, &[create("alice"), create("bob"), create("carol"), login(1)]);
    let messages: Vec<Command> = (0..100_u8)
        .map(|n| Command::SendMessage {
            session: SessionId(4),
            to: Destination::Person(if n % 3 == 0 { "carol" } else { "bob" }.into()),
            client_id: chat::ClientId([n; 16]),
            body: "x".into(),
        })
        .collect();
    apply(&mut machine, &messages);
    let readers = Readers::open(dir.path(), 1).expect("readers");
    let end = machine.applied().revision;
    for after in 0..=end.0 {
        let events = readers.read(|query| query.events_after(AccountId(1), Revision(after), end, 7)).expect("read");
        let revisions: Vec<u64> = events.iter().map(|event| event.revision.0).collect();
        let expected: Vec<u64> = (after.max(4) + 1..=end.0).take(7).collect();
        assert_eq!(revisions, expected);
        let up_to = Revision((after + 5).max(4));
        let events = readers.read(|query| query.events_after(AccountId(1), Revision(after), up_to, 7)).expect("read");
        assert!(events.iter().all(|event| event.revision <= up_to));
    }
}

#[test]
fn a_page_of_long_messages_ends_early_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    apply(&mut machine, &[create("alice"), login(1)]);
    let send = |number: u8| Command::SendMessage {
        session: SessionId(2),
        to: Destination::Person("alice".into()),
        client_id: chat::ClientId([number; 16]),
        body: "x".repeat(16 * 1024),
    };
    apply(&mut machine, &(1..=40).map(send).collect::<Vec<_>>());
    let readers = Readers::open(dir.path(), 1).expect("readers");
    let page = |before| {
        readers.read(|query| query.conversation_page(AccountId(1), ConversationId(3), before, 200)).expect("a page")
    };
    let mut seqs = Vec::new();
    let mut before = None;
    loop {
        let page = page(before);
        assert!(page.messages.len() <= 16, "{} messages", page.messages.len());
        seqs.extend(page.messages.iter().map(|message| message.seq.0));
        before = page.messages.last().map(|message| message.seq);
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seqs, (1..=40).rev().collect::<Vec<_>>());
}
