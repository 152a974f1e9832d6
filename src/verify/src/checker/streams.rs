//! Checks that every stream contains each event once, in order, without gaps between its start and its cursor.
//!
//! Required are the messages of the account's conversations, the deletions that any stream contains or an answer names
//! exactly, and the newest of each member's receipts, because a resumed stream sends only the newest instead of all.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Findings, Kind, Pair, ledger::Ledger, pair_key, words};
use crate::history::{Action, Event, Happening, History, Outcome};

/// The account that a stream belongs to, and the key of the stream in findings.
struct Subscriber<'a> {
    history: &'a History,
    account: u16,
    key: u64,
}

/// One connection of a stream.
struct Segment<'a> {
    at: usize,
    after: u64,
    events: &'a [Happening],
    cursor: u64,
}

/// The required events.
#[derive(Default)]
struct Due {
    /// Messages by account, in order.
    messages: HashMap<u16, Vec<u64>>,
    /// Deletions by revision, with the account if it is for that one only.
    deletions: BTreeMap<u64, (Pair, Option<u16>)>,
    /// The newest receipt of each member.
    receipts: HashMap<(Pair, u16), u64>,
}

pub(super) fn check(history: &History, ledger: &Ledger, found: &mut Findings) {
    let due = due(history, ledger, found);
    let mut streams: BTreeMap<(u16, u32), Vec<Segment<'_>>> = BTreeMap::new();
    for (at, record) in history.records.iter().enumerate() {
        if let Action::Subscribe { stream, after, events, cursor } = &record.action {
            let segment = Segment { at, after: *after, events, cursor: *cursor };
            streams.entry((record.account, *stream)).or_default().push(segment);
        }
    }
    for ((account, stream), mut segments) in streams {
        segments.sort_by_key(|segment| history.records[segment.at].began_us);
        let subscriber = Subscriber { history, account, key: u64::from(account) << 32 | u64::from(stream) };
        let mut delivered = HashSet::new();
        for segment in &segments {
            subscriber.once_and_in_order(segment, &mut delivered, found);
            subscriber.whole(ledger, segment, &due, found);
        }
        subscriber.newest_receipts(&segments, &due, &delivered, found);
    }
}

/// Returns the number of streams that did not reach the newest acknowledged message.
pub(super) fn behind(history: &History, ledger: &Ledger) -> u64 {
    let acks = ledger.sends.values().flat_map(|send| &send.acks);
    let newest = acks.map(|(_, stored)| stored.message).max().unwrap_or(0);
    let mut cursors: HashMap<(u16, u32), u64> = HashMap::new();
    for record in &history.records {
        if let Action::Subscribe { stream, cursor, .. } = &record.action {
            let furthest = cursors.entry((record.account, *stream)).or_default();
            *furthest = (*cursor).max(*furthest);
        }
    }
    cursors.values().filter(|cursor| **cursor < newest).count() as u64
}

fn due(history: &History, ledger: &Ledger, found: &Findings) -> Due {
    let mut due = Due::default();
    for (id, message) in &ledger.messages {
        // Only messages that certainly exist. Other faults of a message are reported elsewhere.
        let acknowledged = || {
            let send = message.owner.and_then(|owner| ledger.sends.get(&owner));
            send.is_some_and(|send| send.acks.iter().any(|(_, stored)| stored.message == *id))
        };
        if found.has(Kind::Lost, (*id, 0)) || !(message.last || acknowledged()) {
            continue;
        }
        let (one, other) = message.pair;
        due.messages.entry(one).or_default().push(*id);
        if one != other {
            due.messages.entry(other).or_default().push(*id);
        }
    }
    for record in &history.records {
        match &record.action {
            Action::Subscribe { events, .. } => {
                for happening in events {
                    let Some(pair) = ledger.pairs.get(&happening.conversation) else { continue };
                    match &happening.event {
                        Event::Deletion { for_everyone, .. } => {
                            let whom = (!for_everyone).then_some(record.account);
                            due.deletions.insert(happening.revision, (*pair, whom));
                        }
                        Event::Receipt { member: Some(member), .. } => {
                            let newest = due.receipts.entry((*pair, *member)).or_default();
                            *newest = happening.revision.max(*newest);
                        }
                        Event::Receipt { .. } | Event::Message(_) => {}
                    }
                }
            }
            // This call deleted all of its messages, so the revision is exact.
            Action::Delete { messages, for_everyone, outcome: Outcome::Ok(answer) } if answer.ignored == 0 => {
                let mut pairs = messages.iter().map(|id| ledger.messages.get(id).map(|message| message.pair));
                if let Some(Some(pair)) = pairs.next()
                    && pairs.all(|other| other == Some(pair))
                {
                    due.deletions.insert(answer.revision, (pair, (!for_everyone).then_some(record.account)));
                }
            }
            _ => {}
        }
    }
    due
}

impl Subscriber<'_> {
    /// Checks that a connection delivers each event once, in the order of the revisions.
    fn once_and_in_order(&self, segment: &Segment<'_>, delivered: &mut HashSet<u64>, found: &mut Findings) {
        let Self { history, key, .. } = *self;
        let mut before = segment.after;
        for happening in segment.events {
            let revision = happening.revision;
            if revision <= before {
                let kind = if delivered.contains(&revision) { Kind::DeliveredTwice } else { Kind::DeliveredOutOfOrder };
                found.add(kind, (revision, key | 1 << 63), || {
                    format!("{} delivered revision {revision} after {before}", words(history, segment.at))
                });
            }
            delivered.insert(revision);
            before = before.max(revision);
            if let Event::Message(seen) = &happening.event
                && seen.message != revision
            {
                found.add(Kind::ImpossibleState, (revision, key | 1 << 63), || {
                    format!("{} delivered message {} as revision {revision}", words(history, segment.at), seen.message)
                });
            }
        }
    }

    /// Checks that nothing is left out between the start of a connection and its cursor.
    fn whole(&self, ledger: &Ledger, segment: &Segment<'_>, due: &Due, found: &mut Findings) {
        let Self { history, account, key } = *self;
        let delivered: HashSet<u64> = segment.events.iter().map(|happening| happening.revision).collect();
        let mut gap = |revision: u64, what: String| {
            found.add(Kind::Gap, (revision, key), || {
                format!("{} has its cursor at {}, and left out {what}", words(history, segment.at), segment.cursor)
            });
        };
        let messages = due.messages.get(&account).map_or(&[][..], Vec::as_slice);
        let first = messages.partition_point(|id| *id <= segment.after);
        for id in messages[first..].iter().take_while(|id| **id <= segment.cursor).filter(|id| !delivered.contains(id))
        {
            gap(*id, format!("message {id}, #{}", ledger.messages[id].seq));
        }
        if segment.after < segment.cursor {
            for (revision, ((one, other), whom)) in due.deletions.range(segment.after + 1..=segment.cursor) {
                let is_due = whom.map_or([*one, *other].contains(&account), |whom| whom == account);
                if is_due && !delivered.contains(revision) {
                    gap(*revision, format!("the deletion {revision}"));
                }
            }
        }
    }

    /// Checks that the newest of each member's receipts is in the stream.
    fn newest_receipts(&self, segments: &[Segment<'_>], due: &Due, delivered: &HashSet<u64>, found: &mut Findings) {
        let Self { history, account, key } = *self;
        for (((one, other), member), revision) in &due.receipts {
            let covered = segments.iter().find(|segment| segment.after < *revision && *revision <= segment.cursor);
            let Some(segment) = covered.filter(|_| [*one, *other].contains(&account) && !delivered.contains(revision))
            else {
                continue;
            };
            found.add(Kind::Gap, (*revision, key), || {
                let pair = pair_key((*one, *other));
                format!(
                    "{} left out the receipt {revision} of account {member} (pair {pair:x})",
                    words(history, segment.at)
                )
            });
        }
    }
}
