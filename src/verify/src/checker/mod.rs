//! Checks a recorded run: were the API's guarantees kept, as far as this run can show?
//!
//! [`check`] is a pure function of a [`History`]. The service assigns everything a position in one order: a message's
//! id is the revision that stored it, and a read's header names the revision that the read reflects. So there is no
//! search for a valid order. It is enough to check that
//! - the order agrees with real time: an operation that began after another one completed comes after it (`order`), and
//!   a linearizable read reflects no older state than anything that was observed before it began (`reads`);
//! - every read, at any consistency level, shows exactly the state of the revision that it names (`reads`). That state
//!   is reconstructed from all observations: messages (`ledger`), deletions (`flags`) and watermarks (`marks`);
//! - every stream contains everything between its start and its cursor, once and in order (`streams`).
//!
//! Together these properties are linearizability, with the order of revisions as the witness, checked in slightly more
//! than linear time. Facts that are not known exactly (a deletion whose answer was lost) are kept as ranges, and only a
//! contradiction to a range is an error. So there are no false alarms. The counts of a conversation whose messages are
//! lost, duplicated or invented are not checked, because they would report the same fault again.
//!
//! Preconditions: the accounts were created for this run, no other client uses them, and no two bodies are equal.
//!
//! Does not cover: partner lists, accounts and sessions, and streams that begin without a revision.

mod flags;
mod ledger;
mod marks;
mod order;
mod outage;
mod reads;
mod streams;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use super::history::{Action, Freshness, History, Outcome, Record};

/// The kinds of violations. Each belongs to one of the counts of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A message that was acknowledged or observed is missing at the end.
    Lost,
    /// A deletion or a watermark is undone at the end.
    Undone,
    /// One client message id is stored as several messages.
    StoredTwice,
    /// Two answers to the same client message id name different messages, or both claim to be the first.
    RepeatDiffers,
    /// A stream contains the same event twice.
    DeliveredTwice,
    /// Two accounts have two conversations, or two conversations have one id.
    ConversationTwice,
    /// A message has another position than an earlier observation.
    Moved,
    /// An operation precedes one that had completed before it began.
    RealTimeViolation,
    /// The order within a conversation contradicts the order of revisions.
    AgainstRevisions,
    /// A page or a stream is out of order.
    DeliveredOutOfOrder,
    /// The service's clock ran backwards.
    ClockBackwards,
    /// A message that no client sent.
    NeverSent,
    /// A message that is stored although every attempt was refused.
    RefusedButStored,
    /// A message with another body, sender, recipient or time than it was sent or observed with.
    Changed,
    /// A message or a deletion was visible before it was requested.
    PrematureVisibility,
    /// A deletion that no client requested, or a watermark beyond every request.
    UnrequestedEffect,
    /// An observation that is not the state of any revision.
    ImpossibleState,
    /// A linearizable read of a state that is older than one that was known when it began.
    Stale,
    /// A read of a state before the requested revision.
    BelowRevision,
    /// A read lacks something that belongs to the revision that it names.
    Incomplete,
    /// A stream left out an event.
    Gap,
}

impl Kind {
    /// Returns the kind's name in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Undone => "undone",
            Self::StoredTwice => "stored_twice",
            Self::RepeatDiffers => "repeat_differs",
            Self::DeliveredTwice => "delivered_twice",
            Self::ConversationTwice => "conversation_twice",
            Self::Moved => "moved",
            Self::RealTimeViolation => "real_time_violation",
            Self::AgainstRevisions => "against_revisions",
            Self::DeliveredOutOfOrder => "delivered_out_of_order",
            Self::ClockBackwards => "clock_backwards",
            Self::NeverSent => "never_sent",
            Self::RefusedButStored => "refused_but_stored",
            Self::Changed => "changed",
            Self::PrematureVisibility => "premature_visibility",
            Self::UnrequestedEffect => "unrequested_effect",
            Self::ImpossibleState => "impossible_state",
            Self::Stale => "stale",
            Self::BelowRevision => "below_revision",
            Self::Incomplete => "incomplete",
            Self::Gap => "gap",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The result of checking a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of messages that were acknowledged.
    pub acknowledged: u64,
    /// Number of [`Kind::Lost`], [`Kind::Undone`]: messages, deletions and watermarks.
    pub lost: u64,
    /// Number of [`Kind::StoredTwice`], [`Kind::RepeatDiffers`], [`Kind::DeliveredTwice`], [`Kind::ConversationTwice`].
    pub duplicated: u64,
    /// Number of [`Kind::Moved`], [`Kind::RealTimeViolation`], [`Kind::AgainstRevisions`],
    /// [`Kind::DeliveredOutOfOrder`], [`Kind::ClockBackwards`].
    pub reordered: u64,
    /// Number of [`Kind::NeverSent`], [`Kind::RefusedButStored`], [`Kind::Changed`], [`Kind::PrematureVisibility`],
    /// [`Kind::UnrequestedEffect`], [`Kind::ImpossibleState`].
    pub phantom: u64,
    /// Number of [`Kind::Stale`], [`Kind::BelowRevision`], [`Kind::Incomplete`].
    pub stale_reads: u64,
    /// Number of [`Kind::Gap`]: events that a stream left out.
    pub resume_gaps: u64,
    /// Number of messages whose sender never learned the outcome. They may be stored once, or not at all.
    pub unknown: u64,
    /// The longest time in which sends were in flight and none was acknowledged, in microseconds. A send is in flight
    /// from its invocation to its completion, with any outcome. The time runs from the previous acknowledgement, or
    /// from the first invocation after it if no send was in flight then, to the next acknowledgement or to the end of
    /// the load.
    pub longest_outage_us: u64,
    /// Number of reads that were answered.
    pub reads: u64,
    /// Number of events that the streams delivered.
    pub events: u64,
    /// Number of nodes from which every conversation of every account was read back at the end.
    pub nodes_read_back: u64,
    /// Number of streams that did not reach the newest acknowledged message.
    pub streams_behind: u64,
    /// The violations, by kind.
    pub violations: Vec<Violation>,
}

/// The violations of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Their kind.
    pub kind: Kind,
    /// Their number.
    pub count: u64,
    /// A description of the first one.
    pub example: String,
}

impl Report {
    /// Returns the reason why the run proves nothing, if there is one: no send was acknowledged, nothing was read back,
    /// or a stream did not reach its end.
    pub fn proved_nothing(&self) -> Option<&'static str> {
        if self.acknowledged == 0 {
            Some("no send was acknowledged")
        } else if self.nodes_read_back == 0 {
            Some("no node could be read back at the end")
        } else if self.streams_behind > 0 {
            Some("a stream could not be read to its end")
        } else {
            None
        }
    }

    /// Returns the number of violations of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.violations.iter().find(|violation| violation.kind == kind).map_or(0, |violation| violation.count)
    }

    fn judge(&mut self, found: Findings) {
        for (kind, (count, example)) in found.found {
            let counter = match kind {
                Kind::Lost | Kind::Undone => &mut self.lost,
                Kind::StoredTwice | Kind::RepeatDiffers | Kind::DeliveredTwice | Kind::ConversationTwice => {
                    &mut self.duplicated
                }
                Kind::Moved
                | Kind::RealTimeViolation
                | Kind::AgainstRevisions
                | Kind::DeliveredOutOfOrder
                | Kind::ClockBackwards => &mut self.reordered,
                Kind::NeverSent
                | Kind::RefusedButStored
                | Kind::Changed
                | Kind::PrematureVisibility
                | Kind::UnrequestedEffect
                | Kind::ImpossibleState => &mut self.phantom,
                Kind::Stale | Kind::BelowRevision | Kind::Incomplete => &mut self.stale_reads,
                Kind::Gap => &mut self.resume_gaps,
            };
            *counter += count;
            self.violations.push(Violation { kind, count, example });
        }
    }
}

/// Checks a history. See the [module](self).
pub fn check(history: &History) -> Report {
    let mut found = Findings::default();
    let floor = order::Floor::new(&history.records);
    let mut ledger = ledger::build(history, &mut found);
    order::check(history, &ledger, &floor, &mut found);
    let mut flags = flags::Flags::asked(history, &ledger, &floor);
    reads::check_pages(history, &mut ledger, &floor, &mut flags, &mut found);
    flags.hear(history, &ledger, &mut found);
    flags.check(history, &mut found);
    marks::check(history, &ledger, &floor, &mut found);
    reads::check_counts(history, &ledger, &flags, &mut found);
    streams::check(history, &ledger, &mut found);
    let mut report = Report {
        acknowledged: ledger.sends.values().filter(|send| !send.acks.is_empty()).count() as u64,
        unknown: ledger.sends.values().filter(|send| send.acks.is_empty() && send.open).count() as u64,
        longest_outage_us: outage::longest_us(history),
        nodes_read_back: reads::nodes_read_back(history),
        streams_behind: streams::behind(history, &ledger),
        ..Report::default()
    };
    for record in &history.records {
        match &record.action {
            Action::Read { outcome: Outcome::Ok(_), .. } => report.reads += 1,
            Action::Subscribe { events, .. } => report.events += events.len() as u64,
            _ => {}
        }
    }
    report.judge(found);
    report
}

/// The violations found so far.
#[derive(Default)]
struct Findings {
    found: BTreeMap<Kind, (u64, String)>,
    /// Keys of everything reported, so that it counts once, however many operations show it.
    known: HashSet<(Kind, u64, u64)>,
}

impl Findings {
    /// Reports a violation for the object that `key` identifies.
    fn add(&mut self, kind: Kind, key: (u64, u64), example: impl FnOnce() -> String) {
        if self.known.insert((kind, key.0, key.1)) {
            self.found.entry(kind).or_insert_with(|| (0, example())).0 += 1;
        }
    }

    fn has(&self, kind: Kind, key: (u64, u64)) -> bool {
        self.known.contains(&(kind, key.0, key.1))
    }
}

/// The two accounts of a conversation, the lower one first; the same account twice for notes.
type Pair = (u16, u16);

fn pair(one: u16, other: u16) -> Pair {
    (one.min(other), one.max(other))
}

/// Returns a number that identifies a pair in keys of findings.
fn pair_key(pair: Pair) -> u64 {
    u64::from(pair.0) << 16 | u64::from(pair.1)
}

/// Describes an operation: its client and account, the action, the node and the times.
fn words(history: &History, at: usize) -> String {
    let Some(record) = history.records.get(at) else { return format!("operation {at}") };
    let name = |account: u16| history.header.accounts.get(usize::from(account)).map_or("?", String::as_str);
    let node = record.node.and_then(|node| history.header.nodes.get(usize::from(node)));
    let node = node.map_or_else(|| "the leader".to_owned(), Clone::clone);
    let seconds = |us: u64| us as f64 / 1e6;
    format!(
        "{} of {} (client {}, through {node}, {:.6} s to {:.6} s)",
        what(record, name),
        name(record.account),
        record.client,
        seconds(record.began_us),
        seconds(record.ended_us)
    )
}

fn what<'a>(record: &Record, name: impl Fn(u16) -> &'a str) -> String {
    match &record.action {
        Action::Send { id, to, .. } => format!("the send {id} to {}", name(*to)),
        Action::Read { with, last: true, .. } => format!("the last read with {}", name(*with)),
        Action::Read { with, freshness, .. } => {
            let freshness = match freshness {
                Freshness::Linearizable => "linearizable".to_owned(),
                Freshness::AtLeast(revision) => format!("at least {revision}"),
                Freshness::Local => "local".to_owned(),
            };
            format!("a read ({freshness}) with {}", name(*with))
        }
        Action::MarkRead { with, up_to, .. } => format!("marking read with {} up to {up_to}", name(*with)),
        Action::Deliver { with, up_to, .. } => format!("acknowledging with {} up to {up_to}", name(*with)),
        Action::Delete { messages, .. } => format!("the deletion of {messages:?}"),
        Action::Subscribe { stream, after, .. } => format!("stream {stream} after {after}"),
    }
}

#[cfg(test)]
mod tests;
