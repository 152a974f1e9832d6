//! `log.db`, damaged: bytes, pages, and rows that SQLite has nothing against.
//!
//! A damaged entry or record is an error, and never other content. What can be read goes on: entries that are appended
//! are there after a restart.

#![no_main]

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::log::v1 as pb;
use quorum_chat_fuzz::{
    edits::{self, Edit},
    fixtures,
    scratch::Scratch,
};
use rusqlite::Connection;
use storage::{LogDb, StorageError, open_file};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::default);
static NEW: LazyLock<Vec<u8>> = LazyLock::new(|| fixtures::new_log(SCRATCH.emptied()));
/// Rows of the undamaged file.
static ROWS: LazyLock<Rows> = LazyLock::new(|| {
    let path = SCRATCH.emptied().join("log.db");
    fs::write(&path, &*NEW).expect("written");
    Rows::read(&path).expect("readable")
});

/// Everything that stands in a file, without a look at what it means.
struct Rows {
    entries: BTreeMap<i64, (i64, Vec<u8>)>,
    meta: BTreeMap<String, Vec<u8>>,
}

impl Rows {
    fn read(path: &Path) -> rusqlite::Result<Self> {
        let conn = Connection::open(path)?;
        let mut entries = conn.prepare("SELECT idx, crc, bytes FROM entry")?;
        let entries = entries.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        let mut meta = conn.prepare("SELECT key, value FROM meta")?;
        let meta = meta.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Self { entries: entries.collect::<Result<_, _>>()?, meta: meta.collect::<Result<_, _>>()? })
    }

    /// Somebody changed content and checksum so that they agree: no damage does that, and no check finds it.
    fn is_forged(&self) -> bool {
        let entry = |(index, row): (&i64, &(i64, Vec<u8>))| {
            ROWS.entries.get(index).is_some_and(|old| old.0 != row.0 && old.1 != row.1)
        };
        let same = |key: &str| self.meta.get(key) == ROWS.meta.get(key);
        let records = self.meta.keys().chain(ROWS.meta.keys()).any(|key| !same(key)) && !same("checksum");
        self.entries.iter().any(entry) || records
    }
}

/// What a node does before it uses a file: to write to a page that is damaged would damage more.
fn has_sound_pages(path: &Path) -> bool {
    let check = |file: Connection| file.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    open_file(path).is_ok_and(|file| check(file).is_ok_and(|verdict| verdict == "ok"))
}

fuzz_target!(|edits: Vec<Edit>| {
    LazyLock::force(&ROWS);
    let dir = SCRATCH.emptied();
    let path = dir.join("log.db");
    let mut bytes = NEW.clone();
    edits::damage(&mut bytes, &edits);
    fs::write(&path, bytes).expect("written");
    edits::rewrite(&path, &edits);
    if Rows::read(&path).is_ok_and(|rows| rows.is_forged()) {
        return;
    }
    let Ok(log) = LogDb::open(dir, Box::new(|_| {})) else { return };
    let read = check(&log);
    if !has_sound_pages(&path) {
        log.close();
        return;
    }
    let next = log.bounds().1.map_or(0, |last| last.index + 1);
    let entry = pb::Entry {
        log_id: Some(pb::LogId { term: 9, node_id: 9, index: next }),
        payload: Some(pb::entry::Payload::Batch(b"appended".as_slice().into())),
    };
    let (sender, done) = std::sync::mpsc::channel();
    let told = Box::new(move |result: Result<(), _>| sender.send(result.is_ok()).expect("waited for"));
    let appended = log.append(vec![entry.clone()], told).is_ok() && done.recv().expect("answered");
    log.close();
    drop(log);
    let Ok(log) = LogDb::open(dir, Box::new(|_| {})) else {
        assert!(!appended || read.is_err(), "a log that was read and written is not opened any more");
        return;
    };
    if appended {
        assert_eq!(log.read(next..next + 1, usize::MAX).ok(), Some(vec![entry]), "what was called durable is there");
    }
    log.close();
});

/// What the log gives out is what was put in.
fn check(log: &LogDb) -> Result<(), StorageError> {
    let original: BTreeMap<u64, pb::Entry> =
        fixtures::entries().into_iter().map(|e| (e.log_id.map_or(0, |id| id.index), e)).collect();
    let (purged, last) = log.bounds();
    assert!(purged.map(|id| id.index) <= last.map(|id| id.index));
    if let Some(identity) = log.identity() {
        assert_eq!(identity, fixtures::identity());
    }
    if let Some(vote) = log.vote() {
        assert_eq!(vote, fixtures::vote());
    }
    for id in [log.committed(), purged, last].into_iter().flatten() {
        let known = original.get(&id.index).and_then(|entry| entry.log_id);
        assert_eq!(known, Some(id), "a position is that of an entry");
    }
    let first = purged.map_or(0, |id| id.index + 1);
    let end = last.map_or(0, |id| id.index + 1);
    for at in first..end {
        for found in log.read(at..end, 200)? {
            let index = found.log_id.map(|id| id.index);
            assert_eq!(index.and_then(|index| original.get(&index)), Some(&found), "an entry with other content");
        }
        let one = log.read(at..at + 1, usize::MAX)?;
        assert_eq!(one.first().and_then(|entry| entry.log_id).map(|id| id.index), Some(at), "another entry");
    }
    log.verify()?;
    // Only what is complete is decoded.
    assert!(original.values().all(|entry| entry.encoded_len() > 0));
    Ok(())
}
