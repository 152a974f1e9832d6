//! Visibility of staged and committed changes, and the effect of a failure.

use std::sync::mpsc::{Receiver, Sender, channel};

use prost::Message as _;

use super::*;
use crate::{AppliedPayload, Readers, codec};
use chat::{
    AccountId, ClientId, Command, ConversationId, Destination, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash,
};
use proto::log::v1 as pb;

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

fn entry(index: u64, command: &Command) -> Vec<AppliedEntry> {
    let proposal =
        pb::Proposal { time_ms: 1, traceparent: String::new(), command: Some(codec::encode_command(command)) };
    let batch = pb::Batch { proposals: vec![proposal], ..Default::default() };
    let log_id = pb::LogId { term: 1, node_id: 1, index };
    vec![AppliedEntry { log_id, payload: AppliedPayload::Batch(batch.encode_to_vec().into()) }]
}

fn create(index: u64, name: &str) -> Vec<AppliedEntry> {
    let command = Command::CreateAccount {
        username: name.into(),
        password_hash: String::new(),
        request_id: None,
        invitation: None,
    };
    entry(index, &command)
}

/// A session of account 1.
fn open_session(index: u64) -> Vec<AppliedEntry> {
    let command = Command::OpenSession {
        account: AccountId(1),
        token_hash: TokenHash([1; 32]),
        lifetime_ms: 1 << 40,
        login: chat::Login::default(),
    };
    entry(index, &command)
}

/// A message of alice to herself, in the session of revision 2.
fn note(index: u64) -> Vec<AppliedEntry> {
    let mut client_id = ClientId::default();
    client_id.0[..8].copy_from_slice(&index.to_le_bytes());
    let (session, to) = (SessionId(2), Destination::Person("alice".into()));
    entry(index, &Command::SendMessage { session, to, client_id, body: "note".into() })
}

#[derive(Debug, PartialEq)]
enum Notice {
    Committed,
    Failed(String),
}

struct Notifier(Sender<Notice>);

impl CommitObserver for Notifier {
    fn committed(&self, _took: Duration) {
        let _ = self.0.send(Notice::Committed);
    }

    fn failed(&self, error: &StorageError) {
        let _ = self.0.send(Notice::Failed(error.to_string()));
    }
}

fn open(dir: &Path, within: Duration) -> (SharedState, Receiver<Notice>) {
    let (sender, notices) = channel();
    let machine = StateMachine::open(dir).expect("open");
    (SharedState::committing(machine, Box::new(Notifier(sender)), &Threads, within).expect("start"), notices)
}

fn revision(readers: &Readers) -> Revision {
    readers.read(|query| query.revision()).expect("read")
}

#[test]
fn a_reader_sees_what_was_applied_and_only_a_reader_makes_it_commit() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), NEVER);
    let readers = Readers::of(state.clone(), 1).expect("readers");
    let stranger = Readers::open(dir.path(), 1).expect("readers");
    for (index, name) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        let applied = state.apply(create(index, name)).expect("apply");
        assert_eq!(applied.revision, Revision(index));
    }
    assert_eq!(revision(&stranger), Revision(0));
    assert!(notices.try_recv().is_err());
    assert_eq!(revision(&readers), Revision(3));
    assert_eq!(revision(&stranger), Revision(3));
    assert_eq!(notices.try_recv(), Ok(Notice::Committed));
    // No new changes, so there is nothing to commit.
    assert_eq!(revision(&readers), Revision(3));
    assert!(notices.try_recv().is_err());
}

#[test]
fn a_read_is_of_one_revision_however_much_is_committed_meanwhile() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, _notices) = open(dir.path(), NEVER);
    let readers = Readers::of(state.clone(), 2).expect("readers");
    for entry in [create(1, "alice"), open_session(2), note(3)] {
        state.apply(entry).expect("apply");
    }
    let last_seq = |query: &crate::Query<'_>| {
        let page = query.conversation_page(AccountId(1), ConversationId(3), None, 50).expect("read");
        assert_eq!((page.messages.len() as u64, page.total), (page.last_seq.0, page.last_seq.0));
        assert_eq!(query.conversations(AccountId(1), None, 5).expect("read").0[0].last_seq, page.last_seq);
        page.last_seq
    };
    let read = readers.read(|query| {
        for index in 4..12 {
            assert_eq!(last_seq(query), Seq(1));
            state.apply(note(index)).expect("apply");
            state.commit_staged().expect("commit");
            assert_eq!(readers.read(|query| Ok(last_seq(query))).expect("read"), Seq(index - 2));
        }
        // What is written back meanwhile is not in the tables of this transaction either.
        state.shared.guard(&mut *state.shared.lock()?, StateMachine::write_all_back)?;
        assert_eq!(readers.read(|query| Ok(last_seq(query))).expect("read"), Seq(9));
        Ok(last_seq(query))
    });
    assert_eq!(read.expect("read"), Seq(1));
}

#[test]
fn a_read_waits_until_the_connections_are_those_to_an_installed_snapshot() {
    let dirs = [tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir")];
    let mut source = StateMachine::open(dirs[0].path()).expect("open");
    for entry in [create(1, "alice"), open_session(2), note(3), note(4)] {
        source.apply(entry).expect("apply");
    }
    let (state, _notices) = open(dirs[1].path(), NEVER);
    let readers = Readers::of(state.clone(), 1).expect("readers");
    for entry in [create(1, "alice"), open_session(2), note(3)] {
        state.apply(entry).expect("apply");
    }
    let last_seq = || {
        let page = readers.read(|query| query.conversation_page(AccountId(1), ConversationId(3), None, 50));
        page.expect("read").last_seq
    };
    assert_eq!(last_seq(), Seq(1));
    let received = StateImage::open(dirs[0].path()).and_then(|image| image.receive(dirs[1].path())).expect("received");
    state.install_snapshot(received).expect("install");
    std::thread::scope(|scope| {
        let read = scope.spawn(last_seq);
        readers.reopen().expect("reopen");
        assert_eq!(read.join().expect("read"), Seq(2));
    });
}

#[test]
fn without_readers_it_is_committed_soon() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), Duration::from_millis(1));
    let stranger = Readers::open(dir.path(), 1).expect("readers");
    for (index, name) in [(1, "alice"), (2, "bob")] {
        state.apply(create(index, name)).expect("apply");
        assert_eq!(notices.recv(), Ok(Notice::Committed));
        assert_eq!(revision(&stranger), Revision(index));
    }
    // Dropping the last handle ends the thread and drops its observer.
    drop(state);
    assert!(notices.recv().is_err());
}

#[test]
fn what_is_staged_when_the_last_handle_goes_is_committed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, _told) = open(dir.path(), NEVER);
    state.apply(create(1, "alice")).expect("apply");
    drop(state);
    assert_eq!(StateMachine::open(dir.path()).expect("open").applied().revision, Revision(1));
}

#[test]
fn who_applies_a_little_does_not_wait_for_another() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, _told) = open(dir.path(), NEVER);
    let held = state.shared.lock().expect("free");
    let entries = state.try_apply(create(1, "alice")).expect_err("in use");
    drop(held);
    let applied = state.try_apply(entries).expect("free").expect("apply");
    assert_eq!(applied.revision, Revision(1));
}

#[test]
fn after_a_failure_nothing_is_applied_or_read_any_more() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), NEVER);
    let readers = Readers::of(state.clone(), 1).expect("readers");
    state.apply(create(1, "alice")).expect("apply");
    assert_eq!(revision(&readers), Revision(1));
    assert_eq!(notices.recv(), Ok(Notice::Committed));
    state.apply(create(2, "bob")).expect("apply");
    let error = state.apply(create(2, "dora")).expect_err("applied already");
    assert!(matches!(error, StorageError::OutOfOrder { found: 2, applied: 2 }), "{error}");
    assert_eq!(notices.recv(), Ok(Notice::Failed(error.to_string())));
    // The change for Bob was acknowledged and is not in the file, so reads have to fail.
    let stopped = |error: StorageError| assert!(matches!(error, StorageError::Stopped(_)), "{error}");
    stopped(readers.read(|query| query.revision()).expect_err("stopped"));
    stopped(state.apply(create(3, "carol")).expect_err("stopped"));
    stopped(state.try_apply(create(3, "carol")).expect("free").expect_err("stopped"));
    stopped(state.commit_staged().expect_err("stopped"));
    stopped(state.applied().expect_err("stopped"));
    assert!(notices.try_recv().is_err(), "notified once");
    drop((state, readers));
    let mut machine = StateMachine::open(dir.path()).expect("open");
    assert_eq!(machine.applied().revision, Revision(1));
    machine.apply(create(2, "bob")).expect("apply");
}

#[test]
fn a_commit_that_fails_in_the_background_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), Duration::from_millis(1));
    let readers = Readers::of(state.clone(), 1).expect("readers");
    {
        let mut guarded = state.shared.lock().expect("free");
        state.shared.stage(&mut guarded, create(1, "alice")).expect("stage");
        let conn = guarded.machine.conn.as_ref().expect("open");
        conn.execute_batch("PRAGMA query_only = 1").expect("as if the disk had become read-only");
    }
    let Ok(Notice::Failed(reason)) = notices.recv() else { panic!("it was committed") };
    assert!(reason.contains("readonly"), "{reason}");
    readers.read(|query| query.revision()).expect_err("stopped");
}

#[test]
fn a_state_that_is_condemned_is_not_used_any_more_nor_after_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), NEVER);
    let readers = Readers::of(state.clone(), 1).expect("readers");
    state.apply(create(1, "alice")).expect("apply");
    assert_eq!(revision(&readers), Revision(1));
    assert_eq!(notices.recv(), Ok(Notice::Committed));
    let (own, theirs) = (StateDigest([1; 32]), StateDigest([2; 32]));
    let divergence = Divergence { mark: 5, revision: Revision(1), own, theirs, agreed: None, time: TimeMs(1) };
    let error = state.mark_diverged(&divergence);
    assert!(error.is_corruption(), "{error}");
    assert_eq!(notices.recv(), Ok(Notice::Failed(error.to_string())));
    readers.read(|query| query.revision()).expect_err("stopped");
    state.apply(create(2, "bob")).expect_err("stopped");
    state.commit_staged().expect_err("stopped");
    assert!(notices.try_recv().is_err(), "notified once");
    drop((state, readers));
    let error = StateMachine::open(dir.path()).err().expect("refused");
    assert!(matches!(error, StorageError::Diverged { .. }), "{error}");
}

#[test]
fn a_state_is_condemned_even_if_that_cannot_be_noted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, notices) = open(dir.path(), NEVER);
    let readers = Readers::of(state.clone(), 1).expect("readers");
    std::fs::create_dir(dir.path().join("chat.db-diverged.tmp")).expect("made");
    let (own, theirs) = (StateDigest([1; 32]), StateDigest([2; 32]));
    let divergence = Divergence { mark: 5, revision: Revision(1), own, theirs, agreed: None, time: TimeMs(1) };
    let error = state.mark_diverged(&divergence).to_string();
    assert!(error.contains("could not be noted"), "{error}");
    assert_eq!(notices.recv(), Ok(Notice::Failed(error)));
    readers.read(|query| query.revision()).expect_err("stopped");
}
