//! The content of the note next to the log, and the damage that it detects.

use std::{cell::Cell, fs, sync::mpsc};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::*;
use crate::log::{
    LogDb,
    tests::{append, crash, durably, entries, id, open},
};

fn vote(term: u64, committed: bool) -> pb::Vote {
    pb::Vote { term, node_id: 2, committed }
}

/// A log that ends before `end`, with all entries of term 1.
fn found(end: u64, vote: Option<pb::Vote>) -> Recovered<'static> {
    Recovered { last: end.checked_sub(1).map(|index| id(1, index)), vote, at: &|index| Ok(Some(id(1, index))) }
}

/// The error of a note that does not match the log.
fn lost(dir: &Path, found: &Recovered) -> String {
    let error = End::open(dir, found).err().expect("less than was durable");
    assert!(error.is_corruption(), "{error}");
    error.to_string()
}

#[test]
fn less_than_was_noted_is_noticed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut end = End::open(dir.path(), &found(0, None)).unwrap();
    end.raise(Some(id(1, 4)), Some(vote(1, false))).unwrap();
    end.raise(Some(id(1, 8)), Some(vote(2, true))).unwrap();
    // An older end does not change the note.
    end.raise(Some(id(1, 2)), None).unwrap();
    drop(end);
    let voted = Some(vote(2, true));
    assert!(lost(dir.path(), &found(8, voted)).contains("log.db has lost its end"));
    assert!(
        lost(dir.path(), &Recovered { at: &|index| Ok(Some(id(0, index))), ..found(12, voted) })
            .contains("lost its end")
    );
    for less in [None, Some(vote(1, true)), Some(vote(2, false))] {
        assert!(lost(dir.path(), &found(9, less)).contains("Vote"));
    }
    End::open(dir.path(), &Recovered { at: &|_| Ok(None), ..found(12, voted) }).expect("it was purged");
    let mut end = End::open(dir.path(), &found(12, Some(vote(3, false)))).unwrap();
    assert_eq!((end.noted.last, end.noted.vote), (Some(id(1, 11)), vote(3, false)), "what is found counts from now on");
    end.lower(Some(id(1, 20))).unwrap();
    end.lower(Some(id(1, 6))).unwrap();
    drop(end);
    drop(End::open(dir.path(), &found(7, Some(vote(3, false)))).unwrap());
}

#[test]
fn a_note_that_is_damaged_or_cut_off_is_no_note() {
    let dir = tempfile::tempdir().unwrap();
    let mut end = End::open(dir.path(), &found(0, None)).unwrap();
    end.raise(Some(id(1, 4)), None).unwrap();
    end.raise(Some(id(1, 5)), None).unwrap();
    drop(end);
    let path = dir.path().join(NAME);
    let whole = fs::read(&path).unwrap();
    for slot in [0, SLOT_BYTES as usize] {
        for byte in slot..slot + RECORD_BYTES {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << (byte % 8);
            fs::write(&path, damaged).unwrap();
            assert!(lost(dir.path(), &found(6, None)).contains("does not match its checksum"), "byte {byte}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert!(lost(dir.path(), &found(5, None)).contains("lost its end"));
    // As an earlier version left the directory.
    fs::remove_file(&path).unwrap();
    drop(End::open(dir.path(), &found(4, None)).unwrap());
    assert!(lost(dir.path(), &found(3, None)).contains("lost its end"));
}

/// A step in the life of a log.
#[derive(Debug, Clone)]
enum Step {
    Vote,
    Append(u64),
    CutOff(usize),
}

/// A log that was killed after these steps, its durable entries, and its vote.
fn killed(steps: &[Step]) -> (tempfile::TempDir, Vec<pb::Entry>, pb::Vote) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (mut term, mut durable) = (1, Vec::new());
    durably(|done| log.save_vote(vote(term, true), done));
    for step in steps {
        match step {
            Step::Vote => {
                term += 1;
                durably(|done| log.save_vote(vote(term, true), done));
            }
            Step::Append(count) => {
                let end = durable.len() as u64;
                let more = entries(term, end..end + count);
                append(&log, more.clone());
                durable.extend(more);
            }
            Step::CutOff(count) => {
                durable.truncate(durable.len().saturating_sub(*count));
                let last = durable.last().and_then(|entry| entry.log_id);
                durably(|done| log.truncate_after(last.map(|id| id.index), done));
            }
        }
    }
    (crash(dir.path()), durable, vote(term, true))
}

/// Whether the log in `dir` opens. If it does, it contains everything that was durable.
fn opens_whole(dir: &Path, durable: &[pb::Entry], vote: pb::Vote) -> Result<bool, TestCaseError> {
    match LogDb::open(dir, Box::new(|_| {})).and_then(|log| log.verify().map(|()| log)) {
        Ok(log) => {
            let (entries, voted) = (log.read(0..durable.len() as u64, usize::MAX), log.vote());
            log.close();
            // The log may hold more: a truncation may be lost, because it would be repeated.
            prop_assert_eq!(entries.unwrap(), durable);
            prop_assert_eq!(voted, Some(vote));
            Ok(true)
        }
        Err(error) => {
            prop_assert!(error.is_corruption(), "{error}");
            Ok(false)
        }
    }
}

#[test]
fn no_flipped_bit_and_no_cut_of_the_write_ahead_log_takes_along_what_was_durable() {
    const CASES: u32 = 300;
    let step = prop_oneof![
        1 => Just(Step::Vote),
        6 => (1..30_u64).prop_map(Step::Append),
        1 => (1..4_usize).prop_map(Step::CutOff),
    ];
    let damage = (any::<prop::sample::Index>(), 0..8_u8, prop::bool::weighted(0.2));
    let found = Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(prop::collection::vec(step, 1..12), damage), |(steps, (at, bit, cut))| {
        let (image, durable, vote) = killed(&steps);
        let path = image.path().join("log.db-wal");
        let mut wal = fs::read(&path).unwrap();
        let at = at.index(wal.len());
        if cut {
            wal.truncate(at);
        } else {
            wal[at] ^= 1 << bit;
        }
        fs::write(&path, wal).unwrap();
        if !opens_whole(image.path(), &durable, vote)? {
            found.set(found.get() + 1);
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(found.get() > CASES / 2, "{} of {CASES}", found.get());
}

#[test]
fn what_was_not_called_durable_may_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, entries(1, 0..3));
    let before = crash(dir.path());
    let (sender, done) = mpsc::channel();
    log.append(entries(1, 3..5), Box::new(move |result| sender.send(result.is_ok()).unwrap())).unwrap();
    assert_eq!(done.recv(), Ok(true));
    let after = crash(dir.path());
    // Killed between the commit and its note: the log has the commit, and the note does not.
    fs::copy(before.path().join(NAME), after.path().join(NAME)).unwrap();
    assert_eq!(open(after.path()).bounds().1.map(|id| id.index), Some(4));
    // The reverse case.
    fs::copy(dir.path().join(NAME), before.path().join(NAME)).unwrap();
    assert!(LogDb::open(before.path(), Box::new(|_| {})).err().expect("refused").is_corruption());
}
