//! Backups: complete, of a single revision, and rejected if anything about them is wrong.

use bytes::Bytes;
use prost::Message as _;

use super::*;
use crate::{AppliedEntry, AppliedPayload, SharedState, StateMachine, codec};
use chat::Command;
use proto::log::v1 as pb;

pub(crate) fn account(index: u64, name: &str) -> AppliedEntry {
    let command = Command::CreateAccount {
        username: name.into(),
        password_hash: "hash".into(),
        request_id: None,
        invitation: None,
    };
    let proposal = pb::Proposal { command: Some(codec::encode_command(&command)), ..Default::default() };
    let batch = Bytes::from(pb::Batch { proposals: vec![proposal], ..Default::default() }.encode_to_vec());
    AppliedEntry { log_id: pb::LogId { term: 3, node_id: 1, index }, payload: AppliedPayload::Batch(batch) }
}

/// A state in `dir` with these accounts, in use.
pub(crate) fn state(dir: &Path, names: &[&str]) -> (SharedState, Readers) {
    let state = SharedState::new(StateMachine::open(dir).expect("open"), Box::new(())).expect("shared");
    let entries = (1..).zip(names).map(|(index, name)| account(index, name)).collect();
    state.apply(entries).expect("applied");
    let readers = Readers::of(state.clone(), 1).expect("readers");
    (state, readers)
}

/// Makes a backup and writes it to `path`.
pub(crate) fn write(readers: &Readers, path: &Path) -> BackupMeta {
    let mut backup = readers.back_up("old-cluster", "n1", TimeMs(77)).expect("made");
    let copied = std::io::copy(&mut backup.file, &mut File::create(path).expect("created")).expect("copied");
    assert_eq!(copied, backup.bytes);
    backup.meta
}

#[test]
fn a_backup_has_all_that_was_applied_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, readers) = state(dir.path(), &["alice", "bob"]);
    let path = dir.path().join("b");
    let meta = write(&readers, &path);
    assert_eq!((meta.revision, meta.log_index, meta.made), (Revision(2), 2, TimeMs(77)));
    assert_eq!((meta.cluster_id.as_str(), meta.node.as_str()), ("old-cluster", "n1"));
    assert_eq!(meta.digest, state.applied().expect("state").chain.digest);
    assert_eq!(verify_backup(&path).expect("sound"), meta);
    assert_eq!(fs::read_dir(dir.path().join(crate::installation::DIRECTORY)).expect("list").count(), 0);
    // The state stays usable.
    state.apply(vec![account(3, "carol")]).expect("applied");
    assert_eq!(write(&readers, &path).revision, Revision(3));
}

#[test]
fn damage_is_found_also_inside_of_a_row() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_state, readers) = state(dir.path(), &["alice", "bob"]);
    let path = dir.path().join("b");
    write(&readers, &path);
    let sound = fs::read(&path).expect("read");
    // A letter of a value that is in no index. The change breaks no page.
    let at = sound.windows(9).position(|bytes| bytes == b"alicehash").expect("the row") + 8;
    let mut changed = sound.clone();
    changed[at] ^= 1;
    fs::write(&path, &changed).expect("written");
    let error = verify_backup(&path).expect_err("refused");
    assert!(error.is_corruption() && error.to_string().contains("checksum"), "{error}");
    for cut in [sound.len() - 1, sound.len() / 2, 4096, 1000, 10] {
        fs::write(&path, &sound[..cut]).expect("written");
        let error = verify_backup(&path).expect_err("refused");
        assert!(!matches!(error, StorageError::Io { .. }), "cut to {cut}: {error}");
    }
    fs::write(&path, &sound).expect("written");
    verify_backup(&path).expect("sound");
}

#[test]
fn other_files_are_refused_and_told_apart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (state, readers) = state(dir.path(), &["alice"]);
    let path = dir.path().join("b");
    let foreign = |path: &Path| {
        let error = verify_backup(path).expect_err("refused");
        assert!(matches!(error, StorageError::ForeignFile { .. }), "{error}");
        error.to_string()
    };
    fs::write(&path, [7; 8192]).expect("written");
    assert!(foreign(&path).contains("no SQLite database"));
    fs::write(&path, []).expect("written");
    foreign(&path);
    state.commit_staged().expect("committed");
    let copy = dir.path().join("copy");
    copy_state(dir.path(), &copy).expect("copied");
    assert!(foreign(&copy).contains("chatctl backup"));
    write(&readers, &path);
    let conn = pages::open_file(&path).expect("open");
    conn.execute_batch("PRAGMA user_version = 99").expect("changed");
    drop(conn);
    let error = verify_backup(&path).expect_err("refused");
    assert!(matches!(error, StorageError::NewerFormat { found: 99, .. }), "{error}");
    let error = verify_backup(&dir.path().join("absent")).expect_err("refused");
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
}

#[test]
fn damage_of_the_state_is_met_and_ends_its_use() {
    let dir = tempfile::tempdir().expect("tempdir");
    let names: Vec<String> = (0..400).map(|number| format!("account-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    drop(state(dir.path(), &names));
    let path = db::database_path(dir.path());
    // Moves everything into the file itself.
    let conn = pages::open_file(&path).expect("open");
    conn.execute_batch("PRAGMA journal_mode = DELETE").expect("set");
    drop(conn);
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.windows(12).position(|bytes| bytes == b"account-399h").expect("a row of the last page") & !4095;
    bytes[at..at + 4096].fill(0xa5);
    fs::write(&path, bytes).expect("written");
    let state = SharedState::new(StateMachine::open(dir.path()).expect("open"), Box::new(())).expect("shared");
    let readers = Readers::of(state.clone(), 1).expect("readers");
    let error = readers.back_up("old-cluster", "n1", TimeMs(77)).expect_err("refused");
    assert!(error.is_corruption(), "{error}");
    assert!(matches!(state.applied(), Err(StorageError::Stopped(_))));
    assert_eq!(fs::read_dir(dir.path().join(crate::installation::DIRECTORY)).expect("list").count(), 0);
}
