//! The log across restarts, stalls and damage.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, mpsc},
    time::Duration,
};

use prost::Message as _;

use super::{scan::SIZES_STRETCH, *};

pub(super) fn id(term: u64, index: u64) -> pb::LogId {
    pb::LogId { term, node_id: 1, index }
}

fn entry(term: u64, index: u64, text: &str) -> pb::Entry {
    let payload = pb::entry::Payload::Batch(bytes::Bytes::copy_from_slice(text.as_bytes()));
    pb::Entry { log_id: Some(id(term, index)), payload: Some(payload) }
}

pub(super) fn entries(term: u64, range: Range<u64>) -> Vec<pb::Entry> {
    range.map(|index| entry(term, index, &format!("entry {index} of term {term}"))).collect()
}

pub(super) fn open(dir: &Path) -> LogDb {
    LogDb::open(dir, Box::new(|_| {})).expect("opens")
}

/// Runs one write and waits until it is durable.
pub(super) fn durably(write: impl FnOnce(Done) -> Result<(), StorageError>) {
    let (done, wait) = completion();
    write(done).expect("queued");
    wait_for(&wait).expect("written");
}

pub(super) fn append(log: &LogDb, batch: Vec<pb::Entry>) {
    durably(|done| log.append(batch, done));
}

/// A log whose writer blocks after the first group until it is released. Operations queued meanwhile are not durable.
struct Stalled {
    log: LogDb,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Stalled {
    fn open(dir: &Path) -> Self {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (reached, at_gate) = mpsc::channel();
        let inner = Arc::clone(&gate);
        let on_group = move |_: &GroupCommit| {
            let _ = reached.send(());
            let (open, changed) = &*inner;
            let guard = lock(open);
            drop(changed.wait_while(guard, |open| !*open).expect("not poisoned"));
        };
        let log = LogDb::open(dir, Box::new(on_group)).expect("opens");
        append(&log, entries(1, 0..3));
        at_gate.recv_timeout(Duration::from_secs(10)).expect("the first group is written");
        Self { log, gate }
    }

    fn release(&self) {
        *lock(&self.gate.0) = true;
        self.gate.1.notify_all();
    }
}

/// Takes the write lock of `log.db` in `dir`, as another process could.
fn lock_log(dir: &Path) -> rusqlite::Connection {
    let file = crate::open_file(&dir.join("log.db")).expect("opens");
    file.execute_batch("BEGIN IMMEDIATE").expect("locked");
    file
}

#[test]
fn the_newest_entries_of_a_size_are_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = open(dir.path());
    // More than are looked at at once, of the same length.
    let end = SIZES_STRETCH * 2 + 10;
    append(&log, (0..end).map(|index| entry(1, index, "text")).collect());
    let of = |count: u64| count * entry(1, 1_000, "text").encoded_len() as u64;
    let start = |range, bytes| log.start_of_newest(range, bytes).expect("reads");
    for count in [1, 2, SIZES_STRETCH - 1, SIZES_STRETCH, SIZES_STRETCH + 1, 2 * SIZES_STRETCH - 1_000] {
        assert_eq!(start(0..end, of(count)), end - count, "{count} entries");
        assert_eq!(start(0..end, of(count + 1) - 1), end - count, "{count} entries and a part of one");
    }
    assert_eq!(start(0..end, 0), end, "none is small enough");
    assert_eq!(start(end - 5..end, of(1_000)), end - 5, "no further than the range");
    assert_eq!(start(0..end, u64::MAX), 0);
    assert_eq!(start(end..end + 10, of(2)), end, "beyond the log");
    log.purge(id(1, end - 4)).expect("purged");
    append(&log, entries(1, end..end + 1));
    assert_eq!(start(0..end, u64::MAX), 0, "purged entries take no space");
    log.close();
}

/// A copy of the files as a crash at this moment would leave them.
pub(super) fn crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("temporary directory");
    for name in ["log.db", "log.db-wal", "log.db-end"] {
        let from = dir.join(name);
        if from.exists() {
            std::fs::copy(from, copy.path().join(name)).expect("copied");
        }
    }
    copy
}

#[test]
fn everything_is_found_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let identity = Identity { cluster_id: "c".into(), node_id: 3, name: "n3".into() };
    let vote = pb::Vote { term: 7, node_id: 2, committed: true };
    {
        let log = open(dir.path());
        assert!(log.is_pristine());
        log.save_identity(identity.clone()).expect("saved");
        append(&log, entries(1, 0..10));
        durably(|done| log.save_vote(vote, done));
        log.save_committed(id(1, 6)).expect("queued");
        log.purge(id(1, 3)).expect("queued");
        durably(|done| log.truncate_after(Some(8), done));
        log.close();
    }
    let log = open(dir.path());
    assert!(!log.is_pristine());
    assert_eq!(log.identity(), Some(identity));
    assert_eq!((log.vote(), log.committed()), (Some(vote), Some(id(1, 6))));
    assert_eq!(log.bounds(), (Some(id(1, 3)), Some(id(1, 8))));
    assert_eq!(log.read(0..100, usize::MAX).expect("read"), entries(1, 4..9));
    append(&log, entries(2, 9..11));
    assert_eq!(log.bounds().1, Some(id(2, 10)));
    let all: Vec<_> = entries(1, 4..9).into_iter().chain(entries(2, 9..11)).collect();
    assert_eq!(log.read(0..100, usize::MAX).expect("read"), all, "from the file and from memory");
}

#[test]
fn reads_are_bounded_by_bytes_but_never_empty() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = open(dir.path());
    append(&log, entries(1, 0..20));
    assert_eq!(log.read(5..20, 1).expect("read").len(), 1);
    let two = 2 * entry(1, 5, "entry 5 of term 1").encoded_len();
    assert_eq!(log.read(5..9, two).expect("read").len(), 2);
    let reopened = crash(dir.path());
    let from_file = open(reopened.path());
    assert_eq!(from_file.read(5..20, 1).expect("read").len(), 1);
    assert_eq!(from_file.read(5..9, two).expect("read").len(), 2);
    assert_eq!(from_file.read(30..40, 1).expect("read"), Vec::new());
}

#[test]
fn an_append_can_be_read_before_it_is_durable_and_is_lost_in_a_crash() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let stalled = Stalled::open(dir.path());
    let (done, wait) = completion();
    stalled.log.append(entries(1, 3..5), done).expect("queued");
    assert_eq!(stalled.log.read(0..10, usize::MAX).expect("read"), entries(1, 0..5));
    assert!(wait.try_recv().is_err(), "called back before the entries were durable");
    assert_eq!(open(crash(dir.path()).path()).bounds().1, Some(id(1, 2)));
    stalled.release();
    wait_for(&wait).expect("written");
    assert_eq!(open(crash(dir.path()).path()).bounds().1, Some(id(1, 4)));
}

#[test]
fn the_committed_position_is_never_ahead_of_the_entries() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let stalled = Stalled::open(dir.path());
    let (done, wait) = completion();
    stalled.log.append(entries(1, 3..9), done).expect("queued");
    stalled.log.save_committed(id(1, 8)).expect("queued");
    let after_crash = open(crash(dir.path()).path());
    assert!(after_crash.committed().map_or(0, |id| id.index) <= 2, "{:?}", after_crash.committed());
    stalled.release();
    wait_for(&wait).expect("written");
    // It needs no write of its own: it is part of later writes, and finally of the one at the end.
    append(&stalled.log, entries(1, 9..10));
    let after_crash = open(crash(dir.path()).path());
    assert_eq!((after_crash.committed(), after_crash.bounds().1), (Some(id(1, 8)), Some(id(1, 9))));
    stalled.log.save_committed(id(1, 9)).expect("queued");
    stalled.log.close();
    assert_eq!(open(crash(dir.path()).path()).committed(), Some(id(1, 9)));
}

#[test]
fn waiting_for_durability_ends_with_the_fsync() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let stalled = Stalled::open(dir.path());
    let (done, waited) = completion();
    stalled.log.when_durable(2, done);
    assert!(waited.try_recv().expect("durable already").is_ok());
    stalled.log.append(entries(1, 3..4), Box::new(|_| {})).expect("queued");
    let (done, waited) = completion();
    stalled.log.when_durable(3, done);
    assert!(waited.try_recv().is_err());
    stalled.release();
    assert!(waited.recv_timeout(Duration::from_secs(10)).expect("an answer").is_ok());
}

#[test]
fn a_purge_may_go_beyond_the_end_and_the_log_goes_on_after_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = open(dir.path());
    append(&log, entries(1, 0..5));
    log.purge(id(2, 100)).expect("queued");
    assert_eq!(log.bounds(), (Some(id(2, 100)), Some(id(2, 100))));
    assert_eq!(log.read(0..200, usize::MAX).expect("read"), Vec::new());
    append(&log, entries(3, 101..103));
    assert_eq!(log.read(0..200, usize::MAX).expect("read"), entries(3, 101..103));
    let image = crash(dir.path());
    let log = open(image.path());
    assert_eq!(log.bounds(), (Some(id(2, 100)), Some(id(3, 102))));
    assert_eq!(log.read(0..200, usize::MAX).expect("read"), entries(3, 101..103));
}

#[test]
fn truncated_entries_are_replaced() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = open(dir.path());
    append(&log, entries(1, 0..6));
    durably(|done| log.truncate_after(Some(2), done));
    append(&log, entries(2, 3..5));
    let expected: Vec<_> = entries(1, 0..3).into_iter().chain(entries(2, 3..5)).collect();
    assert_eq!(log.read(0..100, usize::MAX).expect("read"), expected);
    let image = crash(dir.path());
    assert_eq!(open(image.path()).read(0..100, usize::MAX).expect("read"), expected);
    durably(|done| log.truncate_after(None, done));
    assert_eq!(log.bounds(), (None, None));
    append(&log, entries(3, 0..1));
    assert_eq!(log.read(0..100, usize::MAX).expect("read"), entries(3, 0..1));
}

#[test]
fn what_was_cut_off_while_it_was_written_is_not_durable() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = open(dir.path());
    append(&log, entries(1, 0..3));
    let blocker = lock_log(dir.path());
    log.append(entries(1, 3..10), Box::new(|_| {})).expect("queued");
    while log.stalled().is_none() {
        std::thread::yield_now();
    }
    // The writer has taken only the append.
    let (done, wait) = completion();
    log.truncate_after(Some(4), done).expect("queued");
    drop(blocker);
    wait_for(&wait).expect("written");
    assert_eq!(log.durable_end(), 5);
    assert!(!log.is_durable(5).expect("works"));
    append(&log, entries(2, 5..7));
    assert_eq!(log.durable_end(), 7);
}

#[test]
fn a_hole_and_a_changed_byte_are_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let log = open(dir.path());
        append(&log, entries(1, 0..6));
        log.close();
    }
    let edit = |sql: &str| {
        let copy = crash(dir.path());
        let file = crate::open_file(&copy.path().join("log.db")).expect("opens");
        file.execute(sql, []).expect("edited");
        copy
    };
    let holed = edit("DELETE FROM entry WHERE idx = 3");
    let error = LogDb::open(holed.path(), Box::new(|_| {})).err().expect("refused");
    assert!(error.is_corruption(), "{error}");
    let changed = edit("UPDATE entry SET bytes = CAST(bytes || x'00' AS BLOB) WHERE idx = 3");
    let log = open(changed.path());
    assert!(log.read(0..3, usize::MAX).is_ok());
    let error = log.read(0..6, usize::MAX).expect_err("refused");
    assert!(error.is_corruption() && error.to_string().contains("entry 3"), "{error}");
}

#[test]
fn a_file_of_another_program_or_of_a_later_version_is_refused() {
    for (pragma, needle) in
        [("application_id = 77", "not a database of this program"), ("user_version = 99", "newer version")]
    {
        let dir = tempfile::tempdir().expect("temporary directory");
        open(dir.path()).close();
        let file = crate::open_file(&dir.path().join("log.db")).expect("opens");
        file.execute_batch(&format!("PRAGMA {pragma}")).expect("set");
        drop(file);
        let error = LogDb::open(dir.path(), Box::new(|_| {})).err().expect("refused");
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn what_is_found_at_the_start_is_in_the_file_before_it_counts() {
    let (dir, copy) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let log = open(dir.path());
    append(&log, entries(1, 0..3));
    // As a killed process leaves the files: the entries are only in the write-ahead log.
    for name in ["log.db", "log.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).expect("copied");
    }
    let wal = copy.path().join("log.db-wal");
    assert_ne!(std::fs::metadata(&wal).expect("there").len(), 0);
    let found = open(copy.path());
    assert_eq!(std::fs::metadata(&wal).expect("there").len(), 0);
    assert_eq!(found.read(0..9, usize::MAX).expect("read"), entries(1, 0..3));
}

/// Opens a closed log of ten entries with every kind of record, after `change` was applied to its file.
fn damaged(dir: &Path, change: &str) -> Result<LogDb, StorageError> {
    let log = open(dir);
    log.save_identity(Identity { cluster_id: "c".into(), node_id: 3, name: "n3".into() }).expect("saved");
    append(&log, entries(1, 0..10));
    durably(|done| log.save_vote(pb::Vote { term: 7, node_id: 2, committed: true }, done));
    log.purge(id(1, 3)).expect("queued");
    log.close();
    drop(log);
    let file = crate::open_file(&dir.join("log.db")).expect("opens");
    file.execute_batch(change).expect("changed");
    drop(file);
    LogDb::open(dir, Box::new(|_| {}))
}

#[test]
fn a_record_that_was_changed_or_is_gone_is_found() {
    let damaged = |change: &str| damaged(tempfile::tempdir().expect("temporary directory").path(), change);
    damaged("").expect("nothing was changed");
    // The last change purges up to the highest index, which has no successor.
    let beyond = pb::LogId { term: 1, node_id: 1, index: u64::MAX }.encode_to_vec();
    let beyond = hex::encode(beyond);
    for change in [
        "UPDATE meta SET value = x'0803' WHERE key = 'vote'",
        "UPDATE meta SET value = x'' WHERE key = 'vote'",
        "DELETE FROM meta WHERE key = 'vote'",
        "DELETE FROM meta WHERE key = 'checksum'",
        "UPDATE meta SET key = 'note' WHERE key = 'vote'",
        &format!("UPDATE meta SET value = x'{beyond}' WHERE key = 'purged'"),
    ] {
        let error = damaged(change).err().expect("damaged");
        assert!(error.is_corruption(), "{change}: {error}");
    }
}

#[test]
fn an_entry_in_the_place_of_another_is_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = damaged(
        dir.path(),
        "UPDATE entry SET idx = 100 WHERE idx = 5; UPDATE entry SET idx = 5 WHERE idx = 6;
         UPDATE entry SET idx = 6 WHERE idx = 100",
    )
    .expect("the last entry is well");
    let errors = [log.verify().expect_err("two are exchanged"), log.read(5..6, usize::MAX).expect_err("another entry")];
    for error in errors {
        assert!(error.is_corruption(), "{error}");
    }
}
