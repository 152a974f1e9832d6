//! A minimal model of a service that never fails: its histories are correct by construction.
//!
//! Every operation takes effect at its own moment. The test chooses how long before and after that moment it is invoked
//! and completes, so that operations overlap.

use uuid::Uuid;

use super::super::{Pair, pair};
use crate::history::{
    Action, Deleted, Digest, Event, FORMAT, Freshness, Happening, Header, History, Marked, Marks, Outcome, Page,
    Record, Seen, Stored, Uid,
};

/// Time between two moments, in microseconds.
const STEP: u64 = 100;

pub(super) struct Message {
    pub id: u64,
    pub pair: Pair,
    pub seq: u64,
    pub sender: u16,
    pub to: u16,
    pub uid: Uid,
    pub deleted: Option<u64>,
    pub hidden: Vec<(u16, u64)>,
}

pub(super) struct Model {
    pub revision: u64,
    pub now: u64,
    /// Time from the invocation to the moment, and from there to the completion.
    pub around: (u64, u64),
    pub messages: Vec<Message>,
    marks: Vec<(u64, Pair, u16, Marks)>,
    deletions: Vec<(u64, Pair, u64, Option<u16>)>,
    pub records: Vec<Record>,
    accounts: u16,
    ids: u128,
}

impl Model {
    pub(super) fn new(accounts: u16) -> Self {
        Self {
            revision: 10,
            now: 1_000_000,
            around: (20, 20),
            messages: Vec::new(),
            marks: Vec::new(),
            deletions: Vec::new(),
            records: Vec::new(),
            accounts,
            ids: 0,
        }
    }

    pub(super) fn history(&self) -> History {
        let header = Header {
            format: FORMAT,
            accounts: (0..self.accounts).map(|account| format!("p{account}")).collect(),
            nodes: vec!["n1".into(), "n2".into()],
            load_ended_us: self.now,
            ..Header::default()
        };
        let mut records = self.records.clone();
        records.sort_by_key(|record| record.ended_us);
        History { header, records }
    }

    /// Records an operation at the next moment.
    pub(super) fn record(&mut self, account: u16, node: u16, action: Action) -> usize {
        self.now += STEP;
        let (before, after) = self.around;
        let (began_us, ended_us) = (self.now - before, self.now + after);
        let client = u32::from(account);
        self.records.push(Record { client, account, node: Some(node), began_us, ended_us, action });
        self.records.len() - 1
    }

    pub(super) fn new_id(&mut self) -> Uid {
        self.ids += 1;
        Uid(Uuid::from_u128(self.ids))
    }

    pub(super) fn body(uid: Uid) -> Digest {
        Digest::of(&uid.to_string())
    }

    /// Stores a message, unless it is stored already.
    pub(super) fn store(&mut self, account: u16, to: u16, uid: Uid) -> Stored {
        let known = self.messages.iter().find(|message| message.uid == uid).map(|message| (message.id, message.seq));
        let pair = pair(account, to);
        let repeated = known.is_some();
        let (message, seq) = known.unwrap_or_else(|| {
            self.revision += 1;
            let seq = 1 + self.messages.iter().filter(|message| message.pair == pair).count() as u64;
            let (id, sender, hidden) = (self.revision, account, Vec::new());
            self.messages.push(Message { id, pair, seq, sender, to, uid, deleted: None, hidden });
            (id, seq)
        });
        Stored { message, conversation: self.conversation(pair, u64::MAX), seq, repeated, time_ms: message * 2 }
    }

    pub(super) fn attempt(&mut self, account: u16, to: u16, id: Uid, outcome: Outcome<Stored>) -> usize {
        self.record(account, 0, Action::Send { id, to, body: Self::body(id), outcome })
    }

    /// Sends a message, which is acknowledged. Returns its revision.
    pub(super) fn send(&mut self, account: u16, to: u16) -> u64 {
        let uid = self.new_id();
        let stored = self.store(account, to, uid);
        self.attempt(account, to, uid, Outcome::Ok(stored));
        stored.message
    }

    pub(super) fn delete(&mut self, account: u16, id: u64, for_everyone: bool, answered: bool) -> usize {
        let message = self.messages.iter_mut().find(|message| message.id == id).expect("a message");
        let next = self.revision + 1;
        let done = if for_everyone {
            let may = message.sender == account && message.deleted.is_none();
            if may {
                message.deleted = Some(next);
            }
            may
        } else {
            let may = message.hidden.iter().all(|(who, _)| *who != account);
            if may {
                message.hidden.push((account, next));
            }
            may
        };
        if done {
            self.revision = next;
            let whom = (!for_everyone).then_some(account);
            self.deletions.push((next, message.pair, message.seq, whom));
        }
        let deleted = u32::from(done);
        let answer = Deleted { deleted, ignored: 1 - deleted, revision: self.revision };
        let outcome = if answered { Outcome::Ok(answer) } else { Outcome::Unknown };
        self.record(account, 1, Action::Delete { messages: vec![id], for_everyone, outcome })
    }

    pub(super) fn mark_read(&mut self, account: u16, with: u16, up_to: u64, answered: bool) -> usize {
        let pair = pair(account, with);
        let target = if up_to == 0 { u64::MAX } else { up_to };
        let marks = self.move_marks(pair, account, target, true);
        let answer = Marked { read: marks.read, revision: self.revision };
        let outcome = if answered { Outcome::Ok(answer) } else { Outcome::Unknown };
        self.record(account, 1, Action::MarkRead { with, up_to, outcome })
    }

    pub(super) fn deliver(&mut self, account: u16, with: u16, up_to: u64) -> usize {
        self.move_marks(pair(account, with), account, up_to, false);
        let outcome = Outcome::Ok(self.revision);
        self.record(account, 0, Action::Deliver { with, up_to, outcome })
    }

    fn move_marks(&mut self, pair: Pair, account: u16, target: u64, read: bool) -> Marks {
        let had = self.marks(pair, account, u64::MAX);
        let target = target.min(self.last_seq(pair, u64::MAX));
        let read = if read { had.read.max(target) } else { had.read };
        let marks = Marks { delivered: had.delivered.max(target), read };
        if marks != had {
            self.revision += 1;
            self.marks.push((self.revision, pair, account, marks));
        }
        marks
    }

    fn marks(&self, pair: Pair, account: u16, revision: u64) -> Marks {
        let of = self.marks.iter().rev().find(|(at, of, who, _)| *at <= revision && *of == pair && *who == account);
        of.map_or(Marks::default(), |(_, _, _, marks)| *marks)
    }

    fn last_seq(&self, pair: Pair, revision: u64) -> u64 {
        self.messages.iter().filter(|message| message.pair == pair && message.id <= revision).count() as u64
    }

    fn conversation(&self, pair: Pair, revision: u64) -> u64 {
        let first = self.messages.iter().find(|message| message.pair == pair && message.id <= revision);
        first.map_or(0, |message| message.id)
    }

    fn seen(&self, message: &Message, account: u16, revision: u64) -> Seen {
        Seen {
            message: message.id,
            seq: message.seq,
            sender: Some(message.sender),
            body: message.deleted.is_none_or(|at| at > revision).then(|| Self::body(message.uid)),
            id: (message.sender == account).then_some(message.uid),
            time_ms: message.id * 2,
            status: 0,
        }
    }

    /// Returns the page that an account sees at a revision.
    pub(super) fn page(&self, account: u16, with: u16, before: u64, limit: u32, revision: u64) -> Page {
        let pair = pair(account, with);
        let (own, other) = (self.marks(pair, account, revision), self.marks(pair, with, revision));
        let hidden = |message: &Message| message.hidden.iter().any(|(who, at)| *who == account && *at <= revision);
        let visible: Vec<&Message> = self
            .messages
            .iter()
            .filter(|message| message.pair == pair && message.id <= revision && !hidden(message))
            .collect();
        let unread = visible.iter().filter(|message| {
            message.sender != account && message.seq > own.read && message.deleted.is_none_or(|at| at > revision)
        });
        let page = visible.iter().rev().filter(|message| before == 0 || message.seq < before);
        let status = |message: &Message| match if message.sender == account { other } else { own } {
            _ if account == with => 3,
            marks if message.seq <= marks.read => 3,
            marks if message.seq <= marks.delivered => 2,
            _ => 1,
        };
        let seen = |message: &&Message| Seen { status: status(message), ..self.seen(message, account, revision) };
        Page {
            revision,
            conversation: self.conversation(pair, revision),
            last_seq: self.last_seq(pair, revision),
            total: visible.len() as u64,
            unread: unread.count() as u64,
            has_more: page.clone().count() > limit as usize,
            own,
            other,
            messages: page.take(limit as usize).map(seen).collect(),
        }
    }

    /// Records a read of the state at a revision, current or old.
    pub(super) fn read(&mut self, account: u16, with: u16, freshness: Freshness, revision: u64) -> usize {
        let page = self.page(account, with, 0, 5, revision);
        let outcome = Outcome::Ok(page);
        self.record(account, 0, Action::Read { with, before: 0, limit: 5, freshness, last: false, outcome })
    }

    /// Returns the events of an account's stream between two revisions.
    pub(super) fn events(&self, account: u16, after: u64, cursor: u64) -> Vec<Happening> {
        let mut events = Vec::new();
        let mut deliver = |revision: u64, pair: Pair, event: Event| {
            if after < revision && revision <= cursor && [pair.0, pair.1].contains(&account) {
                events.push(Happening { revision, conversation: self.conversation(pair, u64::MAX), event });
            }
        };
        for message in &self.messages {
            deliver(message.id, message.pair, Event::Message(self.seen(message, account, cursor)));
        }
        for (revision, pair, member, marks) in &self.marks {
            deliver(*revision, *pair, Event::Receipt { member: Some(*member), marks: *marks });
        }
        for (revision, pair, seq, whom) in &self.deletions {
            if whom.is_none_or(|whom| whom == account) {
                deliver(*revision, *pair, Event::Deletion { seqs: vec![*seq], for_everyone: whom.is_none() });
            }
        }
        events.sort_by_key(|event| event.revision);
        events
    }

    pub(super) fn subscribe(&mut self, account: u16, after: u64, cursor: u64) -> usize {
        let events = self.events(account, after, cursor);
        self.record(account, 1, Action::Subscribe { stream: 0, after, events, cursor })
    }

    /// Reads everything back from both nodes in small pages, and reads each account's stream to the end.
    pub(super) fn finish(&mut self, cursors: &[u64]) {
        for (account, after) in (0..).zip(cursors) {
            self.subscribe(account, *after, self.revision);
        }
        let accounts = self.accounts;
        for (node, account) in (0..2).flat_map(|node| (0..accounts).map(move |account| (node, account))) {
            for with in 0..accounts {
                let (mut before, limit) = (0, 4);
                loop {
                    let page = self.page(account, with, before, limit, self.revision);
                    let next = page.has_more.then(|| page.messages.last().map_or(0, |seen| seen.seq));
                    let (freshness, outcome) = (Freshness::Linearizable, Outcome::Ok(page));
                    self.record(account, node, Action::Read { with, before, limit, freshness, last: true, outcome });
                    match next {
                        Some(oldest) => before = oldest,
                        None => break,
                    }
                }
            }
        }
    }
}
