//! `chat.db` and snapshots, damaged: bytes, pages, and rows that SQLite has nothing against.
//!
//! Opening, asking and applying more commands never panics and never hangs. Either the damage is found, or answers are
//! bounded and in order. A snapshot that is verified can be installed, and then is what it said it is.

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use quorum_chat_fuzz::{
    commands::{self, Step},
    edits::{self, Edit},
    fixtures,
    questions::{self, Trust},
    scratch::Scratch,
};
use storage::{Incoming, LogDb, Readers, StateImage, StateMachine, StorageError, integrity};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::default);

fuzz_target!(|input: (bool, Vec<Edit>, Vec<Step>)| {
    let (as_snapshot, edits, steps) = input;
    let dir = SCRATCH.emptied();
    let result = match as_snapshot {
        true => receive(dir, &edits),
        false => start(dir, &edits),
    };
    // That the damage was found is as good as anything.
    let Ok(mut machine) = result else { return };
    let _ = serve(&mut machine, &steps);
});

/// A node starts on a damaged file.
fn start(dir: &Path, edits: &[Edit]) -> Result<StateMachine, StorageError> {
    damaged(fixtures::STATE, &dir.join("chat.db"), edits);
    fs::write(dir.join("log.db"), fixtures::LOG).expect("written");
    let machine = StateMachine::open(dir)?;
    let log = LogDb::open(dir, Box::new(|_| {}))?;
    let verified = integrity::verify(dir, &log, &machine);
    log.close();
    verified.map(|()| machine)
}

/// A damaged snapshot is installed in an empty node.
fn receive(dir: &Path, edits: &[Edit]) -> Result<StateMachine, StorageError> {
    let path = dir.join("sent");
    damaged(fixtures::SNAPSHOT, &path, edits);
    let mut machine = StateMachine::open(&dir.join("node")).expect("opens");
    let sent = fs::read(path).expect("read");
    let mut incoming = Incoming::create(machine.directory())?;
    incoming.write(&sent)?;
    let received = incoming.finish(crc32fast::hash(&sent))?;
    let meta = received.meta().clone();
    machine.install_snapshot(received)?;
    let applied = machine.applied();
    assert_eq!((applied.log_id, applied.revision), (meta.log_id, meta.revision), "what was verified was installed");
    assert_eq!(applied.membership, meta.membership);
    Ok(machine)
}

fn damaged(fixture: &[u8], path: &Path, edits: &[Edit]) {
    let mut bytes = fixture.to_vec();
    edits::damage(&mut bytes, edits);
    fs::write(path, bytes).expect("written");
    edits::rewrite(path, edits);
}

fn serve(machine: &mut StateMachine, steps: &[Step]) -> Result<(), StorageError> {
    let dir = machine.directory().to_owned();
    let ask = || Readers::open(&dir, 1)?.read(|query| questions::ask(query, Trust::Damaged));
    ask()?;
    let after = machine.applied().log_id.map_or(0, |id| id.index);
    let before = machine.applied().clone();
    match machine.apply(commands::entries(steps, after, before.clock.0)) {
        Ok(applied) => assert!(applied.revision >= before.revision && applied.clock >= before.clock),
        // Nothing of it stays.
        Err(_) => assert_eq!(machine.applied(), &before),
    }
    ask()?;
    let received = StateImage::open(&dir)?.receive(&dir)?;
    let meta = received.meta();
    assert_eq!((meta.log_id, meta.revision), (machine.applied().log_id, machine.applied().revision));
    Ok(())
}
