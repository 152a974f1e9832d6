//! Checks that every page is exactly what its reader sees at the revision that it names, and that it is fresh enough.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    Findings, Kind, Pair,
    flags::{self, Flags},
    ledger::{Conversation, Ledger},
    order::Floor,
    pair, pair_key, words,
};
use crate::history::{Action, Freshness, History, Marks, Outcome, Page, Record};

/// One answered read.
struct Read<'a> {
    at: usize,
    record: &'a Record,
    pair: Pair,
    before: u64,
    limit: u32,
    freshness: Freshness,
    last: bool,
    page: &'a Page,
}

fn answered(history: &History) -> impl Iterator<Item = Read<'_>> {
    history.records.iter().enumerate().filter_map(|(at, record)| match &record.action {
        Action::Read { with, before, limit, freshness, last, outcome: Outcome::Ok(page) } => Some(Read {
            at,
            record,
            pair: pair(record.account, *with),
            before: *before,
            limit: *limit,
            freshness: *freshness,
            last: *last,
            page,
        }),
        _ => None,
    })
}

/// First seqs of the read-back's pages, by node, account and partner.
type Pages = HashMap<(Option<u16>, u16, Pair), BTreeSet<u64>>;

/// Checks the freshness and the messages of every page. Passes the evidence on deletions to `flags`.
pub(super) fn check_pages(
    history: &History,
    ledger: &mut Ledger,
    floor: &Floor,
    flags: &mut Flags,
    found: &mut Findings,
) {
    let mut pages = Pages::new();
    for read in answered(history).filter(|read| read.last && read.before > 0) {
        pages.entry((read.record.node, read.record.account, read.pair)).or_default().insert(read.before);
    }
    let none = Conversation::default();
    let mut tainted = HashSet::new();
    // The read-back comes first, so that reads do not report again what is lost there.
    for last in [true, false] {
        for read in answered(history).filter(|read| read.last == last) {
            fresh(history, &read, floor, found);
            let conversation = ledger.conversations.get(&read.pair).unwrap_or(&none);
            let in_order = shape(history, &read, found);
            shown(history, &read, flags, found);
            let begins = pages.get(&(read.record.node, read.record.account, read.pair)).filter(|_| last);
            if in_order && !missing(history, &read, conversation, begins, flags, found) && last {
                tainted.insert(read.pair);
            }
        }
    }
    for pair in tainted {
        if let Some(conversation) = ledger.conversations.get_mut(&pair) {
            conversation.tainted = true;
        }
    }
}

fn fresh(history: &History, read: &Read<'_>, floor: &Floor, found: &mut Findings) {
    let revision = read.page.revision;
    let (kind, least) = match read.freshness {
        Freshness::Linearizable => (Kind::Stale, floor.before(read.record.began_us)),
        Freshness::AtLeast(asked) => (Kind::BelowRevision, asked),
        Freshness::Local => return,
    };
    if revision < least {
        found.add(kind, (read.at as u64, 0), || {
            format!("{} is of revision {revision}, and must not be older than {least}", words(history, read.at))
        });
    }
}

/// Checks that a page is well-formed: newest first, and within the requested range.
fn shape(history: &History, read: &Read<'_>, found: &mut Findings) -> bool {
    let messages = &read.page.messages;
    let descending = messages.is_sorted_by(|newer, older| newer.seq > older.seq);
    let within = messages.iter().all(|seen| read.before == 0 || seen.seq < read.before)
        && messages.len() <= read.limit as usize
        && !(read.page.has_more && messages.is_empty());
    if !descending || !within {
        let seqs: Vec<u64> = messages.iter().map(|seen| seen.seq).collect();
        found.add(Kind::DeliveredOutOfOrder, (read.at as u64, 0), || {
            format!("{} shows {seqs:?}, before {}, at most {}", words(history, read.at), read.before, read.limit)
        });
    }
    descending && within
}

/// Checks the messages that a page shows.
fn shown(history: &History, read: &Read<'_>, flags: &mut Flags, found: &mut Findings) {
    let revision = read.page.revision;
    for seen in &read.page.messages {
        if seen.message > revision {
            found.add(Kind::ImpossibleState, (read.at as u64, 0), || {
                format!("{} is of revision {revision}, and shows message {}", words(history, read.at), seen.message)
            });
        }
        if seen.body.is_some() {
            flags.not_yet_at((seen.message, None), revision, read.at);
        } else if flags.was_asked((seen.message, None), read.record.ended_us) {
            flags.deleted_at((seen.message, None), revision, read.at);
        } else {
            flags::unrequested_effect(history, read.at, seen.message, found);
        }
        flags.not_yet_at((seen.message, Some(read.record.account)), revision, read.at);
    }
}

/// Reports messages that a page lacks. Returns whether it is complete.
fn missing(
    history: &History,
    read: &Read<'_>,
    conversation: &Conversation,
    begins: Option<&BTreeSet<u64>>,
    flags: &mut Flags,
    found: &mut Findings,
) -> bool {
    let page = read.page;
    let high = conversation.last_seq(page.revision).min(read.before.wrapping_sub(1));
    let lowest = page.messages.last().map_or(1, |seen| seen.seq);
    // The next page of the read-back begins where this one ended.
    let next = begins.and_then(|begins| begins.range(..read.before.wrapping_sub(1)).next_back());
    let low = if page.has_more { next.map_or(lowest, |next| lowest.min(*next)) } else { 1 };
    let ids: HashSet<u64> = page.messages.iter().map(|seen| seen.message).collect();
    let account = read.record.account;
    let mut complete = true;
    let mut expected = low;
    for (seq, id) in conversation.between(low, high) {
        if read.last && *seq > expected && !page.messages.iter().any(|seen| seen.seq == expected) {
            complete = false;
            found.add(Kind::Lost, (pair_key(read.pair) | 1 << 63, expected), || {
                format!("{} has #{seq}, and no answer ever contained #{expected}", words(history, read.at))
            });
        }
        expected = seq + 1;
        if *id > page.revision || ids.contains(id) {
            continue;
        }
        if flags.was_asked((*id, Some(account)), read.record.ended_us) {
            flags.deleted_at((*id, Some(account)), page.revision, read.at);
            continue;
        }
        complete = false;
        if read.last {
            found.add(Kind::Lost, (*id, 0), || {
                format!("message {id}, #{seq}, is missing in {}", words(history, read.at))
            });
        } else if !found.has(Kind::Lost, (*id, 0)) {
            found.add(Kind::Incomplete, (read.at as u64, 0), || {
                let revision = page.revision;
                format!("{} is of revision {revision}, and lacks message {id}, #{seq}", words(history, read.at))
            });
        }
    }
    complete
}

/// Checks the counts of every page, unless the conversation's messages are already known to be wrong.
pub(super) fn check_counts(history: &History, ledger: &Ledger, flags: &Flags, found: &mut Findings) {
    let none = Conversation::default();
    let mut sent_by: HashMap<Pair, Vec<u64>> = HashMap::new();
    for (pair, conversation) in &ledger.conversations {
        let mut count = 0;
        let first = conversation.places.iter().map(|(_, id)| {
            count += u64::from(ledger.messages.get(id).is_some_and(|message| message.sender == pair.0));
            count
        });
        sent_by.insert(*pair, std::iter::once(0).chain(first).collect());
    }
    for read in answered(history) {
        let conversation = ledger.conversations.get(&read.pair).unwrap_or(&none);
        if conversation.tainted || found.has(Kind::Incomplete, (read.at as u64, 0)) {
            continue;
        }
        let page = read.page;
        let last_seq = conversation.last_seq(page.revision);
        let mut wrong = |kind: Kind, what: &str, is: u64, low: u64, high: u64| {
            if is < low || is > high {
                found.add(kind, (read.at as u64, 1), || {
                    let revision = page.revision;
                    format!("{}: {what} is {is} at revision {revision}, not {low} to {high}", words(history, read.at))
                });
            }
        };
        let late = if page.last_seq < last_seq { Kind::Incomplete } else { Kind::ImpossibleState };
        wrong(late, "the newest seq", page.last_seq, last_seq, last_seq);
        if page.last_seq != last_seq {
            continue;
        }
        let (certainly, perhaps) = hidden(&read, flags);
        let least = last_seq.saturating_sub(perhaps);
        wrong(
            Kind::ImpossibleState,
            "the number of visible messages",
            page.total,
            least,
            last_seq.saturating_sub(certainly),
        );
        for (what, marks) in [("own", page.own), ("the other's", page.other)] {
            let (delivered, read) = (marks.delivered, marks.read);
            wrong(Kind::ImpossibleState, &format!("{what} delivered watermark"), delivered, read, last_seq);
        }
        if let Some(sent_by) = sent_by.get(&read.pair)
            && let Some((low, high)) = unread(&read, conversation, sent_by, ledger, flags)
        {
            wrong(Kind::ImpossibleState, "the number of unread messages", page.unread, low, high);
        }
        for seen in &page.messages {
            let status = u64::from(status(&read, seen.seq, seen.sender));
            wrong(
                Kind::ImpossibleState,
                &format!("the status of #{}", seen.seq),
                u64::from(seen.status),
                status,
                status,
            );
        }
    }
}

/// Returns how many messages the reader has hidden: certainly, and possibly.
fn hidden(read: &Read<'_>, flags: &Flags) -> (u64, u64) {
    let account = Some(read.record.account);
    let revision = read.page.revision;
    let known = flags.list(read.pair, account).iter().filter(|(_, id)| *id <= revision);
    known.fold((0, 0), |(certainly, perhaps), (_, id)| {
        let (is, may) = flags.at((*id, account), revision);
        (certainly + u64::from(is), perhaps + u64::from(may))
    })
}

/// Returns the lower and upper bound of the unread messages of others. `None`: some of the messages were never
/// observed.
fn unread(
    read: &Read<'_>,
    conversation: &Conversation,
    sent_by: &[u64],
    ledger: &Ledger,
    flags: &Flags,
) -> Option<(u64, u64)> {
    let (page, account) = (read.page, read.record.account);
    let (from, to) = (page.own.read + 1, page.last_seq);
    let first = conversation.places.partition_point(|(seq, _)| *seq < from);
    let end = conversation.places.partition_point(|(seq, _)| *seq <= to).max(first);
    let all = (end - first) as u64;
    if all != to.saturating_sub(page.own.read) {
        return None;
    }
    let of_first = sent_by[end] - sent_by[first];
    let others = match (account == read.pair.0, account == read.pair.1) {
        (true, true) => 0,
        (true, false) => all - of_first,
        _ => of_first,
    };
    let mut gone = BTreeSet::new();
    for list in [flags.list(read.pair, None), flags.list(read.pair, Some(account))] {
        let from = list.partition_point(|(seq, _)| *seq < from);
        let listed = list[from..].iter().take_while(|(seq, _)| *seq <= to);
        gone.extend(listed.map(|(_, id)| *id).filter(|id| ledger.messages[id].sender != account));
    }
    let (mut certainly, mut perhaps) = (0, 0);
    for id in gone {
        let (for_all, for_me) = (flags.at((id, None), page.revision), flags.at((id, Some(account)), page.revision));
        certainly += u64::from(for_all.0 || for_me.0);
        perhaps += u64::from(for_all.1 || for_me.1);
    }
    Some((others.saturating_sub(perhaps), others.saturating_sub(certainly)))
}

/// Returns the status of a message by the watermarks of the same page.
fn status(read: &Read<'_>, seq: u64, sender: Option<u16>) -> u8 {
    let end = Marks { delivered: u64::MAX, read: u64::MAX };
    let recipient = match (read.pair.0 == read.pair.1, sender == Some(read.record.account)) {
        (true, _) => end,
        (false, true) => read.page.other,
        (false, false) => read.page.own,
    };
    if seq <= recipient.read {
        3
    } else if seq <= recipient.delivered {
        2
    } else {
        1
    }
}

/// Returns the number of nodes from which every conversation was read back to its beginning, for every account of the
/// read-back.
pub(super) fn nodes_read_back(history: &History) -> u64 {
    let mut wanted = HashSet::new();
    let mut done: HashMap<u16, HashSet<(u16, u16)>> = HashMap::new();
    for record in &history.records {
        let (Action::Read { with, last: true, outcome, .. }, Some(node)) = (&record.action, record.node) else {
            continue;
        };
        wanted.insert((record.account, *with));
        if outcome.ok().is_some_and(|page| !page.has_more) {
            done.entry(node).or_default().insert((record.account, *with));
        }
    }
    done.values().filter(|done| **done == wanted).count() as u64
}
