//! Watermarks: delivered and read, for each member of a conversation. They only grow, for all observers, and never
//! beyond the requests of the member.

use std::collections::{BTreeMap, HashMap};

use super::{Findings, Kind, Pair, flags::member_key, ledger::Ledger, order::Floor, pair, words};
use crate::history::{Action, Event, History, Marks, Outcome};

/// The kind of watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mark {
    Delivered,
    Read,
}

/// A watermark at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    revision: u64,
    value: u64,
    /// Whether the value is exact, or a lower bound.
    exact: bool,
    at: usize,
}

type Name = (Pair, u16, Mark);

#[derive(Default)]
struct Known {
    points: BTreeMap<Name, Vec<Point>>,
    /// Times of requests, each with the furthest target that had been requested by then.
    asked: HashMap<Name, Vec<(u64, u64)>>,
}

impl Known {
    fn point(&mut self, name: Name, revision: u64, value: u64, exact: bool, at: usize) {
        self.points.entry(name).or_default().push(Point { revision, value, exact, at });
    }

    fn both(&mut self, pair: Pair, member: u16, revision: u64, marks: Marks, at: usize) {
        self.point((pair, member, Mark::Delivered), revision, marks.delivered, true, at);
        self.point((pair, member, Mark::Read), revision, marks.read, true, at);
    }

    fn ask(&mut self, name: Name, began_us: u64, target: u64) {
        self.asked.entry(name).or_default().push((began_us, target));
    }
}

pub(super) fn check(history: &History, ledger: &Ledger, floor: &Floor, found: &mut Findings) {
    let mut known = collect(history, ledger, found);
    for asked in known.asked.values_mut() {
        asked.sort_unstable();
        let mut furthest = 0;
        for (_, target) in asked {
            furthest = furthest.max(*target);
            *target = furthest;
        }
    }
    for (name, mut points) in known.points {
        points.sort_unstable();
        growing(history, name, &points, found);
        let asked = known.asked.get(&name).map_or(&[][..], Vec::as_slice);
        for point in points.iter().filter(|point| point.exact && point.value > 0) {
            let ended = history.records[point.at].ended_us;
            let before = asked.partition_point(|(began, _)| *began <= ended);
            let furthest = before.checked_sub(1).map_or(0, |last| asked[last].1);
            // A request that began after a revision was known cannot be part of it.
            let by_then = asked.partition_point(|(began, _)| floor.before(*began) < point.revision);
            let by_then = by_then.checked_sub(1).map_or(0, |last| asked[last].1);
            if point.value > furthest.min(by_then) {
                let (conversation, member) = member_key(name.0, name.1);
                found.add(Kind::UnrequestedEffect, (conversation | 1 << 63, member), || {
                    let (mark, value, at) = (name.2, point.value, words(history, point.at));
                    format!(
                        "{at} says that {} has {mark:?} up to {value}, and asked for {furthest}",
                        who(history, name.1)
                    )
                });
            }
        }
    }
}

fn who(history: &History, account: u16) -> &str {
    history.header.accounts.get(usize::from(account)).map_or("?", String::as_str)
}

fn collect(history: &History, ledger: &Ledger, found: &mut Findings) -> Known {
    let mut known = Known::default();
    for (at, record) in history.records.iter().enumerate() {
        let (me, began) = (record.account, record.began_us);
        let last_seq = |pair: Pair, revision| {
            ledger.conversations.get(&pair).map_or(0, |conversation| conversation.last_seq(revision))
        };
        match &record.action {
            Action::Read { with, outcome: Outcome::Ok(page), .. } => {
                let pair = pair(me, *with);
                known.both(pair, me, page.revision, page.own, at);
                if *with != me {
                    known.both(pair, *with, page.revision, page.other, at);
                }
            }
            Action::MarkRead { with, up_to, outcome } => {
                let pair = pair(me, *with);
                let target = if *up_to == 0 { u64::MAX } else { *up_to };
                known.ask((pair, me, Mark::Read), began, target);
                known.ask((pair, me, Mark::Delivered), began, target);
                let Outcome::Ok(marked) = outcome else { continue };
                known.point((pair, me, Mark::Read), marked.revision, marked.read, true, at);
                known.point((pair, me, Mark::Delivered), marked.revision, marked.read, false, at);
                let end = last_seq(pair, marked.revision);
                let clean = ledger.conversations.get(&pair).is_some_and(|conversation| !conversation.tainted);
                if clean && (marked.read < target.min(end) || marked.read > end) {
                    found.add(Kind::ImpossibleState, (at as u64, 2), || {
                        format!("{} answers {}, with {end} messages there", words(history, at), marked.read)
                    });
                }
            }
            Action::Deliver { with, up_to, outcome } => {
                let name = (pair(me, *with), me, Mark::Delivered);
                known.ask(name, began, *up_to);
                if let Outcome::Ok(revision) = outcome {
                    known.point(name, *revision, (*up_to).min(last_seq(name.0, *revision)), false, at);
                }
            }
            Action::Subscribe { events, .. } => {
                for happening in events {
                    if let Event::Receipt { member: Some(member), marks } = &happening.event
                        && let Some(pair) = ledger.pairs.get(&happening.conversation)
                    {
                        known.both(*pair, *member, happening.revision, *marks, at);
                    }
                }
            }
            Action::Read { .. } | Action::Send { .. } | Action::Delete { .. } => {}
        }
    }
    known
}

/// Checks that no point is below one at an earlier revision, and that points at the same revision agree. `points` are
/// sorted.
fn growing(history: &History, name: Name, points: &[Point], found: &mut Findings) {
    let mut furthest: Option<Point> = None;
    let mut here: Option<Point> = None;
    for point in points {
        if here.is_some_and(|exact| exact.revision != point.revision) {
            here = None;
        }
        let further = furthest.filter(|further| point.exact && further.value > point.value);
        let contradiction = match (further, here) {
            (Some(further), _) => Some((*point, further)),
            (None, Some(exact)) if point.value > exact.value => Some((exact, *point)),
            _ => None,
        };
        if let Some((low, high)) = contradiction {
            let kind = match &history.records[low.at].action {
                Action::Read { last: true, .. } => Kind::Undone,
                Action::Read { .. } => Kind::Incomplete,
                _ => Kind::ImpossibleState,
            };
            let (conversation, member) = member_key(name.0, name.1);
            let key = if kind == Kind::Incomplete { (low.at as u64, 3) } else { (conversation | 1 << 63, member) };
            found.add(kind, key, || {
                format!(
                    "{} had {:?} up to {} at revision {} ({}), and up to {} at {} ({})",
                    who(history, name.1),
                    name.2,
                    high.value,
                    high.revision,
                    words(history, high.at),
                    low.value,
                    low.revision,
                    words(history, low.at)
                )
            });
        }
        if point.exact && here.is_none() {
            here = Some(*point);
        }
        if furthest.is_none_or(|further| further.value < point.value) {
            furthest = Some(*point);
        }
    }
}
