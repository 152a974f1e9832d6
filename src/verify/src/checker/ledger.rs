//! All messages that were observed, each matched with the send that it came from.
//!
//! The final read-back is the reference that the rest is compared with. Then come other reads and streams, and then the
//! answers to sends. A message is matched with its send by the client's message id, which only its sender gets, or by
//! its body. A tombstone that was shown only to other accounts has neither: it may come from any open send of its
//! sender.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Findings, Kind, Pair, pair, pair_key, words};
use crate::history::{Action, Digest, Event, Happening, History, Outcome, Page, Seen, Stored, Uid};

/// All attempts to send one message.
pub(super) struct Send {
    pub account: u16,
    pub to: u16,
    pub body: Digest,
    /// Time of the first attempt.
    pub first_began: u64,
    /// Index of that attempt's record.
    pub first_record: usize,
    /// The answers, with the attempts that got them.
    pub acks: Vec<(usize, Stored)>,
    /// Whether an attempt got no answer. The message may then be stored, whatever the outcome of the other attempts.
    pub open: bool,
}

/// A message and its position.
pub(super) struct Message {
    pub pair: Pair,
    pub seq: u64,
    pub sender: u16,
    pub owner: Option<Uid>,
    pub time_ms: u64,
    /// Whether the final read-back contains it.
    pub last: bool,
    /// The first operation that showed it.
    pub source: usize,
}

/// A message as one operation showed it.
#[derive(Clone, Copy)]
struct Sighting<'a> {
    /// Index of the operation's record.
    at: usize,
    /// The accounts of the conversation that showed it.
    pair: Pair,
    seen: &'a Seen,
    /// Whether the operation belongs to the final read-back.
    last: bool,
}

/// The messages of two accounts.
#[derive(Default)]
pub(super) struct Conversation {
    /// Seqs and ids, ordered by both.
    pub places: Vec<(u64, u64)>,
    /// Whether something is wrong with its messages. Its counts are then not checked.
    pub tainted: bool,
}

impl Conversation {
    /// Returns the newest seq at a revision.
    pub(super) fn last_seq(&self, revision: u64) -> u64 {
        let after = self.places.partition_point(|(_, id)| *id <= revision);
        after.checked_sub(1).map_or(0, |at| self.places[at].0)
    }

    /// Returns the messages with seqs from `low` to `high`, inclusive.
    pub(super) fn between(&self, low: u64, high: u64) -> &[(u64, u64)] {
        let from = self.places.partition_point(|(seq, _)| *seq < low);
        let to = self.places.partition_point(|(seq, _)| *seq <= high);
        self.places.get(from..to).unwrap_or(&[])
    }
}

/// All observed messages. See the [module](self).
#[derive(Default)]
pub(super) struct Ledger {
    pub sends: HashMap<Uid, Send>,
    pub messages: BTreeMap<u64, Message>,
    pub conversations: HashMap<Pair, Conversation>,
    /// The accounts of each conversation, by the service's id.
    pub pairs: HashMap<u64, Pair>,
    by_body: HashMap<Digest, Uid>,
    by_ack: HashMap<u64, Uid>,
    tainted: HashSet<Pair>,
}

pub(super) fn build(history: &History, found: &mut Findings) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.collect_sends(history);
    ledger.name_conversations(history, found);
    // The final read-back comes first, because the rest is compared with it.
    for last in [true, false] {
        for (at, record) in history.records.iter().enumerate() {
            if let Action::Read { with, last: is_last, outcome: Outcome::Ok(page), .. } = &record.action
                && *is_last == last
            {
                let pair = pair(record.account, *with);
                for seen in &page.messages {
                    ledger.note(history, Sighting { at, pair, seen, last }, found);
                }
            }
        }
    }
    for (at, record) in history.records.iter().enumerate() {
        let Action::Subscribe { events, .. } = &record.action else { continue };
        for happening in events {
            let Event::Message(seen) = &happening.event else { continue };
            let Some(pair) = ledger.pair_of(record.account, happening, seen) else {
                found.add(Kind::NeverSent, (seen.message, 0), || describe(history, at, seen, "which nobody sent"));
                continue;
            };
            ledger.pairs.entry(happening.conversation).or_insert(pair);
            ledger.note(history, Sighting { at, pair, seen, last: false }, found);
        }
    }
    ledger.acknowledged(history, found);
    ledger.stored_twice(found);
    ledger.anonymous(history, found);
    ledger.arrange(found);
    ledger
}

fn describe(history: &History, at: usize, seen: &Seen, why: &str) -> String {
    format!("{} shows message {} as #{}, {why}", words(history, at), seen.message, seen.seq)
}

impl Ledger {
    fn collect_sends(&mut self, history: &History) {
        for (at, record) in history.records.iter().enumerate() {
            let Action::Send { id, to, body, outcome } = &record.action else { continue };
            let send = self.sends.entry(*id).or_insert(Send {
                account: record.account,
                to: *to,
                body: *body,
                first_began: record.began_us,
                first_record: at,
                acks: Vec::new(),
                open: false,
            });
            if record.began_us < send.first_began {
                (send.first_began, send.first_record) = (record.began_us, at);
            }
            match outcome {
                Outcome::Ok(stored) => {
                    send.acks.push((at, *stored));
                    self.by_ack.entry(stored.message).or_insert(*id);
                }
                Outcome::Unknown => send.open = true,
                Outcome::Refused => {}
            }
            self.by_body.entry(*body).or_insert(*id);
        }
    }

    /// Maps the service's ids of conversations to pairs of accounts, and checks that the mapping is one-to-one.
    fn name_conversations(&mut self, history: &History, found: &mut Findings) {
        let mut names: HashMap<Pair, u64> = HashMap::new();
        for (at, record) in history.records.iter().enumerate() {
            let (with, name) = match &record.action {
                Action::Send { to, outcome: Outcome::Ok(stored), .. } => (*to, stored.conversation),
                Action::Read { with, outcome: Outcome::Ok(Page { conversation, .. }), .. } if *conversation != 0 => {
                    (*with, *conversation)
                }
                _ => continue,
            };
            let pair = pair(record.account, with);
            let other = *names.entry(pair).or_insert(name);
            if other != name || *self.pairs.entry(name).or_insert(pair) != pair {
                self.tainted.insert(pair);
                found.add(Kind::ConversationTwice, (pair_key(pair), name), || {
                    format!("{} names the conversation {name}, others {other}", words(history, at))
                });
            }
        }
    }

    /// Returns the accounts of the conversation that an event belongs to.
    fn pair_of(&self, account: u16, happening: &Happening, seen: &Seen) -> Option<Pair> {
        let by_owner = || {
            let send = self.sends.get(&seen.id?)?;
            Some(pair(send.account, send.to))
        };
        let by_sender = || seen.sender.filter(|sender| *sender != account).map(|sender| pair(sender, account));
        self.pairs.get(&happening.conversation).copied().or_else(by_owner).or_else(by_sender)
    }

    /// Returns the send that a message came from. Fails if there is none, or if the message differs from it.
    fn owner(&self, seen: &Seen, pair_seen: Pair) -> Result<Option<Uid>, (Kind, &'static str, Option<Uid>)> {
        let known = || self.by_ack.get(&seen.message).copied();
        let owner = match (seen.id, seen.body) {
            (Some(id), _) => Some(id),
            (None, Some(body)) => match self.by_body.get(&body) {
                Some(id) => Some(*id),
                None if known().is_some() => return Err((Kind::Changed, "with a body that nobody sent", known())),
                None => return Err((Kind::NeverSent, "which nobody sent", None)),
            },
            (None, None) => return Ok(known()),
        };
        let Some(send) = owner.and_then(|owner| self.sends.get(&owner)) else {
            return Err((Kind::NeverSent, "under an id that nobody used", None));
        };
        if seen.body.is_some_and(|body| body != send.body) {
            return Err((Kind::Changed, "with another body than was sent", owner));
        }
        if seen.sender != Some(send.account) || pair_seen != pair(send.account, send.to) {
            return Err((Kind::Changed, "of another sender, or in another conversation, than was sent", owner));
        }
        if send.acks.is_empty() && !send.open {
            return Err((Kind::RefusedButStored, "of which every attempt was refused", owner));
        }
        Ok(owner)
    }

    /// Records that an operation showed a message.
    fn note(&mut self, history: &History, sighting: Sighting<'_>, found: &mut Findings) {
        let Sighting { at, pair, seen, last } = sighting;
        let owner = match self.owner(seen, pair) {
            Ok(owner) => owner,
            Err((kind, why, owner)) => {
                found.add(kind, (seen.message, 0), || describe(history, at, seen, why));
                self.tainted.insert(pair);
                if kind == Kind::NeverSent {
                    return;
                }
                owner
            }
        };
        let send = owner.and_then(|owner| self.sends.get(&owner));
        if send.is_some_and(|send| history.records[at].ended_us < send.first_began) {
            found.add(Kind::PrematureVisibility, (seen.message, 0), || {
                describe(history, at, seen, "before it was sent")
            });
        }
        let sender = send.map(|send| send.account).or(seen.sender).unwrap_or(u16::MAX);
        let new = Message { pair, seq: seen.seq, sender, owner, time_ms: seen.time_ms, last, source: at };
        let message = self.messages.entry(seen.message).or_insert(new);
        message.last |= last;
        if let (Some(one), Some(other)) = (message.owner, owner)
            && one != other
        {
            // If the send was acknowledged, `acknowledged` reports the contradiction.
            if send.is_some_and(|send| send.acks.is_empty()) {
                found.add(Kind::ImpossibleState, (seen.message, 0), || {
                    describe(history, at, seen, "where another one is")
                });
            }
            self.tainted.insert(pair);
            return;
        }
        message.owner = message.owner.or(owner);
        let (place, source) = ((message.pair, message.seq), message.source);
        if place != (pair, seen.seq) {
            self.tainted.insert(pair);
            found.add(Kind::Moved, (seen.message, 0), || {
                describe(history, at, seen, &format!("{} as #{}", words(history, source), place.1))
            });
        }
        if message.time_ms != seen.time_ms || seen.sender.is_some_and(|sender| sender != message.sender) {
            found.add(Kind::Changed, (seen.message, 0), || describe(history, at, seen, "with another sender or time"));
        }
    }

    /// Checks that acknowledged messages are stored as acknowledged.
    fn acknowledged(&mut self, history: &History, found: &mut Findings) {
        let mut places: HashMap<Uid, u64> = HashMap::new();
        for (id, message) in &self.messages {
            if let Some(owner) = message.owner {
                places.entry(owner).or_insert(*id);
            }
        }
        for (uid, send) in &self.sends {
            let Some((at, stored)) = send.acks.first().copied() else { continue };
            let pair = pair(send.account, send.to);
            answers_agree(history, uid, &send.acks, found);
            let said =
                || format!("{} was acknowledged as message {}, #{}", words(history, at), stored.message, stored.seq);
            match self.messages.get_mut(&stored.message) {
                None if places.contains_key(uid) => {
                    self.tainted.insert(pair);
                    found.add(Kind::Moved, (stored.message, 0), || format!("{}, and is {}", said(), places[uid]));
                }
                None => {
                    let (seq, sender, time_ms) = (stored.seq, send.account, stored.time_ms);
                    let message = Message { pair, seq, sender, owner: Some(*uid), time_ms, last: false, source: at };
                    self.messages.insert(stored.message, message);
                }
                Some(message) if message.owner.is_none_or(|owner| owner == *uid) => {
                    message.owner = Some(*uid);
                    if (message.pair, message.seq) != (pair, stored.seq) {
                        self.tainted.insert(pair);
                        let seq = message.seq;
                        found.add(Kind::Moved, (stored.message, 0), || format!("{}, and is #{seq}", said()));
                    } else if message.time_ms != stored.time_ms || message.sender != send.account {
                        found.add(Kind::Changed, (stored.message, 0), || format!("{}, of another time", said()));
                    }
                }
                Some(_) => {
                    self.tainted.insert(pair);
                    match places.get(uid) {
                        Some(id) => {
                            found.add(Kind::Moved, (stored.message, 0), || format!("{}, and is {id}", said()));
                        }
                        None => {
                            found.add(Kind::Lost, (stored.message, 1), || format!("{}, where another one is", said()))
                        }
                    }
                }
            }
        }
    }

    fn stored_twice(&mut self, found: &mut Findings) {
        let mut places: HashMap<Uid, u64> = HashMap::new();
        for (id, message) in &self.messages {
            let Some(owner) = message.owner else { continue };
            let first = *places.entry(owner).or_insert(*id);
            if first != *id && !found.has(Kind::Moved, (*id, 0)) && !found.has(Kind::Moved, (first, 0)) {
                self.tainted.insert(message.pair);
                found.add(Kind::StoredTwice, (*id, 0), || {
                    format!("{owner} is stored as message {first} and as message {id}, #{}", message.seq)
                });
            }
        }
    }

    /// Checks that tombstones without a known send are not more than the sends that may be stored.
    fn anonymous(&mut self, history: &History, found: &mut Findings) {
        let owned: HashSet<Uid> = self.messages.values().filter_map(|message| message.owner).collect();
        let mut open: HashMap<(Pair, u16), u64> = HashMap::new();
        for (uid, send) in &self.sends {
            if send.open && send.acks.is_empty() && !owned.contains(uid) {
                *open.entry((pair(send.account, send.to), send.account)).or_default() += 1;
            }
        }
        for (id, message) in self.messages.iter().filter(|(_, message)| message.owner.is_none()) {
            let left = open.entry((message.pair, message.sender)).or_default();
            if *left == 0 {
                self.tainted.insert(message.pair);
                found.add(Kind::NeverSent, (*id, 0), || {
                    format!("{} shows the tombstone {id}, which nobody sent", words(history, message.source))
                });
            }
            *left = left.saturating_sub(1);
        }
    }

    /// Puts the messages of each conversation in order.
    fn arrange(&mut self, found: &mut Findings) {
        for (id, message) in &self.messages {
            self.conversations.entry(message.pair).or_default().places.push((message.seq, *id));
        }
        for (pair, conversation) in &mut self.conversations {
            conversation.places.sort_unstable();
            conversation.tainted = self.tainted.contains(pair);
            for two in conversation.places.windows(2) {
                let (one, other) = (two[0], two[1]);
                // If one of two messages at the same position is lost, the read-back shows it.
                let known = [one.1, other.1].iter().any(|id| found.has(Kind::Moved, (*id, 0)))
                    || (one.0 == other.0 && self.messages[&one.1].last != self.messages[&other.1].last);
                if known || (one.0 < other.0 && one.1 < other.1) {
                    conversation.tainted |= one.0 == other.0;
                    continue;
                }
                conversation.tainted = true;
                found.add(Kind::AgainstRevisions, (other.1, 0), || {
                    format!("message {} is #{}, and message {} is #{}", one.1, one.0, other.1, other.0)
                });
            }
        }
    }
}

/// Checks that the answers to one id name one message, and that only the first of them says that it is new.
fn answers_agree(history: &History, uid: &Uid, acks: &[(usize, Stored)], found: &mut Findings) {
    let Some((first, stored)) = acks.first() else { return };
    let place = |stored: &Stored| (stored.message, stored.conversation, stored.seq, stored.time_ms);
    let new = acks.iter().filter(|(_, stored)| !stored.repeated).count();
    for (at, again) in &acks[1..] {
        let late = !again.repeated && acks.iter().any(|(other, _)| is_before(history, *other, *at));
        if place(again) != place(stored) || new > 1 || late {
            found.add(Kind::RepeatDiffers, (stored.message, 0), || {
                let shown = |stored: &Stored| {
                    format!("message {}, #{}{}", stored.message, stored.seq, if stored.repeated { "" } else { ", new" })
                };
                format!(
                    "{uid}: {}: {}; {}: {}",
                    words(history, *first),
                    shown(stored),
                    words(history, *at),
                    shown(again)
                )
            });
        }
    }
}

fn is_before(history: &History, one: usize, other: usize) -> bool {
    history.records[one].ended_us < history.records[other].began_us
}
