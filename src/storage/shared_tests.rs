//! Visibility of staged and committed changes, and the effect of a failure.

use std::sync::mpsc::{Receiver, Sender, channel};

use prost::Message as _;

use super::*;
use crate::chat::{Command, Revision, StateDigest, TimeMs};
use crate::proto::log::v1 as pb;
use crate::storage::{AppliedPayload, Readers, codec};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

fn create(index: u64, name: &str) -> Vec<AppliedEntry> {
    let command = Command::CreateAccount {
        username: name.into(),
        password_hash: String::new(),
        request_id: None,
        invitation: None,
    };
    let proposal =
        pb::Proposal { time_ms: 1, traceparent: String::new(), command: Some(codec::encode_command(&command)) };
    let batch = pb::Batch { proposals: vec![proposal], ..Default::default() };
    let log_id = pb::LogId { term: 1, node_id: 1, index };
    vec![AppliedEntry { log_id, payload: AppliedPayload::Batch(batch.encode_to_vec().into()) }]
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
    stopped(state.settle().expect_err("stopped"));
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
    state.settle().expect_err("stopped");
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
