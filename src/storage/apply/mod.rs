//! The state machine: what each command does to the rows of `chat.db`.
//!
//! [`StateMachine::apply`] runs all the entries it is given in one transaction, so that the cost of a commit is shared,
//! and commits with them the id of the last entry, the membership, the revision and the clock. Invariants:
//!
//! - Deterministic: nothing but the state and the entries decides. Lists that end up in rows, revisions or events are
//!   in an order of their own, never in that of a hash table.
//! - Every change has its own revision, and at most one event; rejections and repeats change no revision.
//! - A failed call leaves no trace: the transaction is rolled back and the caches are emptied.
//! - No command can make SQLite report a broken constraint: that would stop every node at the same entry, for ever.
//!
//! Split by subject: `accounts` (accounts and sessions), `messages` (sends), `marks` (receipts and deletions),
//! `cache` (what is kept in memory between calls).

mod accounts;
mod cache;
mod marks;
mod messages;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use self::cache::{Caches, Conversation};
use super::codec;
use super::db::{self, Int};
use super::error::{Context, StorageError};
use super::{schema, snapshot};
use crate::chat::{
    AccountId, Command, ConversationId, Event, EventKind, Member, Outcome, Rejection, Revision, SessionId, TimeMs,
};
use crate::proto::log::v1 as pb;

/// What the state holds beside the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedState {
    /// The last entry that was applied.
    pub log_id: Option<pb::LogId>,
    /// The membership of the last entry that had one.
    pub membership: pb::StoredMembership,
    /// The last revision given away.
    pub revision: Revision,
    /// The replicated clock.
    pub clock: TimeMs,
}

/// An entry of the log, committed by a majority.
#[derive(Debug, Clone)]
pub struct AppliedEntry {
    /// Its id.
    pub log_id: pb::LogId,
    /// Its content.
    pub payload: AppliedPayload,
}

/// The content of an [`AppliedEntry`].
#[derive(Debug, Clone)]
pub enum AppliedPayload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded `log.v1.Batch`.
    Batch(Bytes),
    /// Who belongs to the cluster.
    Membership(pb::Membership),
}

/// What a call of [`StateMachine::apply`] came to.
#[derive(Debug)]
pub struct Applied {
    /// For each entry, for each of its proposals. Empty for entries that hold none.
    pub outcomes: Vec<Vec<Outcome>>,
    /// What happened, in the order of revisions.
    pub events: Vec<Arc<Event>>,
    /// Sessions that ended: their subscriptions have to be cut.
    pub closed_sessions: Vec<SessionId>,
    /// The revision afterwards.
    pub revision: Revision,
    /// The clock afterwards.
    pub clock: TimeMs,
}

/// The single writer of `chat.db`.
pub struct StateMachine {
    pub(super) dir: PathBuf,
    /// `None` only after the installation of a snapshot failed half-way.
    pub(super) conn: Option<Connection>,
    pub(super) applied: AppliedState,
    caches: Caches,
}

impl StateMachine {
    /// Opens `<dir>/chat.db` and makes what is missing. Finishes or removes what an interrupted snapshot left behind.
    /// A damaged file, one of another program or of a later version is an error.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        snapshot::prepare_directory(dir)?;
        let (conn, applied) = open_database(dir)?;
        Ok(Self { dir: dir.to_owned(), conn: Some(conn), applied, caches: Caches::default() })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// What was applied so far. Kept in memory.
    pub fn applied(&self) -> &AppliedState {
        &self.applied
    }

    /// Applies entries, all or none. After an error the state is as it was, and the same entries may be tried again.
    pub fn apply(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let result = self.apply_all(entries);
        match result {
            Ok(_) => self.caches.trim(),
            Err(_) => self.caches.clear(),
        }
        result
    }

    fn apply_all(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let conn = self.conn.as_mut().ok_or(StorageError::Closed)?;
        let transaction =
            conn.transaction_with_behavior(TransactionBehavior::Immediate).context("begin to apply entries")?;
        let mut state = self.applied.clone();
        let mut applier = Applier {
            conn: &transaction,
            caches: &mut self.caches,
            revision: state.revision,
            clock: state.clock,
            events: Vec::new(),
            closed_sessions: Vec::new(),
            dirty: Vec::new(),
        };
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(applied) = state.log_id.filter(|applied| applied.index >= entry.log_id.index) {
                return Err(StorageError::OutOfOrder { found: entry.log_id.index, applied: applied.index });
            }
            outcomes.push(match entry.payload {
                AppliedPayload::Blank => Vec::new(),
                AppliedPayload::Batch(bytes) => applier.batch(bytes)?,
                AppliedPayload::Membership(membership) => {
                    state.membership =
                        pb::StoredMembership { log_id: Some(entry.log_id), membership: Some(membership) };
                    Vec::new()
                }
            });
            state.log_id = Some(entry.log_id);
        }
        applier.flush()?;
        let Applier { revision, clock, events, closed_sessions, .. } = applier;
        (state.revision, state.clock) = (revision, clock);
        write_state(&transaction, &state)?;
        transaction.commit().context("commit applied entries")?;
        self.applied = state;
        Ok(Applied { outcomes, events, closed_sessions, revision, clock })
    }

    /// Opens the database again after its file was replaced.
    pub(super) fn reopen(&mut self) -> Result<(), StorageError> {
        self.caches.clear();
        let (conn, applied) = open_database(&self.dir)?;
        self.conn = Some(conn);
        self.applied = applied;
        Ok(())
    }
}

fn open_database(dir: &Path) -> Result<(Connection, AppliedState), StorageError> {
    let path = db::database_path(dir);
    let mut conn = db::open_writer(&path)?;
    schema::create_or_check(&mut conn, &path)?;
    db::use_wal(&conn)?;
    db::sync_directory(dir)?;
    let applied = read_state(&conn)?;
    Ok((conn, applied))
}

/// Reads the row of `state`.
pub(super) fn read_state(conn: &Connection) -> Result<AppliedState, StorageError> {
    let sql = "SELECT applied_term, applied_node, applied_index, membership, revision, clock_ms FROM state";
    let row = conn
        .query_row(sql, [], |row| {
            let id: (Option<Int>, Option<Int>, Option<Int>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((id, row.get::<_, Vec<u8>>(3)?, row.get(4)?, row.get(5)?))
        })
        .optional()
        .context("read what was applied")?;
    let (id, membership, revision, clock) =
        row.ok_or_else(|| StorageError::Corrupt("the row of the state is missing".into()))?;
    let log_id = match id {
        (Some(term), Some(node), Some(index)) => Some(pb::LogId { term: term.0, node_id: node.0, index: index.0 }),
        (None, None, None) => None,
        _ => return Err(StorageError::Corrupt("the applied log id is incomplete".into())),
    };
    let membership = pb::StoredMembership::decode(membership.as_slice())
        .map_err(|error| StorageError::Corrupt(format!("the membership cannot be decoded: {error}")))?;
    Ok(AppliedState { log_id, membership, revision, clock })
}

fn write_state(conn: &Connection, state: &AppliedState) -> Result<(), StorageError> {
    let sql = "UPDATE state SET applied_term = ?1, applied_node = ?2, applied_index = ?3, membership = ?4, \
               revision = ?5, clock_ms = ?6";
    let id = state.log_id;
    let changed = conn
        .prepare_cached(sql)
        .and_then(|mut statement| {
            statement.execute(params![
                id.map(|id| Int(id.term)),
                id.map(|id| Int(id.node_id)),
                id.map(|id| Int(id.index)),
                state.membership.encode_to_vec(),
                state.revision,
                state.clock,
            ])
        })
        .context("write what was applied")?;
    match changed {
        1 => Ok(()),
        _ => Err(StorageError::Corrupt("the row of the state is missing".into())),
    }
}

/// One call of `apply`: the open transaction and what it has come to so far.
struct Applier<'a> {
    conn: &'a Connection,
    caches: &'a mut Caches,
    revision: Revision,
    clock: TimeMs,
    events: Vec<Arc<Event>>,
    closed_sessions: Vec<SessionId>,
    /// Conversations whose row, or whose members' rows, are newer in the cache than in the database.
    dirty: Vec<ConversationId>,
}

impl Applier<'_> {
    fn batch(&mut self, bytes: Bytes) -> Result<Vec<Outcome>, StorageError> {
        let batch = pb::Batch::decode(bytes)
            .map_err(|error| StorageError::UnknownCommand(format!("the batch cannot be decoded: {error}")))?;
        batch.proposals.into_iter().map(|proposal| self.proposal(proposal)).collect()
    }

    fn proposal(&mut self, proposal: pb::Proposal) -> Result<Outcome, StorageError> {
        let command =
            proposal.command.ok_or_else(|| StorageError::UnknownCommand("a proposal without a command".into()))?;
        let command =
            codec::decode_command(command).map_err(|error| StorageError::UnknownCommand(error.to_string()))?;
        // A new leader's clock may be behind the last one's: time stands still then. What SQLite cannot hold is cut.
        self.clock = self.clock.max(TimeMs(proposal.time_ms.min(i64::MAX.unsigned_abs())));
        match command {
            Command::CreateAccount { username, password_hash, request_id } => {
                self.create_account(username, &password_hash, request_id)
            }
            Command::OpenSession { account, token_hash, lifetime_ms } => {
                self.open_session(account, &token_hash, lifetime_ms)
            }
            Command::CloseSession { session, all } => self.close_session(session, all),
            Command::DeleteAccount { session } => self.delete_account(session),
            Command::SendMessage { session, to, client_id, body } => self.send_message(session, &to, client_id, &body),
            Command::Receipts(items) => self.receipts(&items),
            Command::DeleteMessages { session, messages, for_everyone } => {
                self.delete_messages(session, &messages, for_everyone)
            }
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn event(&mut self, revision: Revision, conversation: ConversationId, members: Arc<[Member]>, kind: EventKind) {
        self.events.push(Arc::new(Event { revision, time: self.clock, conversation, members, kind }));
    }

    /// The account of a valid session.
    fn caller(&mut self, id: SessionId) -> Result<Result<AccountId, Rejection>, StorageError> {
        let session = self.caches.session(self.conn, id)?;
        Ok(match session {
            None => Err(Rejection::SessionUnknown),
            Some(session) if session.expires <= self.clock => Err(Rejection::SessionExpired),
            Some(session) => Ok(session.account),
        })
    }

    /// A conversation whose row is about to change: it is written when the call ends.
    fn change(&mut self, id: ConversationId) -> Result<&mut Conversation, StorageError> {
        let conversation = self
            .caches
            .conversation(self.conn, id)?
            .ok_or_else(|| StorageError::Corrupt(format!("conversation {id} is referred to and missing")))?;
        if !conversation.dirty {
            conversation.dirty = true;
            self.dirty.push(id);
        }
        Ok(conversation)
    }

    /// Writes what the call changed in conversations, once for each however many changes there were.
    fn flush(&mut self) -> Result<(), StorageError> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for id in dirty {
            let conversation = self
                .caches
                .conversation(self.conn, id)?
                .ok_or_else(|| StorageError::Corrupt(format!("conversation {id} is changed and missing")))?;
            conversation.write(self.conn, id)?;
        }
        Ok(())
    }
}

/// Runs a statement, from the connection's cache of prepared ones, and returns the number of rows it changed.
fn execute(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params)
}

#[cfg(test)]
mod tests;
