//! A small history with operations of every kind, and helpers to inject faults into it.

use super::{
    super::{Kind, Report, check},
    model::Model,
};
use crate::history::{Action, Event, Freshness, Happening, History, Outcome, Page, Record, Seen};

/// Alice (0), Bob (1) and Carol (2): operations of every kind, then the read-back.
pub(super) fn day() -> Model {
    let mut model = Model::new(3);
    let first = model.send(0, 1);
    let second = model.send(1, 0);
    model.read(0, 1, Freshness::Linearizable, model.revision);
    model.subscribe(0, 10, model.revision);
    let third = model.send(0, 1);
    model.send(2, 0);
    model.send(2, 2);
    model.read(1, 0, Freshness::AtLeast(third), model.revision);
    model.read(1, 0, Freshness::Local, second);
    model.mark_read(1, 0, 1, true);
    model.deliver(0, 1, 2);
    model.delete(0, first, true, true);
    model.delete(1, third, false, true);
    let fifth = model.send(0, 1);
    model.read(1, 0, Freshness::Linearizable, model.revision);
    model.mark_read(0, 2, 0, true);
    model.subscribe(1, 10, fifth);
    model.send(1, 0);
    model
}

pub(super) fn finished(mut model: Model) -> History {
    let cursor = |model: &Model, account| {
        let cursors = model.records.iter().filter(|record| record.account == account);
        let cursors = cursors.filter_map(|record| match record.action {
            Action::Subscribe { cursor, .. } => Some(cursor),
            _ => None,
        });
        cursors.max().unwrap_or(10)
    };
    let cursors = [0, 1, 2].map(|account| cursor(&model, account));
    model.finish(&cursors);
    model.history()
}

pub(super) fn kinds(report: &Report) -> Vec<Kind> {
    report.violations.iter().map(|violation| violation.kind).collect()
}

/// Asserts that only this kind of violation is found. Returns its count and its example.
#[track_caller]
pub(super) fn only(history: &History, kind: Kind) -> (u64, String) {
    let report = check(history);
    assert_eq!(kinds(&report), [kind], "{:#?}", report.violations);
    let total = report.lost + report.duplicated + report.reordered + report.phantom + report.stale_reads;
    assert_eq!(total + report.resume_gaps, report.violations[0].count, "it belongs to one count");
    (report.violations[0].count, report.violations[0].example.clone())
}

pub(super) fn pages(history: &mut History, wanted: impl Fn(&Record, bool) -> bool) -> Vec<&mut Page> {
    let records = history.records.iter_mut();
    let pages = records.filter_map(|record| {
        let is_last = matches!(record.action, Action::Read { last: true, .. });
        let is_wanted = wanted(record, is_last);
        match &mut record.action {
            Action::Read { outcome: Outcome::Ok(page), .. } if is_wanted => Some(page),
            _ => None,
        }
    });
    pages.collect()
}

pub(super) fn all_seen(history: &mut History) -> Vec<&mut Seen> {
    let mut all = Vec::new();
    for record in &mut history.records {
        match &mut record.action {
            Action::Read { outcome: Outcome::Ok(page), .. } => all.extend(&mut page.messages),
            Action::Subscribe { events, .. } => all.extend(events.iter_mut().filter_map(|happening| {
                if let Event::Message(seen) = &mut happening.event { Some(seen) } else { None }
            })),
            _ => {}
        }
    }
    all
}

pub(super) fn segments(history: &mut History) -> Vec<&mut Vec<Happening>> {
    let actions = history.records.iter_mut().map(|record| &mut record.action);
    actions
        .filter_map(|action| if let Action::Subscribe { events, .. } = action { Some(events) } else { None })
        .collect()
}
