//! `storage::StateMachine`: any sequence of commands that can be decoded, and of bytes that are no command in any
//! version.
//!
//! None of them fails: each has an outcome, and exactly the malformed ones are rejected as such. In one batch, or one
//! by one with commits, restarts and snapshots between them, they come to the same outcomes, events, digest and
//! answers; and the answers agree with each other.

#![no_main]

use std::{path::Path, sync::LazyLock};

use arbitrary::Arbitrary;
use chat::{Outcome, Rejection};
use libfuzzer_sys::fuzz_target;
use quorum_chat_fuzz::{
    commands::{self, Step, Verdict},
    questions::{self, Answers, Trust},
    scratch::Scratch,
};
use storage::{AppliedState, Readers, StateImage, StateMachine};

/// What happens after an entry.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Then {
    Nothing,
    Commit,
    Restart,
    Snapshot,
}

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::default);

fuzz_target!(|input: (Vec<Step>, Vec<Then>)| {
    let (steps, then) = input;
    let dir = SCRATCH.emptied();
    let entries = commands::entries(&steps, 0, 1000);

    let mut whole = open(&dir.join("whole"));
    let at_once = whole.apply(entries.clone()).expect("every command has an outcome");
    let rejected = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(Rejection::Malformed));
    for (entry, outcomes) in entries.iter().zip(&at_once.outcomes) {
        let expected: Vec<bool> = commands::verdicts(entry).into_iter().map(|it| it == Verdict::Malformed).collect();
        assert_eq!(outcomes.iter().map(rejected).collect::<Vec<bool>>(), expected, "{entry:?}: {outcomes:?}");
    }
    assert_eq!(at_once.malformed, at_once.outcomes.iter().flatten().filter(|outcome| rejected(outcome)).count() as u64);

    let mut parts = open(&dir.join("parts"));
    let (mut outcomes, mut events, mut closed, mut noted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, entry) in entries.into_iter().enumerate() {
        let applied = parts.stage(vec![entry]).expect("every command has an outcome");
        outcomes.extend(applied.outcomes);
        events.extend(applied.events);
        closed.extend(applied.closed_sessions);
        noted.extend(applied.noted);
        match then.get(number).unwrap_or(&Then::Nothing) {
            Then::Nothing => {}
            Then::Commit => parts.commit().expect("commits"),
            Then::Restart => {
                drop(parts);
                parts = open(&dir.join("parts"));
            }
            Then::Snapshot => install_a_snapshot(&mut parts),
        }
    }
    parts.commit().expect("commits");

    assert_eq!(outcomes, at_once.outcomes);
    assert_eq!(events, at_once.events);
    assert_eq!(closed, at_once.closed_sessions);
    assert_eq!(noted, at_once.noted);
    assert!(events.is_sorted_by(|a, b| a.revision < b.revision), "each event has a revision of its own");
    assert_eq!(parts.applied(), whole.applied());
    let answers = ask(&dir.join("whole"), whole.applied());
    assert_eq!(ask(&dir.join("parts"), whole.applied()), answers);
});

fn open(dir: &Path) -> StateMachine {
    StateMachine::open(dir).expect("opens")
}

/// The state goes through a file, as on its way to another node.
fn install_a_snapshot(machine: &mut StateMachine) {
    machine.commit().expect("commits");
    let before = machine.applied().clone();
    let image = StateImage::open(machine.directory()).expect("opened");
    let received = image.receive(machine.directory()).expect("received");
    assert_eq!((received.meta().log_id, received.meta().revision), (before.log_id, before.revision));
    machine.install_snapshot(received).expect("installed");
    assert_eq!(machine.applied(), &before);
}

fn ask(dir: &Path, applied: &AppliedState) -> Answers {
    let readers = Readers::open(dir, 1).expect("opens");
    readers
        .read(|query| {
            assert_eq!((query.revision()?, query.clock()?), (applied.revision, applied.clock));
            questions::ask(query, Trust::Whole)
        })
        .expect("the state answers")
}
