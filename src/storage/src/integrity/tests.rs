//! Ways in which a disk can lose data, and the result of the next start.

use rusqlite::params;

use super::*;
use crate::{AppliedEntry, AppliedPayload, Identity, SharedState, VerifiedPages};

fn id(index: u64) -> pb::LogId {
    pb::LogId { term: 1, node_id: 1, index }
}

fn append(log: &LogDb, from: u64, to: u64) {
    let payload = |index: u64| Some(pb::entry::Payload::Batch(vec![index as u8; 3000].into()));
    let entries = (from..to).map(|index| pb::Entry { log_id: Some(id(index)), payload: payload(index) }).collect();
    let (sender, done) = std::sync::mpsc::channel();
    log.append(entries, Box::new(move |result| sender.send(result.is_ok()).expect("the test waits"))).expect("append");
    assert_eq!(done.recv(), Ok(true));
}

/// The files of a killed node: a copy of its directory at that moment.
fn killed() -> tempfile::TempDir {
    let (live, image) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let log = LogDb::open(live.path(), Box::new(|_| {})).expect("log");
    log.save_identity(Identity { cluster_id: "c".into(), node_id: 3, name: "n3".into() }).expect("saved");
    let mut state = StateMachine::open(live.path()).expect("state");
    running(live.path()).expect("running");
    append(&log, 0, 200);
    state
        .apply((0..100).map(|index| AppliedEntry { log_id: id(index), payload: AppliedPayload::Blank }).collect())
        .expect("apply");
    for name in ["log.db", "log.db-wal", "log.db-end", "chat.db", "chat.db-wal", RUNNING] {
        fs::copy(live.path().join(name), image.path().join(name)).expect("copy");
    }
    image
}

/// The reason that a start would find for a quarantine; `None` if the files are intact.
fn found(dir: &Path) -> Option<String> {
    if let Some(reason) = quarantine_reason(dir).expect("looked") {
        return Some(reason);
    }
    let opened = LogDb::open(dir, Box::new(|_| {})).and_then(|log| Ok((log, StateMachine::open(dir)?)));
    match opened.and_then(|(log, state)| verify(dir, &log, &state)) {
        Ok(()) => None,
        Err(error) if error.is_corruption() => Some(error.to_string()),
        Err(error) => panic!("another failure: {error}"),
    }
}

/// Checkpoints both databases and marks a clean shutdown.
fn closed_in_order(dir: &Path) {
    for name in ["log.db", "chat.db"] {
        let conn = crate::open_file(&dir.join(name)).expect("open");
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoint");
    }
    closed(dir).expect("closed");
}

#[test]
fn an_honest_directory_is_trusted_killed_or_closed() {
    let dir = killed();
    assert_eq!(found(dir.path()), None);
    closed_in_order(dir.path());
    fs::remove_file(dir.path().join("log.db-wal")).ok();
    assert_eq!(found(dir.path()), None);
    let empty = tempfile::tempdir().expect("tempdir");
    assert_eq!(found(empty.path()), None);
    assert!(!had_history(empty.path()));
}

#[test]
fn a_missing_write_ahead_log_is_noticed() {
    for name in ["log.db-wal", "chat.db-wal"] {
        let dir = killed();
        fs::remove_file(dir.path().join(name)).expect("removed");
        assert!(found(dir.path()).expect("a reason").contains("write-ahead log"), "{name}");
    }
}

#[test]
fn a_missing_file_is_noticed() {
    for name in ["log.db", "chat.db"] {
        let dir = killed();
        for ending in ["", "-wal"] {
            fs::remove_file(dir.path().join(format!("{name}{ending}"))).expect("removed");
        }
        assert!(found(dir.path()).is_some(), "{name}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_noticed() {
    for name in ["log.db", "chat.db"] {
        for keep in [0, 100, 5000, 40_000] {
            let dir = killed();
            closed_in_order(dir.path());
            let file = File::options().write(true).open(dir.path().join(name)).expect("open");
            let length = file.metadata().expect("length").len();
            file.set_len(keep.min(length / 2)).expect("cut");
            let reason = found(dir.path());
            // An empty chat.db is an empty state: the log, or a snapshot, restores it.
            assert!(reason.is_some() || (name == "chat.db" && keep == 0), "{name}, {keep} bytes");
        }
    }
}

#[test]
fn damaged_bytes_are_noticed() {
    for (name, offset) in [("log.db", 0), ("log.db", 4096 * 20 + 2000), ("chat.db", 16)] {
        let dir = killed();
        closed_in_order(dir.path());
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).expect("read");
        bytes[offset..offset + 50].fill(0xa5);
        fs::write(&path, bytes).expect("write");
        assert!(found(dir.path()).is_some(), "{name} at {offset}");
    }
}

#[test]
fn damage_to_the_state_that_the_start_does_not_meet_is_found_in_the_background() {
    let dir = killed();
    closed_in_order(dir.path());
    let path = dir.path().join("chat.db");
    let mut bytes = fs::read(&path).expect("read");
    // The last page is of the table `recent`, which the start reads.
    let (pages, damaged) = (bytes.len() as u32 / 4096, bytes.len() as u32 / 4096 - 1);
    bytes[(damaged as usize - 1) * 4096 + 100] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert_eq!(found(dir.path()), None);
    let state = StateMachine::open(dir.path()).and_then(|state| SharedState::new(state, Box::new(()))).expect("opened");
    let most = damaged - 1;
    assert_eq!(state.verify_pages(1, most).expect("intact"), VerifiedPages { count: most, of: pages });
    let error = state.verify_pages(damaged, most).expect_err("damaged");
    assert!(error.is_corruption() && error.to_string().contains(&format!("page {damaged}")), "{error}");
    assert!(matches!(state.applied(), Err(StorageError::Stopped(_))), "it is not used any more");
}

#[test]
fn a_log_that_lost_its_end_or_a_changed_entry_is_noticed() {
    let dir = killed();
    closed_in_order(dir.path());
    let conn = crate::open_file(&dir.path().join("log.db")).expect("open");
    conn.execute("DELETE FROM entry WHERE idx >= 50", []).expect("delete");
    drop(conn);
    assert!(found(dir.path()).expect("a reason").contains("log.db has lost its end"));
    // As if the log had never held more.
    fs::remove_file(dir.path().join("log.db-end")).expect("removed");
    assert!(found(dir.path()).expect("a reason").contains("has applied 99, but the log ends at 49"));

    let dir = killed();
    closed_in_order(dir.path());
    let conn = crate::open_file(&dir.path().join("log.db")).expect("open");
    conn.execute("UPDATE entry SET bytes = ?1 WHERE idx = 7", params![vec![1_u8; 3000]]).expect("update");
    drop(conn);
    assert!(found(dir.path()).expect("a reason").contains("log entry 7"));
}

#[test]
fn a_snapshot_that_was_just_installed_may_be_ahead_of_the_log() {
    let dir = killed();
    closed_in_order(dir.path());
    let before = dir.path().join("state");
    drop(StateMachine::open(dir.path()).expect("makes what is missing"));
    fs::copy(dir.path().join("chat.db"), &before).expect("copied");
    // As this version notes it, and as earlier ones did.
    let explanation = dir.path().join(installation::INSTALLED);
    installation::note_position(dir.path(), Some(id(99))).expect("noted");
    let copy = dir.path().join("snapshots/99.snapshot");
    let conn = crate::open_file(&dir.path().join("log.db")).expect("open");
    conn.execute("DELETE FROM entry WHERE idx >= 50", []).expect("delete");
    drop(conn);
    fs::remove_file(dir.path().join("log.db-end")).expect("it never had more");
    assert_eq!(found(dir.path()), None);
    fs::remove_file(&explanation).expect("removed");
    assert!(found(dir.path()).expect("a reason").contains("has applied 99, but the log ends at 49"));
    fs::rename(before, copy).expect("kept");
    assert_eq!(found(dir.path()), None);
    installation::note_position(dir.path(), Some(id(99))).expect("noted");
    // A snapshot of another position does not explain the state.
    let mut state = StateMachine::open(dir.path()).expect("state");
    state.apply(vec![AppliedEntry { log_id: id(100), payload: AppliedPayload::Blank }]).expect("apply");
    drop(state);
    assert!(found(dir.path()).expect("a reason").contains("has applied 100, but the log ends at 49"));
}

#[test]
fn everything_is_moved_aside_at_once_and_only_the_newest_are_kept() {
    let dir = killed();
    mark_for_quarantine(dir.path(), "the test says so").expect("marked");
    assert_eq!(found(dir.path()).as_deref(), Some("the test says so"));
    // The move was interrupted: the mark still exists, and the next start continues.
    let aside = move_aside(dir.path(), "the test says so").expect("moved");
    assert_eq!(fs::read_to_string(aside.join("reason")).expect("why"), "the test says so");
    assert!(aside.join("log.db").exists() && aside.join("chat.db-wal").exists());
    assert_eq!(found(dir.path()), None);
    assert!(LogDb::open(dir.path(), Box::new(|_| {})).expect("log").is_pristine());
    assert!(had_history(dir.path()));
    for _ in 0..4 {
        move_aside(dir.path(), "again").expect("moved");
    }
    assert_eq!(fs::read_dir(dir.path().join(ASIDE)).expect("list").count(), ASIDE_MAX);
}

#[test]
fn a_mark_counts_whatever_it_says() {
    let dir = tempfile::tempdir().expect("tempdir");
    for content in [&b""[..], b"why", b"\xff\xfe"] {
        fs::write(dir.path().join(MARK), content).expect("write");
        let reason = quarantine_reason(dir.path()).expect("read").expect("a reason");
        move_aside(dir.path(), &reason).expect("moved");
        assert_eq!(quarantine_reason(dir.path()).expect("read"), None);
    }
}

#[test]
fn a_node_that_could_not_note_its_end_is_trusted() {
    let dir = killed();
    // It starts again and closes its files, but the running marker remains.
    let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("opened");
    drop(StateMachine::open(dir.path()).expect("opened"));
    log.close();
    drop(log);
    assert!(dir.path().join(RUNNING).exists());
    assert_eq!(found(dir.path()), None);
    // Each database file is complete without its write-ahead log, so that it can be copied.
    for name in ["log.db-wal", "chat.db-wal"] {
        assert_eq!(fs::metadata(dir.path().join(name)).expect("it is there").len(), 0, "{name}");
    }
    fs::remove_file(dir.path().join("log.db-wal")).expect("removed");
    assert!(found(dir.path()).expect("marked").contains("log.db"), "a loss is still found out");
}

#[test]
fn a_snapshot_that_was_being_installed_is_no_loss() {
    let dir = killed();
    fs::remove_file(dir.path().join("chat.db-wal")).expect("removed");
    assert!(quarantine_reason(dir.path()).expect("looked").is_some());
    fs::copy(dir.path().join("chat.db"), dir.path().join(crate::installation::INSTALL)).expect("copied");
    assert_eq!(quarantine_reason(dir.path()).expect("looked"), None);
}
