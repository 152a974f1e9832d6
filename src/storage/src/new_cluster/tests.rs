//! New clusters: from backups, from surviving nodes, and after interrupted attempts.

use super::super::backup::tests::{account, state, write};
use super::*;
use crate::Readers;
use chat::{AccountId, Command, Login, Outcome, TokenHash};
use prost::Message as _;

fn founder() -> Founder {
    let text = str::to_owned;
    Founder {
        cluster_id: text("new-cluster"),
        name: text("n1"),
        peer_address: text("p:1"),
        client_address: text("c:1"),
        web_address: text("w:1"),
    }
}

fn entry(index: u64, name: &str) -> pb::Entry {
    let AppliedEntry { log_id, payload: AppliedPayload::Batch(bytes) } = account(index, name) else { unreachable!() };
    pb::Entry { log_id: Some(log_id), payload: Some(pb::entry::Payload::Batch(bytes)) }
}

fn durably(write: impl FnOnce(crate::Done) -> Result<(), StorageError>) {
    let (sender, done) = mpsc::channel();
    write(Box::new(move |result| sender.send(result.is_ok()).expect("waited for"))).expect("queued");
    assert!(done.recv().expect("called"));
}

/// A stopped node with a log that creates the accounts `names`, and a state that has applied the first `applied`.
fn node(dir: &Path, names: &[&str], applied: usize) {
    let log = LogDb::open(dir, Box::new(|_| {})).expect("open");
    let identity = Identity { cluster_id: "old-cluster".into(), node_id: 3, name: "n1".into() };
    log.save_identity(identity).expect("saved");
    let mut entries = vec![pb::Entry {
        log_id: Some(pb::LogId { term: 3, node_id: 1, index: 0 }),
        payload: Some(pb::entry::Payload::Blank(pb::Blank {})),
    }];
    entries.extend((1..).zip(names).map(|(index, name)| entry(index, name)));
    durably(|done| log.append(entries, done));
    log.save_committed(pb::LogId { term: 3, node_id: 1, index: 1 }).expect("queued");
    durably(|done| log.save_vote(pb::Vote { term: 9, node_id: 3, committed: false }, done));
    log.close();
    drop(state(dir, &names[..applied]));
}

/// Checks that the directory is the start of the new cluster with these accounts, and returns the end of its log.
fn is_new(dir: &Path, beginning: &Beginning, names: &[&str]) -> pb::LogId {
    for name in [UNFINISHED, DECIDED, ARRIVING] {
        assert!(!dir.join(name).exists(), "{name}");
    }
    assert_eq!(integrity::quarantine_reason(dir).expect("looked"), None);
    let log = LogDb::open(dir, Box::new(|_| {})).expect("open");
    let mut machine = StateMachine::open(dir).expect("open");
    integrity::verify(dir, &log, &machine).expect("they fit together");
    let node_id = beginning.node_id;
    let identity = Identity { cluster_id: "new-cluster".into(), node_id, name: "n1".into() };
    assert_eq!(log.identity(), Some(identity));
    let end = log.bounds().1.expect("an end");
    let vote = log.vote().expect("a vote");
    assert!(!log.is_pristine() && vote.term >= end.term && !vote.committed && vote.node_id == node_id);
    let state = machine.applied().clone();
    assert_eq!((state.log_id, state.revision, log.committed()), (Some(end), beginning.revision, Some(end)));
    assert_eq!(state.membership.log_id, Some(end));
    let membership = state.membership.membership.expect("a membership");
    assert_eq!(membership.voters, [pb::VoterSet { node_ids: vec![node_id] }]);
    assert_eq!((membership.nodes.len(), membership.nodes[0].peer_address.as_str()), (1, "p:1"));
    // Earlier members have smaller ids, later members larger ones.
    assert_eq!(node_id, end.index - 1 + MEMBER_IDS_FROM);

    let readers = Readers::open(dir, 1).expect("readers");
    let Revision(copied) = beginning.copied;
    assert_eq!(beginning.revision, Revision(copied + REVISIONS_SKIPPED));
    let lost = |revision| readers.read(|query| query.is_lost(Revision(revision))).expect("read");
    let Revision(first) = beginning.revision;
    assert_eq!([copied, copied + 1, first - 1, first].map(lost), [false, true, true, false]);
    for name in names {
        assert!(readers.read(|query| query.account_by_name(name)).expect("read").is_some(), "{name}");
    }
    // The new cluster continues.
    let next = AppliedEntry {
        log_id: pb::LogId { term: vote.term + 1, node_id, index: end.index + 1 },
        ..account(0, &format!("later.{}", end.index))
    };
    assert_eq!(machine.apply(vec![next]).expect("applied").revision, Revision(first + 1));
    log.close();
    end
}

#[test]
fn a_restored_backup_is_the_start_of_another_cluster() {
    let (from, to) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let (_state, readers) = state(from.path(), &["alice", "bob"]);
    let file = from.path().join("b");
    let meta = write(&readers, &file);
    fs::create_dir(to.path().join("lost+found")).expect("made");
    let (restored, beginning) = restore(to.path(), &file, &founder(), KeptSessions::All).expect("restored");
    assert_eq!((restored, beginning.copied), (meta, Revision(2)));
    let end = is_new(to.path(), &beginning, &["alice", "bob"]);
    assert_eq!((end.index, end.term), (3, 4));
    assert!(!integrity::had_history(to.path()));
    // A second restore, onto the new cluster.
    let error = restore(to.path(), &file, &founder(), KeptSessions::All).expect_err("refused");
    assert!(matches!(error, StorageError::NotEmpty { .. }), "{error}");

    // A backup of the restored state: lost revisions stay lost, and the next recovery adds others.
    let third = tempfile::tempdir().expect("tempdir");
    let machine = StateMachine::open(to.path()).expect("open");
    let shared = crate::SharedState::new(machine, Box::new(())).expect("shared");
    let readers = Readers::of(shared, 1).expect("readers");
    write(&readers, &file);
    let (_, again) = restore(third.path(), &file, &founder(), KeptSessions::All).expect("restored");
    is_new(third.path(), &again, &["alice", "bob"]);
    let readers = Readers::open(third.path(), 1).expect("readers");
    assert!(readers.read(|query| query.is_lost(Revision(3))).expect("read"));
}

#[test]
fn the_sessions_of_a_backup_stay_or_end() {
    let from = tempfile::tempdir().expect("tempdir");
    let (state, readers) = state(from.path(), &["alice", "bob"]);
    let (token_hash, device) = (TokenHash([7; 32]), TokenHash([8; 32]));
    let login = Login { device: Some(device), ..Login::default() };
    let open = Command::OpenSession { account: AccountId(1), token_hash, lifetime_ms: 1 << 40, login };
    let command = Some(super::super::codec::encode_command(&open));
    let proposal = pb::Proposal { time_ms: 5, traceparent: String::new(), command };
    let batch = pb::Batch { proposals: vec![proposal], ..Default::default() };
    let log_id = pb::LogId { term: 3, node_id: 1, index: 3 };
    let payload = AppliedPayload::Batch(batch.encode_to_vec().into());
    let outcomes = state.apply(vec![AppliedEntry { log_id, payload }]).expect("applied").outcomes;
    assert!(matches!(outcomes[0][0], Outcome::SessionOpened { .. }), "{outcomes:?}");
    let file = from.path().join("b");
    write(&readers, &file);
    for (kept, expected) in [(KeptSessions::All, 1), (KeptSessions::None, 0)] {
        let to = tempfile::tempdir().expect("tempdir");
        let (_, beginning) = restore(to.path(), &file, &founder(), kept).expect("restored");
        is_new(to.path(), &beginning, &["alice", "bob"]);
        let readers = Readers::open(to.path(), 1).expect("readers");
        let found = readers.read(|query| {
            let found = query.session_by_token(&token_hash)?.is_some();
            assert_eq!(query.sessions_of(AccountId(1))?.len(), expected);
            assert!(query.is_known_device(AccountId(1), &device)?, "a device is kept");
            Ok(found)
        });
        assert_eq!(found.expect("read"), expected == 1);
        // A file that begins without sessions contains no hash of a token.
        let copies = fs::read(db::database_path(to.path())).expect("read");
        let there = copies.windows(32).any(|window| window == token_hash.0);
        assert_eq!(there, expected == 1);
    }
}

#[test]
fn a_bad_file_or_a_directory_in_use_changes_nothing() {
    let (from, to) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let (_state, readers) = state(from.path(), &["alice"]);
    let file = from.path().join("b");
    write(&readers, &file);
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("cut off");
    restore(to.path(), &file, &founder(), KeptSessions::All).expect_err("refused");
    assert_eq!(fs::read_dir(to.path()).expect("list").count(), 0);
    fs::write(&file, &bytes).expect("whole again");
    fs::write(to.path().join("letter"), "x").expect("written");
    let error = restore(to.path(), &file, &founder(), KeptSessions::All).expect_err("refused");
    assert!(error.to_string().contains("letter"), "{error}");
    assert_eq!(fs::read_dir(to.path()).expect("list").count(), 1);
}

const NAMES: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];

#[test]
fn a_survivor_keeps_all_of_its_log() {
    let dir = tempfile::tempdir().expect("tempdir");
    node(dir.path(), &NAMES, 2);
    let survey = survey(dir.path()).expect("surveyed");
    assert_eq!((survey.last.expect("a log").index, survey.committed().expect("some").index), (5, 2));
    assert_eq!((survey.uncertain(), survey.revision), (3, Revision(2)));
    assert_eq!(survey.identity.node_id, 3);
    // A survey changes nothing that matters.
    assert_eq!(super::survey(dir.path()).expect("surveyed"), survey);
    assert!(integrity::quarantine_reason(dir.path()).expect("looked").is_none());

    let beginning = recover(dir.path(), &survey, &founder(), &[]).expect("recovered");
    assert_eq!(beginning.copied, Revision(5));
    let end = is_new(dir.path(), &beginning, &NAMES);
    // The term is above the node's own vote.
    assert_eq!((end.index, end.term), (6, 10));
    // All old files still exist.
    let aside: Vec<_> = fs::read_dir(dir.path().join("aside")).expect("list").collect();
    assert_eq!(aside.len(), 1);
    let old = aside[0].as_ref().expect("an item").path();
    assert_eq!(super::survey(&old).expect("surveyed"), survey);
}

#[test]
fn an_entry_that_ends_the_node_can_be_left_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    node(dir.path(), &NAMES, 2);
    let survey = survey(dir.path()).expect("surveyed");
    for outside in [2, 6] {
        let error = recover(dir.path(), &survey, &founder(), &[4, outside]).expect_err("refused");
        assert!(error.to_string().contains(&format!("entry {outside}")), "{error}");
    }
    let beginning = recover(dir.path(), &survey, &founder(), &[4]).expect("recovered");
    assert_eq!(beginning.copied, Revision(4));
    is_new(dir.path(), &beginning, &["alice", "bob", "carol", "erin"]);
}

#[test]
fn a_survivor_whose_log_was_cut_goes_on_from_the_copy_of_an_earlier_version() {
    let dir = tempfile::tempdir().expect("tempdir");
    node(dir.path(), &NAMES, 3);
    copy_state(dir.path(), &dir.path().join("snapshots/3.snapshot")).expect("copied");
    for name in ["chat.db", "chat.db-wal", "chat.db-shm"] {
        let _ = fs::remove_file(dir.path().join(name));
    }
    drop(state(dir.path(), &NAMES[..1]));
    let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("open");
    log.purge(pb::LogId { term: 3, node_id: 1, index: 3 }).expect("queued");
    log.close();
    drop(log);
    let survey = survey(dir.path()).expect("surveyed");
    assert_eq!((survey.revision, survey.uncertain()), (Revision(3), 2));
    let beginning = recover(dir.path(), &survey, &founder(), &[]).expect("recovered");
    assert_eq!(beginning.copied, Revision(5));
    is_new(dir.path(), &beginning, &NAMES);

    // Without the snapshot there is a gap.
    let dir = tempfile::tempdir().expect("tempdir");
    node(dir.path(), &NAMES, 1);
    let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("open");
    log.purge(pb::LogId { term: 3, node_id: 1, index: 3 }).expect("queued");
    log.close();
    drop(log);
    let error = super::survey(dir.path()).expect_err("refused");
    assert!(error.is_corruption(), "{error}");
}

#[test]
fn what_cannot_be_trusted_or_is_not_there_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let refused = |needle: &str| {
        let error = survey(dir.path()).expect_err("refused");
        assert!(error.to_string().contains(needle), "{error}");
    };
    refused("there is no log.db");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    LogDb::open(dir.path(), Box::new(|_| {})).expect("open").close();
    drop(StateMachine::open(dir.path()).expect("open"));
    refused("has not belonged to a cluster");
    integrity::mark_for_quarantine(dir.path(), "a bad page").expect("noted");
    refused("a bad page");
}

#[test]
fn a_crash_leaves_the_old_state_or_the_new_one() {
    // Interrupted before the decision: the old state remains.
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path();
    node(path, &NAMES, 2);
    let before = survey(path).expect("surveyed");
    let fresh = || {
        let dir = tempfile::tempdir().expect("tempdir");
        node(dir.path(), &NAMES, 2);
        let beginning = decide(dir.path(), &before, &founder(), &[]).expect("decided");
        (dir, beginning)
    };
    let (decided, _) = fresh();
    fs::rename(decided.path().join(DECIDED), path.join(UNFINISHED)).expect("moved");
    finish(path).expect("finished");
    assert!(!path.join(UNFINISHED).exists());
    assert_eq!(survey(path).expect("surveyed"), before);

    // Interrupted after the decision: the new state takes over, regardless of the point of interruption.
    let stops: [fn(&Path); 5] = [
        |_| {},
        |path| {
            // While the old files were being moved.
            let aside = path.join("aside/000000000001-0");
            fs::create_dir_all(&aside).expect("made");
            integrity::mark_for_quarantine(path, "a new cluster").expect("noted");
            fs::rename(path.join("log.db"), aside.join("log.db")).expect("moved");
        },
        |path| {
            // All files were moved, and the mark still exists.
            integrity::move_aside(path, "a new cluster").expect("moved");
            integrity::mark_for_quarantine(path, "a new cluster").expect("noted");
        },
        |path| {
            integrity::move_aside(path, "a new cluster").expect("moved");
            fs::rename(path.join(DECIDED), path.join(ARRIVING)).expect("renamed");
        },
        |path| {
            integrity::move_aside(path, "a new cluster").expect("moved");
            fs::rename(path.join(DECIDED), path.join(ARRIVING)).expect("renamed");
            fs::rename(path.join(ARRIVING).join("chat.db"), path.join("chat.db")).expect("moved");
        },
    ];
    for stop in stops {
        let (dir, beginning) = fresh();
        stop(dir.path());
        finish(dir.path()).expect("finished");
        is_new(dir.path(), &beginning, &NAMES);
        finish(dir.path()).expect("nothing to do");
        is_new_again(dir.path(), &beginning);
    }
}

/// [`is_new`] has applied an entry that no log contains, so only the identity can be compared.
fn is_new_again(dir: &Path, beginning: &Beginning) {
    let log = LogDb::open(dir, Box::new(|_| {})).expect("open");
    assert_eq!(log.identity().map(|identity| identity.node_id), Some(beginning.node_id));
    log.close();
}
