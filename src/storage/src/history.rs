//! Links between the messages of a conversation.
//!
//! There is no index by conversation. With one, each conversation would have a page of its own, which every send to it
//! changes. Instead each message refers to its predecessor and to one message further back: the one whose seq is its
//! own without the lowest set bit (13 = 1101 refers to 12 = 1100, which refers to 8 = 1000). New messages thus only
//! append to the table. Any message is found from the newest one with O(log^2 n) lookups by key, a few dozen in
//! practice. The idea is that of skip lists whose links follow from the position, as in Bitcoin's block index.
//!
//! Invariants: seqs are 1, 2, 3 ... without gaps, and revisions increase with them. The first message has no
//! predecessor.

use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, Row};

use super::db::Int;
use super::error::{Context, StorageError};
use chat::{AccountId, ClientId, ConversationId, Revision, Seq, TimeMs};

/// The position of a message, and its links.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub revision: Revision,
    pub conversation: ConversationId,
    pub seq: Seq,
    pub sender: AccountId,
    pub deleted: bool,
    /// Number of messages that the sender has sent in the conversation, including this one.
    pub sent: u64,
    /// The previous message; 0 if none.
    pub previous: Revision,
    /// The message with the seq [`jump_seq`]; 0 if none.
    pub jump: Revision,
}

/// The content of a message.
#[derive(Debug)]
pub(super) struct Content {
    pub body: String,
    pub time: TimeMs,
    pub client_id: ClientId,
}

/// The columns of a [`Link`], and those of a [`Content`] after them.
macro_rules! link {
    () => {
        "conversation_id, seq, sender_id, deleted, sent, previous, jump"
    };
}
macro_rules! content {
    () => {
        "body, time_ms, client_id"
    };
}

/// The seq that the message with `seq` jumps to; 0 if none.
pub(super) fn jump_seq(seq: Seq) -> Seq {
    Seq(seq.0 & seq.0.saturating_sub(1))
}

/// The message with a revision, if there is one.
pub(super) fn look_up(conn: &Connection, revision: Revision) -> Result<Option<Link>, StorageError> {
    let sql = concat!("SELECT ", link!(), " FROM message WHERE revision = ?1");
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([revision], |row| link_of(row, revision)).optional())
        .context("look for a message")
}

/// The content of a message.
pub(super) fn content(conn: &Connection, message: &Link) -> Result<Content, StorageError> {
    let sql = concat!("SELECT ", content!(), " FROM message WHERE revision = ?1");
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([message.revision], |row| content_of(row, 0)))
        .context("read a message")
}

fn link_of(row: &Row<'_>, revision: Revision) -> rusqlite::Result<Link> {
    Ok(Link {
        revision,
        conversation: row.get(0)?,
        seq: row.get(1)?,
        sender: row.get(2)?,
        deleted: row.get(3)?,
        sent: row.get::<_, Int>(4)?.0,
        previous: row.get(5)?,
        jump: row.get(6)?,
    })
}

fn content_of(row: &Row<'_>, from: usize) -> rusqlite::Result<Content> {
    Ok(Content { body: row.get(from)?, time: row.get(from + 1)?, client_id: row.get(from + 2)? })
}

/// The message that a link, or a conversation, refers to.
pub(super) fn link(conn: &Connection, revision: Revision) -> Result<Link, StorageError> {
    look_up(conn, revision)?.ok_or_else(|| missing(revision))
}

fn missing(revision: Revision) -> StorageError {
    StorageError::Corrupt(format!("message {revision} is referred to and missing"))
}

/// The message with a seq from 1 to that of `newest`, a message of the conversation.
pub(super) fn find(conn: &Connection, newest: Revision, seq: Seq) -> Result<Link, StorageError> {
    find_before(conn, link(conn, newest)?, seq)
}

/// The message with a seq from 1 to that of `later`, a message of the conversation.
pub(super) fn find_before(conn: &Connection, later: Link, seq: Seq) -> Result<Link, StorageError> {
    let newest = later.revision;
    let found = descend(conn, later, |_, at| at >= seq)?;
    if found.seq != seq {
        // The conversation claims to have more messages than exist.
        return Err(StorageError::Corrupt(format!("message {seq} before {newest} is missing: found {}", found.seq)));
    }
    Ok(found)
}

/// The message before another one, with its content.
pub(super) fn previous(conn: &Connection, from: &Link) -> Result<(Link, Content), StorageError> {
    let sql = concat!("SELECT ", link!(), ", ", content!(), " FROM message WHERE revision = ?1");
    let read = |row: &Row<'_>| Ok((link_of(row, from.previous)?, content_of(row, 7)?));
    let (link, content) = conn
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([from.previous], read).optional())
        .context("read a message")?
        .ok_or_else(|| missing(from.previous))?;
    let link = checked(from, link)?;
    if link.seq.0 + 1 != from.seq.0 {
        return Err(StorageError::Corrupt(format!("the message before {} is missing: found {}", from.seq, link.seq)));
    }
    Ok((link, content))
}

/// The first message of a conversation after a revision. `newest`, its newest message, is after it.
pub(super) fn first_after(conn: &Connection, newest: Revision, after: Revision) -> Result<Link, StorageError> {
    descend(conn, link(conn, newest)?, |revision, _| revision > after)
}

/// The first message for which `in_reach` holds. It holds for `link` and for all messages after the first one, and for
/// none before it.
fn descend(conn: &Connection, mut link: Link, in_reach: impl Fn(Revision, Seq) -> bool) -> Result<Link, StorageError> {
    loop {
        let next = if jump_seq(link.seq) > Seq(0) && in_reach(link.jump, jump_seq(link.seq)) {
            link.jump
        } else if link.seq > Seq(1) && in_reach(link.previous, Seq(link.seq.0 - 1)) {
            link.previous
        } else {
            return Ok(link);
        };
        link = follow(conn, &link, next)?;
    }
}

/// The message to which `from` refers.
fn follow(conn: &Connection, from: &Link, to: Revision) -> Result<Link, StorageError> {
    checked(from, link(conn, to)?)
}

/// The message to which `from` refers has to be older and of the same conversation, so that a damaged file cannot cause
/// a loop.
fn checked(from: &Link, link: Link) -> Result<Link, StorageError> {
    if link.conversation != from.conversation || link.seq >= from.seq || link.revision >= from.revision {
        let problem = format!("message {} names {}, which is not before it", from.revision, link.revision);
        return Err(StorageError::Corrupt(problem));
    }
    Ok(link)
}

/// Visits the messages from `newest` back to the one with the seq `oldest`, which is at least 1, until `visit` breaks.
pub(super) fn walk_back(
    conn: &Connection,
    newest: Link,
    oldest: Seq,
    mut visit: impl FnMut(&Link) -> Result<ControlFlow<()>, StorageError>,
) -> Result<(), StorageError> {
    let mut link = newest;
    while link.seq >= oldest {
        if visit(&link)?.is_break() || link.seq == oldest {
            break;
        }
        link = follow(conn, &link, link.previous)?;
    }
    Ok(())
}

/// The messages that the next one may jump to, oldest first. Each of them, beginning with the newest message, jumps to
/// the one before it.
#[derive(Debug, Default)]
pub(super) struct Jumps(Vec<(Seq, Revision)>);

impl From<Vec<(Seq, Revision)>> for Jumps {
    fn from(oldest_first: Vec<(Seq, Revision)>) -> Self {
        Self(oldest_first)
    }
}

impl Jumps {
    /// Loads them for a conversation, by its newest message (0 if it has none).
    pub(super) fn load(conn: &Connection, newest: Revision) -> Result<Self, StorageError> {
        let mut chain = Vec::new();
        if newest > Revision(0) {
            let mut link = link(conn, newest)?;
            chain.push((link.seq, newest));
            while jump_seq(link.seq) > Seq(0) {
                link = follow(conn, &link, link.jump)?;
                chain.push((link.seq, link.revision));
            }
        }
        chain.reverse();
        Ok(Self(chain))
    }

    /// The message that the next one, with `seq`, jumps to; 0 if none.
    pub(super) fn target(&self, seq: Seq) -> Revision {
        let kept = self.kept(seq);
        kept.checked_sub(1).map_or(Revision(0), |last| self.0[last].1)
    }

    /// The messages, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, Revision)> {
        self.0.iter().copied()
    }

    /// Adds the next message.
    pub(super) fn push(&mut self, seq: Seq, revision: Revision) {
        self.0.truncate(self.kept(seq));
        self.0.push((seq, revision));
    }

    /// Number of messages that stay relevant after the next one, with `seq`.
    fn kept(&self, seq: Seq) -> usize {
        self.0.iter().rposition(|(at, _)| *at <= jump_seq(seq)).map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;

    /// Conversation 1, whose message `n` has the revision `3n`.
    fn conversation(messages: u64) -> Connection {
        let conn = Connection::open_in_memory().expect("open");
        conn.execute_batch(
            "CREATE TABLE message (revision INTEGER PRIMARY KEY, conversation_id, seq, sender_id, deleted, previous, \
             jump, sent, body, time_ms, client_id)",
        )
        .expect("create");
        let mut jumps = Jumps::default();
        for seq in 1..=messages {
            let revision = Revision(seq * 3);
            if seq % 7 == 0 {
                // As after a restart.
                jumps = Jumps::load(&conn, Revision(revision.0 - 3)).expect("load");
            }
            let jump = jumps.target(Seq(seq));
            jumps.push(Seq(seq), revision);
            conn.execute(
                "INSERT INTO message VALUES (?1, 1, ?2, 1, 0, ?3, ?4, ?2, 'message ' || ?2, 1000 + ?2, zeroblob(16))",
                params![revision, Seq(seq), Revision(revision.0 - 3), jump],
            )
            .expect("insert");
        }
        conn
    }

    #[test]
    fn every_message_jumps_to_the_seq_without_its_lowest_bit() {
        let conn = conversation(300);
        for seq in 1..=300 {
            let found = link(&conn, Revision(seq * 3)).expect("there");
            assert_eq!(found.jump, Revision(jump_seq(Seq(seq)).0 * 3));
        }
    }

    #[test]
    fn every_message_is_found_from_every_later_one() {
        let conn = conversation(130);
        for newest in 1..=130 {
            for seq in 1..=newest {
                let found = find(&conn, Revision(newest * 3), Seq(seq)).expect("found");
                assert_eq!((found.seq, found.revision), (Seq(seq), Revision(seq * 3)));
                // Revisions between two messages belong to the later one.
                for after in seq * 3 - 3..seq * 3 {
                    assert_eq!(first_after(&conn, Revision(newest * 3), Revision(after)).expect("found").seq, Seq(seq));
                }
            }
        }
    }

    #[test]
    fn the_message_before_comes_with_its_content() {
        let conn = conversation(20);
        let mut later = link(&conn, Revision(60)).expect("there");
        for seq in (1..20).rev() {
            let (found, content) = previous(&conn, &later).expect("found");
            assert_eq!((found.seq, found.revision), (Seq(seq), Revision(seq * 3)));
            assert_eq!((content.body.as_str(), content.time), (&*format!("message {seq}"), TimeMs(1000 + seq)));
            later = found;
        }
        assert!(previous(&conn, &later).expect_err("the first").is_corruption());
        conn.execute("UPDATE message SET previous = 27 WHERE seq = 11", []).expect("update");
        let later = link(&conn, Revision(33)).expect("there");
        let error = previous(&conn, &later).expect_err("one is left out");
        assert!(error.is_corruption() && error.to_string().contains("before 11"), "{error}");
    }

    #[test]
    fn a_message_far_back_takes_few_lookups() {
        let worst = |messages: u64| {
            let steps = |target: u64| {
                let (mut at, mut steps) = (messages, 0);
                while at != target {
                    at = if jump_seq(Seq(at)).0 >= target { jump_seq(Seq(at)).0 } else { at - 1 };
                    steps += 1;
                }
                steps
            };
            (1..=messages).step_by(97).map(steps).max().expect("some")
        };
        assert!(worst(1_000_000) <= 210, "{} lookups", worst(1_000_000));
    }

    #[test]
    fn damaged_links_are_an_error_and_no_loop() {
        let conn = conversation(8);
        conn.execute("UPDATE message SET previous = revision WHERE seq = 7", []).expect("update");
        let error = find(&conn, Revision(24), Seq(5)).err();
        assert!(error.is_none(), "the way does not lead over the damaged one: {error:?}");
        let newest = link(&conn, Revision(24)).expect("there");
        let error = walk_back(&conn, newest, Seq(1), |_| Ok(ControlFlow::Continue(()))).expect_err("a loop");
        assert!(error.is_corruption(), "{error}");
        let error = find(&conn, Revision(24), Seq(9)).expect_err("after the newest");
        assert!(error.is_corruption(), "{error}");
        conn.execute("DELETE FROM message WHERE seq = 4", []).expect("delete");
        let error = find(&conn, Revision(24), Seq(3)).expect_err("a hole");
        assert!(error.is_corruption(), "{error}");
    }
}
