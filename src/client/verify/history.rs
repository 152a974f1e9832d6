//! What was asked and what came of it: a recorded run, in memory and as a file.
//!
//! A history is a [`Header`] and [`Record`]s, one for each operation: who did it through which node, when it was invoked
//! and when it completed, what was asked and what was answered. Times are microseconds of one monotonic clock since the
//! start of the run, taken before the operation left and after its answer came: of two operations the one whose
//! `ended_us` is before the other's `began_us` was over when the other began, and nothing else is said about their order.
//!
//! Left out: bodies. A [`Digest`] stands for each, so that a long run fits into memory.
//!
//! As a file: UTF-8, one JSON value on each line. The first is the header, each further one a record, in the order of
//! completion. An operation is `{"client":..,"account":..,"node":..,"began_us":..,"ended_us":..,"<kind>":{..}}` with one
//! of the kinds of [`Action`] (`send`, `read`, `mark_read`, `deliver`, `delete`, `subscribe`); its `outcome` is
//! `{"ok":{..}}`, `"refused"` or `"unknown"`. Accounts and nodes are positions in the lists of the header.

use std::{
    fmt,
    io::{self, BufRead, Write},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Version of the file format.
pub const FORMAT: u32 = 1;
/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A recorded run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// What the records refer to.
    pub header: Header,
    /// The operations, in the order of completion.
    pub records: Vec<Record>,
}

/// The first line: what the records refer to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub format: u32,
    /// The seed that the choices of the run came from.
    pub seed: u64,
    /// Clients that sent and read.
    pub clients: u32,
    /// How long they did, in seconds.
    pub seconds: f64,
    /// Names of the accounts.
    pub accounts: Vec<String>,
    /// Addresses of the nodes.
    pub nodes: Vec<String>,
    /// When the last new operation was begun, in microseconds since the start. What follows settles and reads back.
    pub load_ended_us: u64,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Who did it: one operation at a time each.
    pub client: u32,
    /// For which account.
    pub account: u16,
    /// Through which node; absent when the client library chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u16>,
    /// When it was invoked, in microseconds since the start.
    pub began_us: u64,
    /// When it was over, in microseconds since the start.
    pub ended_us: u64,
    /// What was asked and what came of it.
    #[serde(flatten)]
    pub action: Action,
}

/// What was asked and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// One attempt to send a message. Attempts with the same id are attempts for the same message.
    Send {
        /// The client's message id.
        id: Uid,
        /// The recipient's account.
        to: u16,
        /// Stands for the body.
        body: Digest,
        /// What came of it.
        outcome: Outcome<Stored>,
    },
    /// A page of the conversation with somebody was read.
    Read {
        /// The other account; the reader's own for its notes.
        with: u16,
        /// Only messages with a smaller seq; 0: all.
        before: u64,
        /// At most so many.
        limit: u32,
        /// How fresh it had to be.
        freshness: Freshness,
        /// It is a part of the reading back at the end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
        /// What came of it.
        outcome: Outcome<Page>,
    },
    /// A conversation was marked read.
    MarkRead {
        /// With whom.
        with: u16,
        /// Up to this seq; 0: all that is there.
        up_to: u64,
        /// What came of it.
        outcome: Outcome<Marked>,
    },
    /// Messages were acknowledged as delivered.
    Deliver {
        /// With whom.
        with: u16,
        /// Up to this seq.
        up_to: u64,
        /// The answer's revision.
        outcome: Outcome<u64>,
    },
    /// Messages of one conversation were deleted.
    Delete {
        /// Their ids.
        messages: Vec<u64>,
        /// For everyone, or for the account alone.
        for_everyone: bool,
        /// What came of it.
        outcome: Outcome<Deleted>,
    },
    /// One connection of an event stream, until it was cut.
    Subscribe {
        /// Connections with the same number (of the same account) are one stream, each resumed where the one before was.
        stream: u32,
        /// Events after this revision were asked for.
        after: u64,
        /// What came, in the order in which it came.
        events: Vec<Happening>,
        /// Everything up to this revision has been sent, the node said.
        cursor: u64,
    },
}

/// What an operation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// The service did it, and answered.
    Ok(T),
    /// The service, or the way to it, said that nothing was applied and nothing will be.
    Refused,
    /// It may have been applied, or may yet be.
    Unknown,
}

impl<T> Outcome<T> {
    /// The answer.
    pub fn ok(&self) -> Option<&T> {
        if let Self::Ok(answer) = self { Some(answer) } else { None }
    }
}

/// How fresh a read had to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Everything acknowledged before it began.
    Linearizable,
    /// At least this revision.
    AtLeast(u64),
    /// Whatever the node had.
    Local,
}

/// Where a message was stored, as its sender was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its id: the revision that stored it.
    pub message: u64,
    /// The service's name for its conversation.
    pub conversation: u64,
    /// Its place there.
    pub seq: u64,
    /// The service said that it had been stored before.
    pub repeated: bool,
    /// When, by the service's clock, in milliseconds since the epoch.
    pub time_ms: u64,
}

/// A page that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Revision of the state that answered.
    pub revision: u64,
    /// The service's name for the conversation; 0: there is none yet.
    pub conversation: u64,
    /// Newest seq.
    pub last_seq: u64,
    /// Messages that the reader can see, on all pages.
    pub total: u64,
    /// Messages that the reader has not read.
    pub unread: u64,
    /// There are older messages.
    pub has_more: bool,
    /// How far the reader has come.
    pub own: Marks,
    /// How far the other has come; the reader's own again in its notes.
    pub other: Marks,
    /// Newest first.
    pub messages: Vec<Seen>,
}

/// A member's watermarks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Received up to here.
    pub delivered: u64,
    /// Read up to here.
    pub read: u64,
}

/// A message as somebody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its id.
    pub message: u64,
    /// Its place.
    pub seq: u64,
    /// The sender's account; absent when it is none of the run's.
    pub sender: Option<u16>,
    /// Stands for the body; absent for a tombstone.
    pub body: Option<Digest>,
    /// The client's message id, which only the sender is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uid>,
    /// When it was stored, by the service's clock, in milliseconds since the epoch.
    pub time_ms: u64,
    /// 1 sent, 2 delivered, 3 read; 0 in events, where it is not told.
    #[serde(default)]
    pub status: u8,
}

/// The answer to marking read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Read up to here.
    pub read: u64,
    /// At this revision.
    pub revision: u64,
}

/// The answer to deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Deleted by this call.
    pub deleted: u32,
    /// Not the caller's to delete, or deleted before.
    pub ignored: u32,
    /// Revision of the state afterwards.
    pub revision: u64,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// Its place in the order of all changes.
    pub revision: u64,
    /// The service's name for the conversation.
    pub conversation: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A message was stored.
    Message(Seen),
    /// A member received or read more.
    Receipt {
        /// Whose account; absent when it is none of the run's.
        member: Option<u16>,
        /// How far.
        marks: Marks,
    },
    /// Messages were deleted.
    Deletion {
        /// Which.
        seqs: Vec<u64>,
        /// For everyone, or for the subscriber alone.
        for_everyone: bool,
    },
}

/// Stands for a body: the first 64 bits of its SHA-256. In the file as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub u64);

impl Digest {
    /// The digest of a body.
    pub fn of(body: &str) -> Self {
        let hash = Sha256::digest(body.as_bytes());
        Self(hash.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(de::Error::custom)
    }
}

/// A client's message id. In the file as a UUID in its usual form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub Uuid);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Uuid::try_parse(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Record {
    /// The newest revision that its answer names: what had been assigned when it was over.
    pub fn revision(&self) -> Option<u64> {
        match &self.action {
            Action::Send { outcome, .. } => outcome.ok().map(|stored| stored.message),
            Action::Read { outcome, .. } => outcome.ok().map(|page| page.revision),
            Action::MarkRead { outcome, .. } => outcome.ok().map(|marked| marked.revision),
            Action::Deliver { outcome, .. } => outcome.ok().copied(),
            Action::Delete { outcome, .. } => outcome.ok().map(|deleted| deleted.revision),
            Action::Subscribe { events, cursor, .. } => {
                events.iter().map(|event| event.revision).max().max(Some(*cursor))
            }
        }
    }
}

impl History {
    /// Writes it, one JSON value per line.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut to, &self.header)?;
        to.write_all(b"\n")?;
        for record in &self.records {
            serde_json::to_writer(&mut to, record)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads what [`History::write`] has written.
    ///
    /// # Errors
    /// Those of `from`; `InvalidData` with the line's number when a line is not what belongs there, refers to an account
    /// or a node that the header does not have, ended before it began, or is too long.
    pub fn read(mut from: impl BufRead) -> io::Result<Self> {
        let bad = |line: usize, why: &dyn fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {why}"))
        };
        let mut text = String::new();
        let mut history: Option<Self> = None;
        for line in 1.. {
            text.clear();
            if io::Read::take(&mut from, LINE_BYTES_MAX).read_line(&mut text)? == 0 {
                break;
            }
            match &mut history {
                None => {
                    let header: Header = serde_json::from_str(&text).map_err(|error| bad(line, &error))?;
                    if header.format != FORMAT {
                        return Err(bad(line, &format_args!("format {} is not {FORMAT}", header.format)));
                    }
                    history = Some(Self { header, records: Vec::new() });
                }
                Some(history) => {
                    let record: Record = serde_json::from_str(&text).map_err(|error| bad(line, &error))?;
                    history.header.check(&record).map_err(|why| bad(line, &why))?;
                    history.records.push(record);
                }
            }
        }
        history.ok_or_else(|| bad(1, &"there is no header"))
    }
}

impl Header {
    fn check(&self, record: &Record) -> Result<(), &'static str> {
        let partner = match &record.action {
            Action::Send { to: with, .. }
            | Action::Read { with, .. }
            | Action::MarkRead { with, .. }
            | Action::Deliver { with, .. } => *with,
            Action::Delete { .. } | Action::Subscribe { .. } => record.account,
        };
        if usize::from(record.account.max(partner)) >= self.accounts.len() {
            return Err("an account that the header does not name");
        }
        if record.node.is_some_and(|node| usize::from(node) >= self.nodes.len()) {
            return Err("a node that the header does not name");
        }
        if record.ended_us < record.began_us { Err("it ended before it began") } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
