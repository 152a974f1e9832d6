//! Random histories: correct ones pass with any overlap; one that is changed in one place does not.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};

use super::{
    super::{Report, check},
    model::Model,
};
use crate::history::{Action, Digest, Event, Freshness, History, Outcome};

const ACCOUNTS: u16 = 3;

/// A step: the operation, its account, the other account, and two numbers for further choices.
type Step = (u8, u16, u16, u64, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec((0..12_u8, 0..ACCOUNTS, 0..ACCOUNTS, any::<u64>(), any::<u64>()), 1..80)
}

fn play(steps: &[Step]) -> Model {
    let mut model = Model::new(ACCOUNTS);
    let mut cursors = [10; ACCOUNTS as usize];
    for &(what, who, whom, one, other) in steps {
        // Up to a few moments before and after, so that it overlaps with its neighbours or not.
        model.around = (one % 350, other % 350);
        let message = (one as usize).checked_rem(model.messages.len()).map(|at| model.messages[at].id);
        let ever = 10 + other % (model.revision - 9);
        match (what, message) {
            (0..=2, _) => {
                model.send(who, whom);
            }
            (3, _) => attempts(&mut model, who, whom, one, other),
            (4 | 5, _) => {
                // Reads the newest state that was known before it began.
                let newest = model.revision;
                model.read(who, whom, Freshness::Linearizable, newest);
            }
            (6, _) => {
                model.read(who, whom, Freshness::Local, ever);
            }
            (7, _) => {
                let newest = model.revision;
                model.read(who, whom, Freshness::AtLeast(ever), newest);
            }
            (8, Some(id)) => {
                let pair = model.messages.iter().find(|message| message.id == id).map(|message| message.pair);
                let for_everyone = other % 2 == 0;
                let (low, high) = pair.expect("it is there");
                let who = if one % 3 == 0 { low } else { high };
                model.delete(who, id, for_everyone, other % 5 > 0);
            }
            (9, Some(id)) => {
                let message = model.messages.iter().find(|message| message.id == id).expect("it is there");
                let (low, high) = message.pair;
                let (who, with) = if other % 2 == 0 { (low, high) } else { (high, low) };
                let seq = message.seq;
                match other % 3 {
                    0 => model.deliver(who, with, seq),
                    1 => model.mark_read(who, with, seq, other % 7 > 0),
                    _ => model.mark_read(who, with, 0, other % 7 > 0),
                };
            }
            (10 | 11, _) => {
                let after = cursors[usize::from(who)];
                let cursor = after.max(ever);
                model.subscribe(who, after, cursor);
                cursors[usize::from(who)] = cursor;
            }
            _ => {}
        }
    }
    model.around = (20, 20);
    model.now += 1_000;
    model.finish(&cursors);
    model
}

/// Sends a message in more than one attempt, or leaves it open, stored or not.
fn attempts(model: &mut Model, who: u16, whom: u16, one: u64, other: u64) {
    let uid = model.new_id();
    if !one.is_multiple_of(3) {
        model.attempt(who, whom, uid, if one.is_multiple_of(2) { Outcome::Refused } else { Outcome::Unknown });
    }
    match other % 4 {
        0 => {
            model.attempt(who, whom, uid, Outcome::Unknown);
        }
        1 => {
            model.store(who, whom, uid);
            model.attempt(who, whom, uid, Outcome::Unknown);
        }
        _ => {
            for _ in 0..other % 3 + 1 {
                let stored = model.store(who, whom, uid);
                model.attempt(who, whom, uid, Outcome::Ok(stored));
            }
        }
    }
}

proptest! {
    #[test]
    fn what_a_service_without_faults_does_is_clean(steps in steps()) {
        let report = check(&play(&steps).history());
        prop_assert_eq!(&report.violations, &[], "{:#?}", report.violations);
    }

    #[test]
    fn any_single_change_is_found(steps in steps(), which in 0..CHANGES.len(), at in any::<usize>()) {
        let model = play(&steps);
        let mut history = model.history();
        let (name, change, count) = CHANGES[which];
        prop_assume!(change(&model, &mut history, at));
        let report = check(&history);
        prop_assert!(count(&report) > 0, "{} was not found, but {:#?}", name, report.violations);
    }
}

/// A mutation of a history at one of the possible places. Returns whether there was one.
type Change = fn(&Model, &mut History, usize) -> bool;

/// The count of the report that has to grow.
type Count = fn(&Report) -> u64;

const CHANGES: [(&str, Change, Count); 10] = [
    ("a loss", lose, |report| report.lost),
    ("an event delivered twice", deliver_twice, |report| report.duplicated),
    ("an event left out", leave_out, |report| report.resume_gaps),
    ("another body", change_body, |report| report.phantom),
    ("a stranger's message", add_stranger, |report| report.phantom),
    ("a stale read", make_stale, |report| report.stale_reads),
    ("a read with a hole", make_hole, |report| report.stale_reads + report.lost),
    ("a refusal that is stored", refuse, |report| report.phantom),
    ("another place", swap_places, |report| report.reordered),
    ("another answer", change_answer, |report| report.duplicated + report.reordered),
];

/// Picks one of the places.
fn pick<T>(mut places: Vec<T>, at: usize) -> Option<T> {
    if places.is_empty() { None } else { Some(places.swap_remove(at % places.len())) }
}

fn records(history: &History, fits: impl Fn(&Action) -> bool) -> Vec<usize> {
    (0..history.records.len()).filter(|at| fits(&history.records[*at].action)).collect()
}

fn is_page(action: &Action, wanted: Option<bool>) -> bool {
    matches!(action, Action::Read { last, outcome: Outcome::Ok(page), .. }
        if !page.messages.is_empty() && wanted.is_none_or(|wanted| wanted == *last))
}

fn lose(model: &Model, history: &mut History, at: usize) -> bool {
    let seen_by_both = model.messages.iter().filter(|message| message.hidden.is_empty()).map(|message| message.id);
    let Some(id) = pick(seen_by_both.collect(), at) else { return false };
    for record in &mut history.records {
        if let Action::Read { last: true, outcome: Outcome::Ok(page), .. } = &mut record.action {
            page.messages.retain(|seen| seen.message != id);
        }
    }
    true
}

fn deliver_twice(_: &Model, history: &mut History, at: usize) -> bool {
    let delivered = |action: &Action| matches!(action, Action::Subscribe { events, .. } if !events.is_empty());
    let Some(place) = pick(records(history, delivered), at) else { return false };
    let Action::Subscribe { events, .. } = &mut history.records[place].action else { return false };
    let again = events[at % events.len()].clone();
    events.push(again);
    true
}

/// Removes an event of a message that is also known from elsewhere. Otherwise nothing shows which message is missing:
/// there is only a number without a message.
fn leave_out(_: &Model, history: &mut History, at: usize) -> bool {
    let mut known = HashSet::new();
    for record in &history.records {
        match &record.action {
            Action::Send { outcome: Outcome::Ok(stored), .. } => drop(known.insert(stored.message)),
            Action::Read { last: true, outcome: Outcome::Ok(page), .. } => {
                known.extend(page.messages.iter().map(|seen| seen.message));
            }
            _ => {}
        }
    }
    let fits = |event: &Event| matches!(event, Event::Message(seen) if known.contains(&seen.message));
    let delivered = |action: &Action| {
        let Action::Subscribe { events, .. } = action else { return false };
        events.iter().any(|delivered| fits(&delivered.event))
    };
    let Some(place) = pick(records(history, delivered), at) else { return false };
    let Action::Subscribe { events, .. } = &mut history.records[place].action else { return false };
    let messages: Vec<usize> = (0..events.len()).filter(|at| fits(&events[*at].event)).collect();
    events.remove(messages[at % messages.len()]);
    true
}

fn change_body(_: &Model, history: &mut History, at: usize) -> bool {
    let Some(place) = pick(records(history, |action| is_page(action, None)), at) else { return false };
    let Action::Read { outcome: Outcome::Ok(page), .. } = &mut history.records[place].action else { return false };
    let length = page.messages.len();
    page.messages[at % length].body = Some(Digest(at as u64));
    true
}

fn add_stranger(_: &Model, history: &mut History, at: usize) -> bool {
    let Some(place) = pick(records(history, |action| is_page(action, None)), at) else { return false };
    let Action::Read { outcome: Outcome::Ok(page), .. } = &mut history.records[place].action else { return false };
    let length = page.messages.len();
    let seen = &mut page.messages[at % length];
    (seen.message, seen.id, seen.body) = (1, None, Some(Digest(1)));
    true
}

/// Replaces a read's state by the one before the last revision that was known when it began.
fn make_stale(model: &Model, history: &mut History, at: usize) -> bool {
    let fresh =
        |action: &Action| matches!(action, Action::Read { freshness: Freshness::Linearizable, last: false, .. });
    let Some(place) = pick(records(history, fresh), at) else { return false };
    let began = history.records[place].began_us;
    let known = history.records.iter().filter(|record| record.ended_us < began).filter_map(|record| record.revision());
    let Some(known) = known.max().filter(|known| *known > 10) else { return false };
    let account = history.records[place].account;
    let Action::Read { with, before, limit, outcome, .. } = &mut history.records[place].action else { return false };
    *outcome = Outcome::Ok(model.page(account, *with, *before, *limit, known - 1));
    true
}

/// Removes a message that the reader never hid.
fn make_hole(model: &Model, history: &mut History, at: usize) -> bool {
    let Some(place) = pick(records(history, |action| is_page(action, None)), at) else { return false };
    let account = history.records[place].account;
    let Action::Read { outcome: Outcome::Ok(page), .. } = &mut history.records[place].action else { return false };
    let hole = page.messages[0].message;
    let hidden =
        model.messages.iter().any(|message| message.id == hole && message.hidden.iter().any(|h| h.0 == account));
    page.messages.remove(0);
    // A page that is empty and has more would be reported as out of order instead.
    let only_more = page.messages.is_empty() && page.has_more;
    !hidden && !only_more
}

fn refuse(model: &Model, history: &mut History, at: usize) -> bool {
    let visible = model.messages.iter().filter(|message| message.hidden.is_empty()).map(|message| message.uid);
    let Some(uid) = pick(visible.collect(), at) else { return false };
    for record in &mut history.records {
        if let Action::Send { id, outcome, .. } = &mut record.action
            && *id == uid
        {
            *outcome = Outcome::Refused;
        }
    }
    true
}

fn swap_places(_: &Model, history: &mut History, at: usize) -> bool {
    let two =
        |action: &Action| matches!(action, Action::Read { outcome: Outcome::Ok(page), .. } if page.messages.len() > 1);
    let Some(place) = pick(records(history, two), at) else { return false };
    let Action::Read { outcome: Outcome::Ok(page), .. } = &mut history.records[place].action else { return false };
    let first = at % (page.messages.len() - 1);
    let (one, other) = (page.messages[first].seq, page.messages[first + 1].seq);
    (page.messages[first].seq, page.messages[first + 1].seq) = (other, one);
    page.messages.swap(first, first + 1);
    true
}

fn change_answer(_: &Model, history: &mut History, at: usize) -> bool {
    let acknowledged = |action: &Action| matches!(action, Action::Send { outcome: Outcome::Ok(_), .. });
    let Some(place) = pick(records(history, acknowledged), at) else { return false };
    let Action::Send { outcome: Outcome::Ok(stored), .. } = &mut history.records[place].action else { return false };
    stored.seq += 1 + at as u64 % 3;
    true
}
