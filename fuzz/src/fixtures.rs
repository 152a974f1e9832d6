//! Files of the first version of the formats, from `src/storage/tests/fixtures`, and what they hold.

use std::{fs, path::Path, sync::mpsc};

use prost::Message as _;
use proto::log::v1 as pb;
use storage::{AppliedEntry, AppliedPayload, Identity, LogDb};

/// A log without its first two entries.
pub const LOG: &[u8] = include_bytes!("../../src/storage/tests/fixtures/v1/log.db");
/// The state that all entries make.
pub const STATE: &[u8] = include_bytes!("../../src/storage/tests/fixtures/v1/chat.db");
/// The state before the last entry.
pub const SNAPSHOT: &[u8] = include_bytes!("../../src/storage/tests/fixtures/v1/chat.snapshot");
const ENTRIES: &[u8] = include_bytes!("../../src/storage/tests/fixtures/v1/entries.bin");

/// All entries, those that the log has purged as well.
pub fn entries() -> Vec<pb::Entry> {
    let mut bytes = ENTRIES;
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        entries.push(pb::Entry::decode_length_delimited(&mut bytes).expect("the fixture is whole"));
    }
    entries
}

/// An entry as the state machine takes it.
pub fn applied(entry: pb::Entry) -> AppliedEntry {
    let payload = match entry.payload.expect("the fixture is whole") {
        pb::entry::Payload::Blank(_) => AppliedPayload::Blank,
        pb::entry::Payload::Batch(bytes) => AppliedPayload::Batch(bytes),
        pb::entry::Payload::Membership(membership) => AppliedPayload::Membership(membership),
    };
    AppliedEntry { log_id: entry.log_id.expect("the fixture is whole"), payload }
}

/// What is in the log beside its entries, in the fixture and in [`new_log`].
pub fn identity() -> Identity {
    Identity { cluster_id: "6f0c3b1e-7a52-4d0e-9c57-2f5a1f0e8d11".into(), node_id: 3, name: "n3".into() }
}

/// See [`identity`].
pub fn vote() -> pb::Vote {
    pb::Vote { term: 2, node_id: 4, committed: true }
}

/// The same log as this version writes it.
pub fn new_log(dir: &Path) -> Vec<u8> {
    let log = LogDb::open(dir, Box::new(|_| {})).expect("opens");
    let entries = entries();
    let purged = entries[1].log_id.expect("the fixture is whole");
    let last = entries.last().and_then(|entry| entry.log_id).expect("the fixture is whole");
    log.save_identity(identity()).expect("written");
    let (sender, done) = mpsc::channel();
    log.append(entries, Box::new(|_| {})).expect("queued");
    log.save_committed(last).expect("queued");
    log.purge(purged).expect("queued");
    log.save_vote(vote(), Box::new(move |result| sender.send(result.is_ok()).expect("waited for"))).expect("queued");
    assert!(done.recv().expect("answered"), "the log could not be written");
    log.close();
    drop(log);
    let path = dir.join("log.db");
    let conn = storage::open_file(&path).expect("opens");
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).expect("checkpoint");
    assert_eq!(busy, 0);
    drop(conn);
    fs::read(path).expect("there")
}
