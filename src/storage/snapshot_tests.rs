//! Snapshots: created, installed, interrupted, damaged.

use bytes::Bytes;
use prost::Message as _;

use super::*;
use crate::chat::Command;
use crate::storage::{AppliedEntry, AppliedPayload, Readers, codec};

fn create(machine: &mut StateMachine, name: &str) {
    let index = machine.applied().log_id.map_or(1, |id| id.index + 1);
    let command = Command::CreateAccount {
        username: name.into(),
        password_hash: "hash".into(),
        request_id: None,
        invitation: None,
    };
    let proposal = pb::Proposal { command: Some(codec::encode_command(&command)), ..Default::default() };
    let batch = Bytes::from(pb::Batch { proposals: vec![proposal], ..Default::default() }.encode_to_vec());
    let log_id = pb::LogId { term: 3, node_id: 1, index };
    machine.apply(vec![AppliedEntry { log_id, payload: AppliedPayload::Batch(batch) }]).expect("apply");
}

fn knows(readers: &Readers, name: &str) -> bool {
    readers.read(|query| query.account_by_name(name)).expect("read").is_some()
}

#[test]
fn a_snapshot_is_what_it_says() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    create(&mut machine, "alice");
    let first = StateMachine::build_snapshot(dir.path()).expect("snapshot");
    create(&mut machine, "bob");
    let second = StateMachine::build_snapshot(dir.path()).expect("snapshot");
    let again = StateMachine::build_snapshot(dir.path()).expect("snapshot");
    assert_eq!(first.meta.log_id, Some(pb::LogId { term: 3, node_id: 1, index: 1 }));
    assert_eq!((first.meta.revision, second.meta.revision), (Revision(1), Revision(2)));
    for file in [&first, &second, &again] {
        assert_eq!(StateMachine::verify_snapshot(&file.path).expect("verify"), file.meta);
    }
    let files = StateMachine::snapshot_files(dir.path()).expect("list");
    assert_eq!(files.len(), 3);
    assert_eq!(files[2], first.path);
    // No other file was left in the directory.
    assert_eq!(fs::read_dir(dir.path().join(DIRECTORY)).expect("list").count(), 3);
}

#[test]
fn an_installed_snapshot_replaces_everything() {
    let (source, target) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut from = StateMachine::open(source.path()).expect("open");
    create(&mut from, "alice");
    let snapshot = StateMachine::build_snapshot(source.path()).expect("snapshot");
    let bytes = fs::read(&snapshot.path).expect("read");

    let mut to = StateMachine::open(target.path()).expect("open");
    create(&mut to, "mallory");
    create(&mut to, "oscar");
    let readers = Readers::open(target.path(), 2).expect("readers");
    to.install_snapshot(&snapshot.path).expect("install");
    assert_eq!(to.applied().log_id, snapshot.meta.log_id);
    // Readers see the old state until they are reopened, and closing their connections does not affect the new file.
    assert!(knows(&readers, "mallory"));
    create(&mut to, "bob");
    readers.reopen().expect("reopen");
    assert!(!knows(&readers, "mallory") && knows(&readers, "alice") && knows(&readers, "bob"));
    create(&mut to, "carol");
    assert!(knows(&readers, "carol"));
    drop((to, readers));
    let to = StateMachine::open(target.path()).expect("open");
    assert_eq!(to.applied().revision, Revision(3));
    assert_eq!(fs::read(&snapshot.path).expect("read"), bytes, "the snapshot itself stays as it is");
}

#[test]
fn an_installation_that_was_cut_off_is_finished_or_forgotten() {
    let (source, target) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut from = StateMachine::open(source.path()).expect("open");
    create(&mut from, "alice");
    let snapshot = StateMachine::build_snapshot(source.path()).expect("snapshot");

    // The process dies with a write-ahead log full of changes that must not get into the new file.
    let mut to = StateMachine::open(target.path()).expect("open");
    create(&mut to, "mallory");
    let wal = fs::read(target.path().join("chat.db-wal")).expect("read");
    let old = fs::read(target.path().join("chat.db")).expect("read");
    assert!(!wal.is_empty());
    drop(to);

    // Interrupted before the copy was complete: nothing has changed.
    let half = target.path().join(INSTALL_UNFINISHED);
    fs::write(&half, b"half a snapshot").expect("write");
    fs::write(target.path().join("chat.db"), &old).expect("write");
    fs::write(target.path().join("chat.db-wal"), &wal).expect("write");
    let to = StateMachine::open(target.path()).expect("open");
    assert_eq!(to.applied().revision, Revision(1));
    assert!(!half.exists());
    assert!(knows(&Readers::open(target.path(), 1).expect("readers"), "mallory"));
    drop(to);

    // Interrupted afterwards: the snapshot is installed, regardless of the point of interruption.
    for with_wal in [true, false] {
        fs::copy(&snapshot.path, target.path().join(INSTALL)).expect("copy");
        fs::write(target.path().join("chat.db"), &old).expect("write");
        if with_wal {
            fs::write(target.path().join("chat.db-wal"), &wal).expect("write");
        }
        let to = StateMachine::open(target.path()).expect("open");
        assert_eq!(to.applied().log_id, snapshot.meta.log_id);
        let readers = Readers::open(target.path(), 1).expect("readers");
        assert!(knows(&readers, "alice") && !knows(&readers, "mallory"));
    }
}

#[test]
fn damaged_snapshots_are_found_and_change_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    for n in 0..200 {
        create(&mut machine, &format!("user{n}"));
    }
    let snapshot = StateMachine::build_snapshot(dir.path()).expect("snapshot");
    let bytes = fs::read(&snapshot.path).expect("read");
    let bad = dir.path().join("bad");
    let mut zeroed = bytes.clone();
    zeroed[bytes.len() - 8192..].fill(0);
    for content in [&bytes[..bytes.len() / 2], &bytes[..50], b"", &zeroed] {
        fs::write(&bad, content).expect("write");
        StateMachine::verify_snapshot(&bad).expect_err("damaged");
    }
    for content in [&b""[..], b"not a database, but long enough to look like one"] {
        fs::write(&bad, content).expect("write");
        machine.install_snapshot(&bad).expect_err("damaged");
        create(&mut machine, &format!("after{}", content.len()));
    }
    StateMachine::verify_snapshot(&dir.path().join("absent")).expect_err("absent");
}

#[test]
fn what_was_left_unfinished_is_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(StateMachine::open(dir.path()).expect("open"));
    let stale = dir.path().join(DIRECTORY).join("0123.tmp");
    fs::write(&stale, b"half").expect("write");
    let machine = StateMachine::open(dir.path()).expect("open");
    assert!(!stale.exists());
    drop(machine);
    assert!(StateMachine::snapshot_files(dir.path()).expect("list").is_empty());
}
