//! Judges a recorded run: was every promise of the API kept, as far as this run can tell?
//!
//! A pure function of a [`History`]: [`check`]. Its idea: the service says where in one order everything is (a message's
//! id is the revision that stored it, a read's header says of which revision it is), so that there is nothing to search
//! for. It is enough to check that
//! - the order agrees with time: what began after something else was over comes after it (`order`), and a linearizable
//!   read is of no older state than anything that was seen before it began (`reads`);
//! - every read, of whatever freshness, shows exactly the state of the revision that it names (`reads`), built up from all
//!   that anybody saw: the messages (`ledger`), deletions (`flags`), watermarks (`marks`);
//! - every stream told all that lies between where it began and its cursor, once and in order (`streams`).
//!
//! Together that is linearizability, with the order of revisions as the witness, in little more than linear time. What is
//! not known exactly (a deletion whose answer was lost) is kept as a range, and only what is outside of it is an error:
//! there are no false alarms. Where messages are lost, doubled or made up, the counts of that conversation are not judged
//! as well: they would report the same fault again.
//!
//! Preconditions: the accounts were made for this run, nobody else uses them, and no two bodies are equal.
//!
//! Left out: partner lists, accounts and sessions, and streams that begin without a revision.

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

/// What can be wrong, by its name. Each belongs to one of the counts of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A message that was acknowledged, or shown to somebody, is not there at the end.
    Lost,
    /// A deletion or a watermark is undone at the end.
    Undone,
    /// One client message id is stored as several messages.
    StoredTwice,
    /// Two answers to the same client message id name different messages, or both say that they were the first.
    RepeatDiffers,
    /// A stream told the same event again.
    ToldTwice,
    /// Two people have two conversations, or two conversations have one name.
    ConversationTwice,
    /// A message is at another place than it was said to be.
    Moved,
    /// Something is before what was over when it began.
    AgainstTime,
    /// The order within a conversation and that of revisions disagree.
    AgainstRevisions,
    /// A page or a stream is out of order.
    ToldOutOfOrder,
    /// The service's clock ran backwards.
    ClockBackwards,
    /// A message that nobody sent.
    NeverSent,
    /// A message of which every attempt was refused.
    RefusedButStored,
    /// A message with another body, sender, recipient or time than it has.
    Changed,
    /// A message or a deletion was shown before anybody asked for it.
    BeforeItsTime,
    /// A deletion that nobody asked for, or a watermark beyond what anybody asked for.
    ByNobody,
    /// What was shown is not the state of any revision.
    NeverWas,
    /// A linearizable read of a state that is older than what was known when it began.
    Stale,
    /// A read of a state before the revision that was asked for.
    BelowRevision,
    /// A read lacks what belongs to the revision that it names.
    Incomplete,
    /// A stream left something out.
    Gap,
}

impl Kind {
    /// Its name in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Undone => "undone",
            Self::StoredTwice => "stored_twice",
            Self::RepeatDiffers => "repeat_differs",
            Self::ToldTwice => "told_twice",
            Self::ConversationTwice => "conversation_twice",
            Self::Moved => "moved",
            Self::AgainstTime => "against_time",
            Self::AgainstRevisions => "against_revisions",
            Self::ToldOutOfOrder => "told_out_of_order",
            Self::ClockBackwards => "clock_backwards",
            Self::NeverSent => "never_sent",
            Self::RefusedButStored => "refused_but_stored",
            Self::Changed => "changed",
            Self::BeforeItsTime => "before_its_time",
            Self::ByNobody => "by_nobody",
            Self::NeverWas => "never_was",
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

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// [`Kind::Lost`], [`Kind::Undone`]: messages, deletions and watermarks.
    pub lost: u64,
    /// [`Kind::StoredTwice`], [`Kind::RepeatDiffers`], [`Kind::ToldTwice`], [`Kind::ConversationTwice`].
    pub duplicated: u64,
    /// [`Kind::Moved`], [`Kind::AgainstTime`], [`Kind::AgainstRevisions`], [`Kind::ToldOutOfOrder`],
    /// [`Kind::ClockBackwards`].
    pub reordered: u64,
    /// [`Kind::NeverSent`], [`Kind::RefusedButStored`], [`Kind::Changed`], [`Kind::BeforeItsTime`], [`Kind::ByNobody`],
    /// [`Kind::NeverWas`].
    pub phantom: u64,
    /// [`Kind::Stale`], [`Kind::BelowRevision`], [`Kind::Incomplete`].
    pub stale_reads: u64,
    /// [`Kind::Gap`]: events that a stream left out.
    pub resume_gaps: u64,
    /// Messages whose sender was never told what came of them. They may be stored once, or not.
    pub unknown: u64,
    /// The longest time in which sends were under way and none was acknowledged, in microseconds. A send is under way
    /// from its invocation to its completion, whatever it came to; the time runs from the acknowledgement before, or
    /// from the first invocation after it when nothing was under way then, to the next acknowledgement, or to the end of
    /// the load.
    pub longest_outage_us: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Events that streams told.
    pub events: u64,
    /// Nodes of which every conversation was read back at the end, for every account.
    pub nodes_read_back: u64,
    /// Streams that were not read up to the newest message that was acknowledged.
    pub streams_behind: u64,
    /// What was found, by kind.
    pub violations: Vec<Violation>,
}

/// What was found of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub kind: Kind,
    /// How often.
    pub count: u64,
    /// The first of them, in words.
    pub example: String,
}

impl Report {
    /// Why this run proves nothing, if so: nothing was acknowledged, nothing was read back, or a stream stood still.
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

    /// What was found of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.violations.iter().find(|violation| violation.kind == kind).map_or(0, |violation| violation.count)
    }

    fn judge(&mut self, found: Findings) {
        for (kind, (count, example)) in found.found {
            let counter = match kind {
                Kind::Lost | Kind::Undone => &mut self.lost,
                Kind::StoredTwice | Kind::RepeatDiffers | Kind::ToldTwice | Kind::ConversationTwice => {
                    &mut self.duplicated
                }
                Kind::Moved
                | Kind::AgainstTime
                | Kind::AgainstRevisions
                | Kind::ToldOutOfOrder
                | Kind::ClockBackwards => &mut self.reordered,
                Kind::NeverSent
                | Kind::RefusedButStored
                | Kind::Changed
                | Kind::BeforeItsTime
                | Kind::ByNobody
                | Kind::NeverWas => &mut self.phantom,
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
    flags.settle(history, &mut found);
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

/// What was found so far.
#[derive(Default)]
struct Findings {
    found: BTreeMap<Kind, (u64, String)>,
    /// So that each thing counts once, however many operations show it.
    known: HashSet<(Kind, u64, u64)>,
}

impl Findings {
    /// Something is wrong with the thing that `key` names.
    fn add(&mut self, kind: Kind, key: (u64, u64), example: impl FnOnce() -> String) {
        if self.known.insert((kind, key.0, key.1)) {
            self.found.entry(kind).or_insert_with(|| (0, example())).0 += 1;
        }
    }

    fn has(&self, kind: Kind, key: (u64, u64)) -> bool {
        self.known.contains(&(kind, key.0, key.1))
    }
}

/// Two accounts of a conversation, the lower one first; twice the same for notes.
type Pair = (u16, u16);

fn pair(one: u16, other: u16) -> Pair {
    (one.min(other), one.max(other))
}

/// A number for a pair, to count by.
fn pair_key(pair: Pair) -> u64 {
    u64::from(pair.0) << 16 | u64::from(pair.1)
}

/// An operation in words: who, what, where, when.
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
