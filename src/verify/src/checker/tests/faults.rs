//! Each fault alone, in a small history: the checker reports it under its own name and no other.

use super::{
    super::{Kind, check},
    day::{all_seen, day, finished, kinds, only, pages, segments},
    model::{Message, Model},
};
use crate::history::{Action, Digest, Event, Freshness, History, Outcome, Page, Record, Seen, Stored};

#[test]
fn a_day_without_faults_is_clean() {
    let report = check(&finished(day()));
    assert_eq!(report.violations, []);
    assert_eq!((report.acknowledged, report.unknown, report.nodes_read_back, report.streams_behind), (7, 0, 2, 0));
    assert_eq!(report.proved_nothing(), None);
    assert!(report.reads > 20 && report.events > 10);
}

#[test]
fn a_run_without_acknowledgement_or_reading_back_proves_nothing() {
    assert!(check(&History::default()).proved_nothing().is_some_and(|why| why.contains("acknowledged")));
    let unread = check(&day().history());
    assert!(unread.proved_nothing().is_some_and(|why| why.contains("read back")));
    let mut cut_short = finished(day());
    cut_short.records.retain(|record| !matches!(&record.action, Action::Subscribe { after, .. } if *after > 10));
    assert!(check(&cut_short).proved_nothing().is_some_and(|why| why.contains("stream")));
    let mut one_page_less = finished(day());
    let last = one_page_less.records.iter().rposition(|record| record.node == Some(1)).expect("read back");
    one_page_less.records.remove(last);
    assert_eq!(check(&one_page_less).nodes_read_back, 1);
}

#[test]
fn a_message_that_is_missing_at_the_end_is_lost() {
    let mut history = finished(day());
    for page in pages(&mut history, |_, last| last) {
        page.messages.retain(|seen| seen.message != 12);
    }
    let (count, example) = only(&history, Kind::Lost);
    assert_eq!(count, 1, "one message, on however many pages it is missing");
    assert!(example.contains("message 12, #2") && example.contains("n1"), "{example}");
}

#[test]
fn a_message_that_one_node_lacks_at_the_end_is_lost() {
    let mut history = finished(day());
    let page = pages(&mut history, |record, last| last && record.node == Some(1) && record.account == 2).remove(0);
    page.messages.retain(|seen| seen.message != 14);
    assert_eq!(only(&history, Kind::Lost).0, 1);
}

#[test]
fn a_place_that_is_given_away_again_is_a_loss() {
    // The message was acknowledged and then lost with its leader. The next message has its position and its revision.
    let mut model = Model::new(2);
    let forgotten = model.new_id();
    let stored = model.store(0, 1, forgotten);
    model.attempt(0, 1, forgotten, Outcome::Ok(stored));
    (model.revision, model.around) = (model.revision - 1, (500, 20));
    model.messages.clear();
    model.send(1, 0);
    model.finish(&[10, 10]);
    let (count, example) = only(&model.history(), Kind::Lost);
    assert!(count == 1 && example.contains(&forgotten.to_string()), "{example}");
}

#[test]
fn an_undone_deletion_is_found() {
    let mut history = finished(day());
    let body = pages(&mut history, |record, last| !last && record.account == 0)[0].messages[1].body;
    assert!(body.is_some());
    for page in pages(&mut history, |record, last| last && record.node == Some(0)) {
        page.messages.iter_mut().filter(|seen| seen.message == 11).for_each(|seen| seen.body = body);
    }
    assert_eq!(only(&history, Kind::Undone).0, 1);
}

#[test]
fn an_undone_watermark_is_found() {
    let mut history = finished(day());
    for page in pages(&mut history, |record, last| last && record.account == 0) {
        if page.conversation == 11 {
            page.other.read = 0;
            page.messages.iter_mut().filter(|seen| seen.message == 11).for_each(|seen| seen.status = 2);
        }
    }
    let (_, example) = only(&history, Kind::Undone);
    assert!(example.contains("p1 had Read up to 1"), "{example}");
}

#[test]
fn a_message_that_is_stored_twice_is_a_duplicate() {
    let mut model = day();
    let uid = model.messages[0].uid;
    let (sender, to) = (model.messages[0].sender, model.messages[0].to);
    let seq = 1 + model.messages.iter().filter(|message| message.pair == (0, 1)).count() as u64;
    model.revision += 1;
    let (id, pair, hidden) = (model.revision, (0, 1), Vec::new());
    model.messages.push(Message { id, pair, seq, sender, to, uid, deleted: None, hidden });
    let mut history = finished(model);
    // Only the copy is under test, so the records of deletions are removed.
    history.records.retain(|record| !matches!(record.action, Action::Delete { .. }));
    let report = check(&history);
    assert_eq!((report.count(Kind::StoredTwice), report.duplicated), (1, 1), "{:#?}", report.violations);
}

#[test]
fn a_repeat_that_is_answered_otherwise_is_a_duplicate() {
    let mut model = Model::new(2);
    let uid = model.new_id();
    for _ in 0..2 {
        let stored = model.store(0, 1, uid);
        model.attempt(0, 1, uid, Outcome::Ok(stored));
    }
    model.finish(&[10, 10]);
    let clean = model.history();
    assert_eq!(check(&clean).violations, []);
    let changes: [fn(&mut Stored); 2] = [|again| again.repeated = false, |again| again.seq += 1];
    for change in changes {
        let mut history = clean.clone();
        let again = history.records.iter_mut().filter_map(|record| match &mut record.action {
            Action::Send { outcome: Outcome::Ok(stored), .. } => Some(stored),
            _ => None,
        });
        change(again.last().expect("two"));
        assert_eq!(only(&history, Kind::RepeatDiffers).0, 1);
    }
}

#[test]
fn an_event_that_is_told_again_is_a_duplicate() {
    let mut history = finished(day());
    let again = segments(&mut history)[0].last().cloned().expect("an event");
    segments(&mut history)[0].push(again.clone());
    assert_eq!(only(&history, Kind::DeliveredTwice).0, 1);
    // The same for an event that the resuming connection repeats.
    let mut history = finished(day());
    let resumed = history
        .records
        .iter_mut()
        .rfind(|record| record.account == 0 && matches!(record.action, Action::Subscribe { after, .. } if after > 10));
    let Some(Action::Subscribe { events, .. }) = resumed.map(|record| &mut record.action) else { panic!("it resumes") };
    events.insert(0, again);
    assert_eq!(only(&history, Kind::DeliveredTwice).0, 1);
}

#[test]
fn two_conversations_of_the_same_people_are_found() {
    let mut history = finished(day());
    pages(&mut history, |record, last| last && record.account == 2)[0].conversation += 1000;
    assert_eq!(only(&history, Kind::ConversationTwice).0, 1);
}

#[test]
fn a_message_at_another_place_than_acknowledged_is_reordered() {
    let mut history = finished(day());
    let stored = history.records.iter_mut().find_map(|record| match &mut record.action {
        Action::Send { outcome: Outcome::Ok(stored), .. } => Some(stored),
        _ => None,
    });
    stored.expect("a send").seq = 2;
    assert_eq!(only(&history, Kind::Moved).0, 1);
}

#[test]
fn an_order_against_time_is_found() {
    let mut model = Model::new(2);
    let (late, early) = (model.new_id(), model.new_id());
    // Two sends do not overlap, and the second one has the first position.
    let first = model.store(1, 0, early);
    let second = model.store(0, 1, late);
    model.attempt(0, 1, late, Outcome::Ok(second));
    model.attempt(1, 0, early, Outcome::Ok(first));
    model.finish(&[10, 10]);
    let mut history = model.history();
    let (_, example) = only(&history, Kind::RealTimeViolation);
    assert!(example.contains("message 11") && example.contains("12"), "{example}");
    // If they had overlapped, nothing would be wrong.
    history.records[1].began_us = history.records[0].began_us;
    assert_eq!(check(&history).violations, []);
}

#[test]
fn an_order_against_revisions_is_found() {
    let mut model = Model::new(2);
    model.around = (150, 20);
    model.send(0, 1);
    model.send(1, 0);
    model.finish(&[10, 10]);
    let mut history = model.history();
    assert_eq!(check(&history).violations, []);
    all_seen(&mut history).into_iter().for_each(|seen| seen.seq = 3 - seen.seq);
    for record in &mut history.records {
        match &mut record.action {
            Action::Send { outcome: Outcome::Ok(stored), .. } => stored.seq = 3 - stored.seq,
            Action::Read { outcome: Outcome::Ok(page), .. } => page.messages.reverse(),
            _ => {}
        }
    }
    assert_eq!(only(&history, Kind::AgainstRevisions).0, 1);
}

#[test]
fn pages_and_streams_out_of_order_are_found() {
    let mut history = finished(day());
    pages(&mut history, |record, last| last && record.account == 0)[1].messages.swap(0, 1);
    assert_eq!(only(&history, Kind::DeliveredOutOfOrder).0, 1);
    let mut history = finished(day());
    segments(&mut history)[0].swap(0, 1);
    assert_eq!(only(&history, Kind::DeliveredOutOfOrder).0, 1);
}

#[test]
fn a_clock_that_runs_backwards_is_found() {
    let mut history = finished(day());
    all_seen(&mut history).into_iter().filter(|seen| seen.message == 14).for_each(|seen| seen.time_ms = 3);
    for record in &mut history.records {
        if let Action::Send { outcome: Outcome::Ok(stored), .. } = &mut record.action
            && stored.message == 14
        {
            stored.time_ms = 3;
        }
    }
    assert_eq!(only(&history, Kind::ClockBackwards).0, 1);
}

#[test]
fn a_message_that_nobody_sent_is_a_phantom() {
    let mut history = finished(day());
    let page = pages(&mut history, |record, last| last && record.account == 2 && record.node == Some(0)).remove(1);
    // The revision belongs to an account and not to a message.
    let stranger = Seen { message: 10, seq: 1, body: Some(Digest(1)), ..SEEN };
    assert!(page.messages.is_empty());
    page.messages.push(stranger);
    assert_eq!(only(&history, Kind::NeverSent).0, 1);
}

const SEEN: Seen = Seen { message: 0, seq: 0, sender: Some(1), body: None, id: None, time_ms: 0, status: 1 };

#[test]
fn a_tombstone_that_nobody_sent_is_a_phantom_and_one_of_an_open_send_is_not() {
    let observed = |open: bool| {
        let mut model = Model::new(2);
        let uid = model.new_id();
        let stored = model.store(0, 1, uid);
        model.attempt(0, 1, uid, if open { Outcome::Unknown } else { Outcome::Refused });
        model.delete(0, stored.message, true, true);
        // The sender never reads.
        model.read(1, 0, Freshness::Linearizable, model.revision);
        check(&model.history())
    };
    assert_eq!(kinds(&observed(true)), []);
    assert_eq!(kinds(&observed(false)), [Kind::NeverSent]);
}

#[test]
fn what_was_refused_and_is_there_is_a_phantom_and_what_is_unknown_is_not() {
    for (first, second, expected) in [
        (Outcome::Refused, Outcome::Refused, Some(Kind::RefusedButStored)),
        (Outcome::Refused, Outcome::Unknown, None),
        (Outcome::Unknown, Outcome::Refused, None),
    ] {
        let mut model = Model::new(2);
        model.send(0, 1);
        let uid = model.new_id();
        model.attempt(0, 1, uid, first);
        model.store(0, 1, uid);
        model.attempt(0, 1, uid, second);
        model.finish(&[10, 10]);
        let report = check(&model.history());
        assert_eq!(kinds(&report), Vec::from_iter(expected), "{:#?}", report.violations);
        assert_eq!(report.unknown, u64::from(expected.is_none()));
    }
    // A send that never reached the service is not lost either.
    let mut model = Model::new(2);
    model.send(0, 1);
    let uid = model.new_id();
    model.attempt(0, 1, uid, Outcome::Unknown);
    model.finish(&[10, 10]);
    assert_eq!(check(&model.history()).violations, []);
}

#[test]
fn a_changed_message_is_a_phantom() {
    let changes: [fn(&mut Seen); 3] =
        [|seen| seen.body = Some(Digest(5)), |seen| seen.sender = Some(1), |seen| seen.time_ms += 1];
    for change in changes {
        let mut history = finished(day());
        let page = pages(&mut history, |record, last| last && record.account == 2).remove(0);
        change(&mut page.messages[0]);
        assert_eq!(only(&history, Kind::Changed).0, 1);
    }
}

#[test]
fn what_is_shown_before_it_was_asked_for_is_a_phantom() {
    let mut model = Model::new(2);
    model.send(0, 1);
    let id = model.send(0, 1);
    model.read(1, 0, Freshness::Local, id);
    model.finish(&[10, 10]);
    let mut history = model.history();
    let sent = history.records.remove(1);
    let at = history.records.iter().position(|record| matches!(record.action, Action::Read { .. })).expect("a read");
    let after = history.records[at].ended_us + 10;
    history.records.insert(at + 1, Record { began_us: after, ended_us: after + 10, ..sent });
    let report = check(&history);
    assert!(report.count(Kind::PrematureVisibility) == 1, "{:#?}", report.violations);
}

#[test]
fn deletions_and_watermarks_that_nobody_asked_for_are_phantoms() {
    let mut history = finished(day());
    history.records.retain(|record| !matches!(record.action, Action::Delete { for_everyone: true, .. }));
    assert_eq!(only(&history, Kind::UnrequestedEffect).0, 1);
    let mut history = finished(day());
    history.records.retain(|record| !matches!(record.action, Action::Deliver { .. }));
    assert_eq!(only(&history, Kind::UnrequestedEffect).0, 1);
    let mut history = finished(day());
    for record in &mut history.records {
        if let Action::Delete { outcome, for_everyone: true, .. } = &mut record.action {
            *outcome = Outcome::Refused;
        }
    }
    assert_eq!(only(&history, Kind::UnrequestedEffect).0, 1);
}

#[test]
fn a_state_that_never_was_is_a_phantom() {
    let changes: [fn(&mut Page); 5] = [
        |page| page.total += 1,
        |page| page.unread += 1,
        |page| page.last_seq += 1,
        |page| page.messages[0].status = 3,
        |page| page.own.delivered = 0,
    ];
    for change in changes {
        let mut history = finished(day());
        change(pages(&mut history, |record, last| !last && record.account == 1).last_mut().expect("a page"));
        let report = check(&history);
        assert!(report.count(Kind::ImpossibleState) > 0 && report.phantom > 0, "{:#?}", report.violations);
    }
}

#[test]
fn a_linearizable_read_of_an_older_state_is_stale() {
    let mut model = day();
    model.read(0, 1, Freshness::Linearizable, model.revision - 1);
    let (count, example) = only(&finished(model), Kind::Stale);
    assert!(count == 1 && example.contains("linearizable"), "{example}");
    // A state older than that of another read is stale too, even without an acknowledged write.
    let mut model = Model::new(2);
    let uid = model.new_id();
    let stored = model.store(0, 1, uid);
    model.read(1, 0, Freshness::Linearizable, stored.message);
    model.read(1, 0, Freshness::Linearizable, stored.message - 1);
    model.around = (1000, 20);
    model.attempt(0, 1, uid, Outcome::Ok(stored));
    model.finish(&[10, 10]);
    assert_eq!(only(&model.history(), Kind::Stale).0, 1);
    // A local read may be older.
    let mut model = day();
    model.read(0, 1, Freshness::Local, 11);
    assert_eq!(check(&finished(model)).violations, []);
}

#[test]
fn a_linearizable_read_beside_a_send_may_miss_it() {
    let mut model = Model::new(2);
    let before = model.revision;
    model.send(0, 1);
    model.around = (STEP_BACK, 20);
    model.read(1, 0, Freshness::Linearizable, before);
    model.finish(&[10, 10]);
    assert_eq!(check(&model.history()).violations, []);
}

/// Time before its moment at which an operation begins, so that it overlaps with the one before.
const STEP_BACK: u64 = 150;

#[test]
fn a_read_below_the_revision_asked_for_is_stale() {
    let mut model = day();
    model.read(1, 0, Freshness::AtLeast(15), 14);
    assert_eq!(only(&finished(model), Kind::BelowRevision).0, 1);
}

#[test]
fn a_read_that_lacks_what_its_revision_has_is_stale() {
    let mut model = day();
    let revision = model.revision;
    let mut page = model.page(0, 1, 0, 5, revision - 1);
    page.revision = revision;
    let (freshness, outcome) = (Freshness::Local, Outcome::Ok(page));
    model.record(0, 0, Action::Read { with: 1, before: 0, limit: 5, freshness, last: false, outcome });
    assert_eq!(only(&finished(model), Kind::Incomplete).0, 1);
}

#[test]
fn what_a_stream_leaves_out_is_a_gap() {
    for what in ["message", "deletion", "receipt"] {
        let mut history = finished(day());
        let is = |event: &Event| match event {
            Event::Message(_) => what == "message",
            Event::Deletion { for_everyone, .. } => what == "deletion" && *for_everyone,
            Event::Receipt { .. } => what == "receipt",
        };
        let resumed = history.records.iter_mut().rfind(|record| {
            record.account == 0 && matches!(&record.action, Action::Subscribe { after, .. } if *after > 10)
        });
        let Some(Action::Subscribe { events, .. }) = resumed.map(|record| &mut record.action) else {
            panic!("it resumes")
        };
        let at = events.iter().rposition(|happening| is(&happening.event)).expect(what);
        events.remove(at);
        let (count, example) = only(&history, Kind::Gap);
        assert!(count == 1 && example.contains(what), "{example}");
    }
}

#[test]
fn the_longest_outage_is_the_longest_wait_for_an_acknowledgement() {
    let mut history = History::default();
    history.header.load_ended_us = 10_000;
    let mut model = Model::new(2);
    let mut send = |began_us, ended_us, acknowledged: bool| {
        let uid = model.new_id();
        let stored = model.store(0, 1, uid);
        let outcome = if acknowledged { Outcome::Ok(stored) } else { Outcome::Unknown };
        let action = Action::Send { id: uid, to: 1, body: Model::body(uid), outcome };
        history.records.push(Record { client: 0, account: 0, node: None, began_us, ended_us, action });
        check(&history).longest_outage_us
    };
    assert_eq!(send(0, 100, true), 100);
    assert_eq!(send(3_000, 3_500, true), 500, "nothing was under way before 3000");
    assert_eq!(send(3_100, 4_200, true), 700, "from the acknowledgement before");
    assert_eq!(send(5_000, 5_900, false), 5_000, "until the end of the load");
    assert_eq!(send(6_000, 6_100, true), 1_100, "another one's acknowledgement ends it");
    assert_eq!(send(9_000, 12_000, true), 1_100, "what came after the load does not count, nor the time until then");
}
