//! The rules of the state machine on random commands, compared with a simple model: in any batching, after a restart
//! and after a snapshot.
//!
//! `ops` makes the commands, `model` says what they do, and `answers` compares what the queries return.

mod answers;
mod model;
mod ops;

use crate::tables;
use answers::compare_answers;
use chat::*;
use model::Model;
use ops::{Given, Op, ops, quota};
use proptest::prelude::*;
use prost::Message as _;
use proto::log::v1 as pb;
use storage::{AppliedEntry, AppliedPayload, StateImage, StateMachine, codec};

/// The proposals, with the results by the model.
struct Script {
    proposals: Vec<pb::Proposal>,
    outcomes: Vec<Outcome>,
    quota: (u64, u64),
    model: Model,
}

fn script(ops: &[(i64, Op)], quota: (u64, u64)) -> Script {
    let (mut model, mut given, mut time) = (Model { quota, ..Model::default() }, Given::default(), 1000_i64);
    let (mut proposals, mut outcomes) = (Vec::new(), Vec::new());
    for (step, op) in ops {
        time += step;
        let command = given.command(op);
        let outcome = model.apply(TimeMs(time as u64), &command);
        given.note(&outcome);
        let (time_ms, command) = (time as u64, Some(codec::encode_command(&command)));
        proposals.push(pb::Proposal { time_ms, traceparent: String::new(), command });
        outcomes.push(outcome);
    }
    Script { proposals, outcomes, quota, model }
}

/// The results of a state machine.
#[derive(Debug, Default, PartialEq)]
struct Said {
    outcomes: Vec<Outcome>,
    events: Vec<Event>,
    closed: Vec<SessionId>,
}

/// Applies entries without committing.
fn stage(machine: &mut StateMachine, said: &mut Said, entries: &[AppliedEntry]) {
    let applied = machine.stage(entries.to_vec()).expect("stage");
    said.outcomes.extend(applied.outcomes.into_iter().flatten());
    said.events.extend(applied.events.iter().map(|event| (**event).clone()));
    said.closed.extend(applied.closed_sessions);
    assert_eq!((applied.revision, applied.clock), (machine.applied().revision, machine.applied().clock));
}

/// Entries of one to three proposals, divided by the numbers in `cuts`.
fn entries(proposals: &[pb::Proposal], (quota_messages, quota_bytes): (u64, u64), cuts: &[usize]) -> Vec<AppliedEntry> {
    let (mut rest, mut cuts, mut entries) = (proposals, cuts.iter().cycle(), Vec::new());
    while !rest.is_empty() {
        let (head, tail) = rest.split_at((cuts.next().expect("cycles") % 3 + 1).min(rest.len()));
        let batch = pb::Batch { proposals: head.to_vec(), quota_messages, quota_bytes };
        let log_id = pb::LogId { term: 1, node_id: 1, index: entries.len() as u64 + 1 };
        entries.push(AppliedEntry { log_id, payload: AppliedPayload::Batch(batch.encode_to_vec().into()) });
        rest = tail;
    }
    entries
}

/// How the state moves into another directory, after this number of calls.
#[derive(Clone, Copy)]
enum Move {
    Never,
    BySnapshot(usize),
    /// The files as they are at that moment.
    ByCrash(usize),
}

/// Applies a script in any batching, with commits at the places that `calls` selects.
fn run(script: &Script, cuts: &[usize], calls: &[usize], moves: Move) -> (Said, Vec<String>) {
    let (first, second) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut machine = StateMachine::open(first.path()).expect("open");
    let (mut said, mut dir) = (Said::default(), first.path());
    let entries = entries(&script.proposals, script.quota, cuts);
    let mut calls = calls.iter().cycle();
    // A revision always has the same digest, whatever else was applied.
    let mut at_revisions = std::collections::BTreeMap::from([(Revision(0), StateDigest::default())]);
    let (mut count, mut done) = (0, 0);
    while done < entries.len() {
        let call = calls.next().expect("cycles");
        let end = (done + call % 5 + 1).min(entries.len());
        stage(&mut machine, &mut said, &entries[done..end]);
        done = end;
        count += 1;
        let (revision, digest) = (machine.applied().revision, machine.applied().chain.digest);
        assert_eq!(*at_revisions.entry(revision).or_insert(digest), digest, "revision {revision}");
        if *call < 5 {
            machine.commit().expect("commit");
        }
        match moves {
            Move::BySnapshot(at) if at == count => {
                machine.commit().expect("commit");
                let applied = machine.applied().clone();
                machine = StateMachine::open(second.path()).expect("open");
                let received = StateImage::open(dir).and_then(|image| image.receive(second.path())).expect("received");
                machine.install_snapshot(received).expect("install");
                assert_eq!(machine.applied(), &applied);
                dir = second.path();
            }
            Move::ByCrash(at) if at == count => {
                for name in ["chat.db", "chat.db-wal"] {
                    std::fs::copy(dir.join(name), second.path().join(name)).expect("copy");
                }
                dir = second.path();
                machine = StateMachine::open(dir).expect("open");
                // Uncommitted entries are lost, and replayed from the log.
                let kept = machine.applied().log_id.map_or(0, |id| id.index as usize);
                let mut again = Said::default();
                stage(&mut machine, &mut again, &entries[kept..done]);
                assert!(said.outcomes.ends_with(&again.outcomes) && said.events.ends_with(&again.events));
            }
            _ => {}
        }
    }
    drop(machine);
    let reopened = StateMachine::open(dir).expect("reopen");
    assert_eq!(reopened.applied().revision, script.model.revision);
    assert_eq!(at_revisions[&script.model.revision], reopened.applied().chain.digest);
    (said, tables::rows(dir))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn outcomes_and_events_are_the_models(
        ops in ops(),
        quota in quota(),
        cuts in prop::collection::vec(0..3_usize, 1..9),
    ) {
        let script = script(&ops, quota);
        let dir = tempfile::tempdir().expect("tempdir");
        let mut machine = StateMachine::open(dir.path()).expect("open");
        let mut said = Said::default();
        stage(&mut machine, &mut said, &entries(&script.proposals, quota, &cuts));
        machine.commit().expect("commit");
        prop_assert_eq!(&said.outcomes, &script.outcomes);
        prop_assert_eq!(&said.events, &script.model.events);
        prop_assert_eq!(&said.closed, &script.model.closed);
        prop_assert_eq!(machine.applied().clock, script.model.clock);
        compare_answers(dir.path(), &script.model);
    }

    #[test]
    fn any_batching_and_any_copy_gives_the_same(
        ops in ops(),
        quota in quota(),
        cuts in prop::collection::vec(0..3_usize, 1..9),
        calls in prop::collection::vec(0..10_usize, 1..9),
        move_at in 1..6_usize,
    ) {
        let script = script(&ops, quota);
        let one_by_one = run(&script, &[0], &[0], Move::Never);
        let in_batches = run(&script, &cuts, &calls, Move::Never);
        let moved = run(&script, &cuts, &calls, Move::BySnapshot(move_at));
        let crashed = run(&script, &cuts, &calls, Move::ByCrash(move_at));
        prop_assert_eq!(&one_by_one.0.outcomes, &script.outcomes);
        prop_assert_eq!(&one_by_one, &in_batches);
        prop_assert_eq!(&one_by_one, &moved);
        prop_assert_eq!(&one_by_one, &crashed);
    }
}
