//! Files written by version 1 of the formats: every later version has to read them with the same meaning.
//!
//! `tests/fixtures/v1/` contains
//! - `entries.bin`: log entries (`log.v1.Entry`, each with its length before it), with every kind of payload and of
//!   command;
//! - `log.db`: a log of these entries, the first two purged, with identity, vote and committed position;
//! - `chat.db`: the resulting state, with every kind of row;
//! - `chat.snapshot`: the state before the last entry;
//! - `SHA256SUMS`: detects accidental changes.
//!
//! The files are never rewritten. Each release adds a folder with those that it wrote (docs/releasing.md), and tests
//! like these for it. `UPDATE_FIXTURES=1 cargo test -p quorum-chat-storage --test integration fixtures` creates the
//! folder if it does not exist.

mod script;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
};

use crate::tables;
use chat::*;
use prost::Message as _;
use proto::log::v1 as pb;
use script::{Step, script};
use sha2::{Digest as _, Sha256};
use storage::{
    AppliedEntry, AppliedPayload, Identity, Incoming, LogDb, MessageProgress, Readers, StateImage, StateMachine,
    StorageError, codec,
};
use tempfile::TempDir;

const VERSION: &str = "v1";
const FILES: [&str; 4] = ["entries.bin", "log.db", "chat.db", "chat.snapshot"];

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(VERSION);
    if !folder.exists() && std::env::var_os("UPDATE_FIXTURES").is_some() {
        // Created under another name and renamed when complete. Several tests may do so at once, and one of them wins.
        let unfinished = tempfile::tempdir_in(folder.parent().expect("below tests")).expect("a folder");
        generate(unfinished.path());
        let _ = fs::rename(unfinished.path(), &folder);
    }
    assert!(folder.exists(), "{} is missing: it belongs to the repository", folder.display());
    folder
}

/// The script's entries as the log contains them.
fn entries() -> Vec<pb::Entry> {
    let entry = |(index, step): (usize, Step)| {
        let payload = match step {
            Step::Membership(membership) => pb::entry::Payload::Membership(membership),
            Step::Blank => pb::entry::Payload::Blank(pb::Blank {}),
            Step::Batch(time_ms, commands) => {
                let proposal = |command: &Command| pb::Proposal {
                    time_ms,
                    traceparent: script::TRACEPARENT.into(),
                    command: Some(codec::encode_command(command)),
                };
                let batch = pb::Batch { proposals: commands.iter().map(proposal).collect(), ..Default::default() };
                pb::entry::Payload::Batch(batch.encode_to_vec().into())
            }
        };
        // Like openraft: there is no term yet when the founder writes the first entry.
        let term = if index == 0 { 0 } else { 1 };
        pb::Entry { log_id: Some(pb::LogId { term, node_id: 1, index: index as u64 }), payload: Some(payload) }
    };
    script().into_iter().enumerate().map(entry).collect()
}

fn applied(entry: pb::Entry) -> AppliedEntry {
    let payload = match entry.payload.expect("has a payload") {
        pb::entry::Payload::Blank(_) => AppliedPayload::Blank,
        pb::entry::Payload::Batch(bytes) => AppliedPayload::Batch(bytes),
        pb::entry::Payload::Membership(membership) => AppliedPayload::Membership(membership),
    };
    AppliedEntry { log_id: entry.log_id.expect("has an id"), payload }
}

fn identity() -> Identity {
    Identity { cluster_id: "6f0c3b1e-7a52-4d0e-9c57-2f5a1f0e8d11".into(), node_id: 3, name: "n3".into() }
}

fn vote() -> pb::Vote {
    pb::Vote { term: 2, node_id: 4, committed: true }
}

/// The position in `purged`, and the last entry that is committed and applied.
fn purged(entries: &[pb::Entry]) -> pb::LogId {
    entries[1].log_id.expect("has an id")
}

fn last(entries: &[pb::Entry]) -> pb::LogId {
    entries[entries.len() - 1].log_id.expect("has an id")
}

fn generate(folder: &Path) {
    let entries = entries();
    let mut bytes = Vec::new();
    for entry in &entries {
        entry.encode_length_delimited(&mut bytes).expect("a vector grows");
    }
    fs::write(folder.join("entries.bin"), bytes).expect("written");

    let work = tempfile::tempdir().expect("a folder");
    write_log(work.path(), &entries);
    let mut machine = StateMachine::open(work.path()).expect("opens");
    let (newest, older) = entries.split_last().expect("not empty");
    machine.apply(older.iter().cloned().map(applied).collect()).expect("applied");
    let mut image = StateImage::open(work.path()).expect("opened");
    fs::write(folder.join("chat.snapshot"), image.read(u32::MAX).expect("read")).expect("written");
    drop(image);
    machine.apply(vec![applied(newest.clone())]).expect("applied");
    drop(machine);
    for name in ["log.db", "chat.db"] {
        let path = work.path().join(name);
        // Moves the content of the write-ahead log into the file, because only the file is kept.
        let connection = storage::open_file(&path).expect("opens");
        let busy: i64 =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).expect("checkpoint");
        assert_eq!(busy, 0, "{name} is in use");
        drop(connection);
        fs::copy(&path, folder.join(name)).expect("copied");
    }
    let sum = |name: &str| format!("{}  {name}\n", sha256(&folder.join(name)));
    fs::write(folder.join("SHA256SUMS"), FILES.map(sum).concat()).expect("written");
}

fn write_log(dir: &Path, entries: &[pb::Entry]) {
    let log = LogDb::open(dir, Box::new(|_| {})).expect("opens");
    log.save_identity(identity()).expect("saved");
    let (sender, written) = mpsc::channel();
    let done = move |sender: mpsc::Sender<_>| -> storage::Done {
        Box::new(move |result| sender.send(result.map_err(|error| error.to_string())).expect("waited for"))
    };
    log.append(entries.to_vec(), done(sender.clone())).expect("queued");
    log.save_committed(last(entries)).expect("queued");
    log.purge(purged(entries)).expect("queued");
    log.save_vote(vote(), done(sender)).expect("queued");
    for _ in 0..2 {
        written.recv().expect("called back").expect("written");
    }
    log.close();
}

fn sha256(path: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(path).expect("readable")))
}

/// A copy of fixtures under the names of a data directory, because opening a database writes to it.
fn copy(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (from, to) in files {
        fs::copy(folder().join(from), dir.path().join(to)).expect("copied");
    }
    dir
}

/// The answers to all queries on the state, in the order of [`script::NAMES`].
fn answers(dir: &Path) -> String {
    let readers = Readers::open(dir, 1).expect("opens");
    let all = |query: &storage::Query<'_>| -> Result<String, StorageError> {
        let revision = query.revision()?;
        let mut text = format!("{revision} {:?}\n{:?}\n", query.clock()?, query.accounts("", None, 100)?);
        for name in script::NAMES {
            let me = query.account_by_name(name)?.expect("exists").id;
            let _ = writeln!(text, "{:?}", query.conversations(me, None, 100)?);
            for conversation in query.conversations(me, None, 100)?.0 {
                let id = conversation.conversation;
                let _ = writeln!(text, "{:?}", query.conversation_page(me, id, None, 100)?);
            }
            let _ = writeln!(text, "{:?}", query.events_after(me, Revision(0), revision, 100)?);
            let _ = writeln!(text, "{:?}", query.undelivered(me, Revision(0), revision, 100)?);
        }
        for token in script::TOKENS {
            let _ = writeln!(text, "{:?}", query.session_by_token(&TokenHash([token; 32]))?);
        }
        Ok(text)
    };
    readers.read(all).expect("read")
}

#[test]
fn the_files_are_those_that_were_written_then() {
    let folder = folder();
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).expect("readable");
    let lines: Vec<_> = sums.lines().filter_map(|line| line.split_once("  ")).collect();
    assert_eq!(lines.iter().map(|(_, name)| *name).collect::<Vec<_>>(), FILES);
    for (sum, name) in lines {
        assert_eq!(sha256(&folder.join(name)), sum, "{name} was changed: add a new version instead");
    }
}

#[test]
fn every_command_of_the_log_is_decoded() {
    let bytes = fs::read(folder().join("entries.bin")).expect("readable");
    let mut rest = bytes.as_slice();
    let mut read = Vec::new();
    while !rest.is_empty() {
        read.push(pb::Entry::decode_length_delimited(&mut rest).expect("an entry"));
    }
    assert_eq!(read, entries());
    let mut kinds = std::collections::HashSet::new();
    for (entry, step) in read.into_iter().zip(script()) {
        let (Some(pb::entry::Payload::Batch(bytes)), Step::Batch(_, expected)) = (entry.payload, step) else {
            continue;
        };
        let batch = pb::Batch::decode(bytes).expect("a batch");
        let decoded: Vec<Command> = batch
            .proposals
            .into_iter()
            .map(|proposal| codec::decode_command(proposal.command.expect("there")).expect("a command"))
            .collect();
        kinds.extend(decoded.iter().map(std::mem::discriminant));
        assert_eq!(decoded, expected);
    }
    assert_eq!(kinds.len(), 9, "every kind of command is in the fixture");
}

#[test]
fn the_log_file_holds_what_was_put_into_it() {
    let dir = copy(&[("log.db", "log.db")]);
    let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("opens");
    let expected = entries();
    assert_eq!(log.identity(), Some(identity()));
    assert_eq!((log.vote(), log.committed()), (Some(vote()), Some(last(&expected))));
    assert_eq!(log.bounds(), (Some(purged(&expected)), Some(last(&expected))));
    assert_eq!(log.read(0..u64::MAX, usize::MAX).expect("read"), expected[2..]);
    log.close();
}

#[test]
fn an_upgraded_file_has_the_rows_that_the_log_makes() {
    let upgraded = copy(&[("chat.db", "chat.db")]);
    drop(StateMachine::open(upgraded.path()).expect("opens"));
    let replayed = tempfile::tempdir().expect("a folder");
    let mut machine = StateMachine::open(replayed.path()).expect("opens");
    machine.apply(entries().into_iter().map(applied).collect()).expect("applied");
    drop(machine);
    assert_eq!(tables::rows(upgraded.path()), tables::rows(replayed.path()));
}

#[test]
fn the_log_the_snapshot_and_the_state_mean_the_same() {
    let state = copy(&[("chat.db", "chat.db")]);
    let chain = StateMachine::open(state.path()).expect("opens").applied().chain;
    let expected = answers(state.path());

    let replayed = tempfile::tempdir().expect("a folder");
    let mut machine = StateMachine::open(replayed.path()).expect("opens");
    let outcomes = machine.apply(entries().into_iter().map(applied).collect()).expect("applied").outcomes;
    assert_eq!(outcomes, script::outcomes());
    assert_eq!(answers(replayed.path()), expected, "the log makes another state than it did");
    assert_eq!(machine.applied().chain, chain, "a node of that version would be accused, or accuse this one");

    let installed = copy(&[("chat.snapshot", "sent")]);
    let mut machine = StateMachine::open(installed.path()).expect("opens");
    let sent = fs::read(installed.path().join("sent")).expect("read");
    let mut incoming = Incoming::create(installed.path()).expect("created");
    incoming.write(&sent).expect("written");
    let received = incoming.finish(crc32fast::hash(&sent)).expect("verified");
    let meta = received.meta().clone();
    let entries = entries();
    let (newest, older) = entries.split_last().expect("not empty");
    assert_eq!(meta.log_id, Some(last(older)));
    assert_eq!(meta.membership.log_id, entries[0].log_id);
    machine.install_snapshot(received).expect("installed");
    assert_eq!(machine.applied().revision, meta.revision);
    machine.apply(vec![applied(newest.clone())]).expect("applied");
    assert_eq!(answers(installed.path()), expected, "snapshot and log make another state than they did");
    assert_eq!((machine.applied().log_id, machine.applied().chain), (Some(last(&entries)), chain));
    assert_eq!(machine.applied().membership.log_id, Some(last(&entries)));
}

#[test]
fn the_state_file_holds_every_kind_of_row() {
    let dir = copy(&[("chat.db", "chat.db")]);
    let machine = StateMachine::open(dir.path()).expect("opens");
    assert_eq!(machine.applied().log_id, Some(last(&entries())));
    assert_eq!(machine.applied().clock, TimeMs(script::END_MS));
    let connection = storage::open_file(&dir.path().join("chat.db")).expect("opens");
    let count = |table: &str| -> i64 {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("counted")
    };
    for (table, rows) in script::ROWS {
        assert_eq!(count(table), rows, "{table}");
    }

    let readers = Readers::open(dir.path(), 1).expect("opens");
    let look = |query: &storage::Query<'_>| -> Result<(), StorageError> {
        let alice = query.account_by_name("alice")?.expect("exists");
        assert_eq!(alice.password_hash, script::PASSWORD_HASH);
        let dora = query.account_by_name("dora")?.expect("the name stays");
        assert!(dora.deleted && dora.password_hash.is_empty());
        let bob = query.account_by_name("bob")?.expect("exists");
        let id = query.direct_conversation(alice.id, bob.id)?.expect("exists");
        let page = query.conversation_page(alice.id, id, None, 100)?;
        let seen: Vec<_> =
            page.messages.iter().rev().map(|m| (m.seq.0, m.body.as_str(), m.deleted, m.status)).collect();
        use MessageProgress::{Delivered, Read, Sent};
        // The third is hidden from alice, the second a tombstone.
        assert_eq!(
            seen,
            [
                (1, "hello", false, Read),
                (2, "", true, Read),
                (4, "grüße 👋", false, Sent),
                (5, "last", false, Delivered)
            ]
        );
        Ok(())
    };
    readers.read(look).expect("read");
}
