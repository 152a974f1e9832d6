//! The record of a run: every operation with its outcome, in memory and as a file.
//!
//! A history is a [`Header`] and one [`Record`] for each operation: the client and the node, the times of invocation
//! and completion, the request and the answer. Times are microseconds since the start of the run, on one monotonic
//! clock, taken before the request is sent and after its answer arrives. If the `ended_us` of one operation is before
//! the `began_us` of another, the first one completed before the second one began. Otherwise their order is unknown.
//!
//! Does not cover: message bodies. A [`Digest`] stands for each, so that a long run fits into memory.
//!
//! File format: UTF-8, one JSON value per line. The first line is the header. Each further line is a record, in the
//! order of completion. An operation is
//! `{"client":..,"account":..,"node":..,"began_us":..,"ended_us":..,"<kind>":{..}}` with one of the kinds of [`Action`]
//! (`send`, `read`, `mark_read`, `deliver`, `delete`, `subscribe`). Its `outcome` is `{"ok":{..}}`, `"refused"` or
//! `"unknown"`. Accounts and nodes are indexes into the lists of the header.

use std::{
    fmt,
    io::{self, BufRead, Write},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Version of the file format.
pub const FORMAT: u32 = 1;
/// Maximum length of a line, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A recorded run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The metadata that the records refer to.
    pub header: Header,
    /// The operations, in the order of completion.
    pub records: Vec<Record>,
}

/// The first line of the file: the metadata that the records refer to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub format: u32,
    /// The seed of the run's random choices.
    pub seed: u64,
    /// Number of clients that sent and read.
    pub clients: u32,
    /// Duration of the load, in seconds.
    pub seconds: f64,
    /// Names of the accounts.
    pub accounts: Vec<String>,
    /// Addresses of the nodes.
    pub nodes: Vec<String>,
    /// End of the load, in microseconds since the start. Later operations resolve outcomes and read back.
    pub load_ended_us: u64,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The client, which has one operation in flight at a time.
    pub client: u32,
    /// The account that the client acted for.
    pub account: u16,
    /// The node that the request was sent to; absent when the client library chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u16>,
    /// Time of invocation, in microseconds since the start.
    pub began_us: u64,
    /// Time of completion, in microseconds since the start.
    pub ended_us: u64,
    /// The request and its outcome.
    #[serde(flatten)]
    pub action: Action,
}

/// A request and its outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// One attempt to send a message. Attempts with the same id are for the same message.
    Send {
        /// The client's message id.
        id: Uid,
        /// The recipient's account.
        to: u16,
        /// The digest of the body.
        body: Digest,
        /// The outcome of the attempt.
        outcome: Outcome<Stored>,
    },
    /// Reading a page of the conversation with another account.
    Read {
        /// The other account; the reader's own for its notes.
        with: u16,
        /// Only messages with a smaller seq were requested; 0: no limit.
        before: u64,
        /// Maximum number of messages.
        limit: u32,
        /// The requested consistency level.
        freshness: Freshness,
        /// Whether the read is part of the final read-back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
        /// The outcome of the read.
        outcome: Outcome<Page>,
    },
    /// Marking a conversation read.
    MarkRead {
        /// The other account of the conversation.
        with: u16,
        /// The seq up to which it was marked; 0: all messages.
        up_to: u64,
        /// The outcome of the request.
        outcome: Outcome<Marked>,
    },
    /// Acknowledging the delivery of messages.
    Deliver {
        /// The other account of the conversation.
        with: u16,
        /// The seq up to which delivery was acknowledged.
        up_to: u64,
        /// The outcome, with the answer's revision.
        outcome: Outcome<u64>,
    },
    /// Deleting messages of one conversation.
    Delete {
        /// The ids of the messages.
        messages: Vec<u64>,
        /// Whether for everyone, or for the account alone.
        for_everyone: bool,
        /// The outcome of the request.
        outcome: Outcome<Deleted>,
    },
    /// One connection of an event stream, up to its end.
    Subscribe {
        /// The number of the stream. Connections of an account with the same number form one stream: each resumes where
        /// the one before ended.
        stream: u32,
        /// The revision after which events were requested.
        after: u64,
        /// The received events, in order of arrival.
        events: Vec<Happening>,
        /// The revision up to which the node has sent everything, by its own account.
        cursor: u64,
    },
}

/// The outcome of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// The service executed the operation, and answered.
    Ok(T),
    /// Nothing was applied and nothing will be, by the error of the service or the transport.
    Refused,
    /// The operation may have been applied, or may yet be.
    Unknown,
}

impl<T> Outcome<T> {
    /// Returns the answer, if there is one.
    pub fn ok(&self) -> Option<&T> {
        if let Self::Ok(answer) = self { Some(answer) } else { None }
    }
}

/// The requested consistency level of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Everything that was acknowledged before the read began.
    Linearizable,
    /// At least this revision.
    AtLeast(u64),
    /// The local state of the node, however old.
    Local,
}

/// Position of a stored message, from the answer to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The message's id: the revision that stored it.
    pub message: u64,
    /// The service's id of the conversation.
    pub conversation: u64,
    /// The message's position in the conversation.
    pub seq: u64,
    /// Whether the service answered that an earlier attempt had stored it.
    pub repeated: bool,
    /// Time of storage by the service's clock, in milliseconds since the epoch.
    pub time_ms: u64,
}

/// A page of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The revision of the state that the page shows.
    pub revision: u64,
    /// The service's id of the conversation; 0 when it does not exist yet.
    pub conversation: u64,
    /// The newest seq.
    pub last_seq: u64,
    /// Number of messages that the reader can see, on all pages.
    pub total: u64,
    /// Number of unread messages of the reader.
    pub unread: u64,
    /// Whether there are older messages.
    pub has_more: bool,
    /// The reader's watermarks.
    pub own: Marks,
    /// The other account's watermarks; the reader's own again for its notes.
    pub other: Marks,
    /// The messages, newest first.
    pub messages: Vec<Seen>,
}

/// A member's watermarks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The seq up to which messages were delivered.
    pub delivered: u64,
    /// The seq up to which messages were read.
    pub read: u64,
}

/// A message as the service showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The message's id.
    pub message: u64,
    /// The message's position in the conversation.
    pub seq: u64,
    /// The sender's account; absent when it does not belong to the run.
    pub sender: Option<u16>,
    /// The digest of the body; absent for a tombstone.
    pub body: Option<Digest>,
    /// The client's message id, which only the sender gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uid>,
    /// Time of storage by the service's clock, in milliseconds since the epoch.
    pub time_ms: u64,
    /// 1 sent, 2 delivered, 3 read; 0 in events, which have no status.
    #[serde(default)]
    pub status: u8,
}

/// The answer to a request to mark read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// The seq up to which messages are read.
    pub read: u64,
    /// The revision of the answer.
    pub revision: u64,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Number of messages that this call deleted.
    pub deleted: u32,
    /// Number of messages that the caller may not delete, or that were deleted before.
    pub ignored: u32,
    /// Revision of the state after the deletion.
    pub revision: u64,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// Its position in the order of all changes.
    pub revision: u64,
    /// The service's id of the conversation.
    pub conversation: u64,
    /// The kind of change.
    #[serde(flatten)]
    pub event: Event,
}

/// A change in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A message was stored.
    Message(Seen),
    /// A member's watermarks advanced.
    Receipt {
        /// The member's account; absent when it does not belong to the run.
        member: Option<u16>,
        /// The member's watermarks.
        marks: Marks,
    },
    /// Messages were deleted.
    Deletion {
        /// The seqs of the messages.
        seqs: Vec<u64>,
        /// Whether for everyone, or for the subscriber alone.
        for_everyone: bool,
    },
}

/// The first 64 bits of a body's SHA-256, in place of the body. In the file as 16 hex digits.
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
    /// Returns the newest revision that the answer names. It had been assigned when the operation completed.
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
    /// Writes the history, one JSON value per line.
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

    /// Reads a history that [`History::write`] has written.
    ///
    /// # Errors
    /// Those of `from`. `InvalidData` with the line's number when a line is malformed or too long, refers to an account
    /// or a node that the header does not list, or ended before it began.
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
mod tests;
