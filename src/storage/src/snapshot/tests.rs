//! Snapshots: sent, received, installed, interrupted, damaged.

use bytes::Bytes;
use prost::Message as _;

use super::*;
use crate::{AppliedEntry, AppliedPayload, Readers, StateImage, codec};
use chat::Command;

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

/// Everything that is left of an image.
fn rest(mut image: StateImage) -> (Vec<u8>, u32) {
    let bytes = image.read(u32::MAX).expect("read");
    (bytes, image.checksum())
}

/// Receives a file as it was sent, in pieces of two pages.
fn receive(dir: &Path, sent: &[u8], checksum: u32) -> Result<Received, StorageError> {
    let mut incoming = Incoming::create(dir)?;
    sent.chunks(2 * 4096).try_for_each(|pages| incoming.write(pages))?;
    incoming.finish(checksum)
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir.join(DIRECTORY)).expect("list").count()
}

#[test]
fn an_image_is_of_one_commit_however_long_it_is_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    create(&mut machine, "alice");
    let mut image = StateImage::open(dir.path()).expect("image");
    let expected = SnapshotMeta {
        log_id: Some(pb::LogId { term: 3, node_id: 1, index: 1 }),
        membership: machine.applied().membership.clone(),
        revision: Revision(1),
    };
    assert_eq!(*image.meta(), expected);
    let mut sent = image.read(1).expect("read");
    // What is written meanwhile reaches the file only in part, and the image not at all.
    for n in 0..300 {
        create(&mut machine, &format!("user{n}"));
    }
    assert!(!machine.truncate_write_ahead_log().expect("tried"), "the image needs the write-ahead log");
    assert!(image.retained().bytes() > 300 * 4096);
    let bytes = image.bytes();
    let (more, checksum) = rest(image);
    sent.extend(more);
    assert_eq!(sent.len() as u64, bytes);
    let received = receive(dir.path(), &sent, checksum).expect("received");
    assert_eq!(*received.meta(), expected);
    assert!(machine.truncate_write_ahead_log().expect("tried"));
    // Its verification creates no other files.
    assert_eq!(files(dir.path()), 1);
    drop(received);
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn an_installed_snapshot_replaces_everything() {
    let (source, target) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut from = StateMachine::open(source.path()).expect("open");
    create(&mut from, "alice");

    let mut to = StateMachine::open(target.path()).expect("open");
    create(&mut to, "mallory");
    create(&mut to, "oscar");
    let readers = Readers::open(target.path(), 2).expect("readers");
    let received = StateImage::open(source.path()).and_then(|image| image.receive(target.path())).expect("received");
    let meta = received.meta().clone();
    to.install_snapshot(received).expect("install");
    assert_eq!(to.applied().log_id, meta.log_id);
    assert_eq!(installation::noted_position(target.path()), meta.log_id);
    assert_eq!(files(target.path()), 0, "there is no second copy");
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
}

#[test]
fn an_installation_that_was_cut_off_is_finished_or_forgotten() {
    let (source, target) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut from = StateMachine::open(source.path()).expect("open");
    create(&mut from, "alice");
    let snapshot = source.path().join("copy");
    let meta = copy_state(source.path(), &snapshot).expect("copied");

    // The process dies with a write-ahead log full of changes that must not get into the new file.
    let mut to = StateMachine::open(target.path()).expect("open");
    create(&mut to, "mallory");
    let wal = fs::read(target.path().join("chat.db-wal")).expect("read");
    let old = fs::read(target.path().join("chat.db")).expect("read");
    assert!(!wal.is_empty());
    drop(to);

    // Interrupted before the new file had its name: nothing has changed.
    let half = target.path().join(DIRECTORY).join("0123.tmp");
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
        fs::copy(&snapshot, target.path().join(INSTALL)).expect("copy");
        fs::write(target.path().join("chat.db"), &old).expect("write");
        if with_wal {
            fs::write(target.path().join("chat.db-wal"), &wal).expect("write");
        }
        let to = StateMachine::open(target.path()).expect("open");
        assert_eq!(to.applied().log_id, meta.log_id);
        let readers = Readers::open(target.path(), 1).expect("readers");
        assert!(knows(&readers, "alice") && !knows(&readers, "mallory"));
    }
}

#[test]
fn what_was_lost_or_changed_on_the_way_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    for n in 0..200 {
        create(&mut machine, &format!("user{n}"));
    }
    let (sent, checksum) = rest(StateImage::open(dir.path()).expect("image"));
    let exchanged = [&sent[..4096], &sent[8192..12_288], &sent[4096..8192], &sent[12_288..]].concat();
    let zeroed = [&sent[..8192], &[0; 4096], &sent[12_288..]].concat();
    let flipped: Vec<u8> = sent.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 20_000)).collect();
    for damaged in [&exchanged, &zeroed, &flipped, &sent[..sent.len() - 1].to_vec(), &sent[..50].to_vec()] {
        // Whatever the sender says of it.
        let error = receive(dir.path(), damaged, crc32fast::hash(damaged)).expect_err("damaged");
        assert!(error.is_corruption(), "{error}");
    }
    for short in [&sent[..sent.len() / 8192 * 4096], b""] {
        let error = receive(dir.path(), short, checksum).expect_err("short");
        assert!(error.is_corruption(), "{error}");
        receive(dir.path(), short, crc32fast::hash(short)).expect_err("it is no state");
    }
    // A file of an earlier version has no checksums of its own.
    let plain = dir.path().join("plain");
    rusqlite::Connection::open(&plain).expect("made").execute_batch("CREATE TABLE t (a)").expect("made");
    let plain = fs::read(plain).expect("read");
    receive(dir.path(), &plain, checksum).expect_err("it does not match");
    receive(dir.path(), &plain, crc32fast::hash(&plain)).expect_err("it is not of this program");
    receive(dir.path(), &sent, checksum).expect("intact");
    assert_eq!(files(dir.path()), 0, "what was refused is removed");
    create(&mut machine, "after");
}

#[test]
fn a_gap_before_the_log_is_closed_by_the_copy_of_an_earlier_version() {
    let (source, target) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut to = StateMachine::open(target.path()).expect("open");
    let mut from = StateMachine::open(source.path()).expect("open");
    for name in ["alice", "bob", "carol"] {
        create(&mut from, name);
    }
    let id = |index| Some(pb::LogId { term: 3, node_id: 1, index });
    to.close_gap(None).expect("there is none");
    let error = to.close_gap(id(3)).expect_err("nothing closes it");
    assert!(error.is_corruption(), "{error}");
    let copies = ["00003-1.snapshot", "00003-0.snapshot"].map(|name| target.path().join(DIRECTORY).join(name));
    copy_state(source.path(), &copies[1]).expect("copied");
    fs::write(&copies[0], [7; 8192]).expect("written");
    assert!(to.close_gap(id(4)).expect_err("it ends earlier").is_corruption());
    // A copy outlives an installation that fails.
    let note = target.path().join(installation::INSTALLED);
    fs::create_dir(&note).expect("in the way");
    to.close_gap(id(3)).expect_err("the position cannot be noted");
    fs::remove_dir(&note).expect("removed");
    to.close_gap(id(3)).expect("closed");
    assert_eq!((to.applied().log_id, to.applied().revision), (id(3), Revision(3)));
    to.close_gap(id(3)).expect("there is none");
    remove_earlier_copies(target.path()).expect("removed");
    assert_eq!(files(target.path()), 0);
}
