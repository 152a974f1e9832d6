//! The state machine: the effect of each command on the rows of `chat.db`.
//!
//! [`StateMachine::stage`] applies entries within a transaction that stays open. [`StateMachine::commit`] commits the
//! rows, the id of the last entry, the membership, the revision, the clock and the digest at once. Invariants:
//!
//! - Deterministic: the result depends only on the state and the entries, never on the order of a hash table.
//! - Every change that events or revisions expose has its own revision, and at most one event. Rejections, repeats,
//!   session use, expired rows, join tokens and erasure steps leave the revision unchanged.
//! - A command does a bounded amount of work. The only exception is `DeleteAccount`, which is no longer proposed.
//! - A failure restores the state of the last commit. Entries staged since then have to be applied again.
//! - No command can violate an SQLite constraint: that would stop every node at the same entry permanently.
//!
//! Split by subject: `accounts`, `sessions`, `registration`, `joining` (join tokens), `privacy`, `messages` (sends),
//! `marks` (receipts and deletions), `erasure` (of an account, in bounded steps), `usage` (and quotas), `malformed`
//! (bytes that are not a command), `cache` (rows kept in memory between calls), `file` (creates and opens the file).

mod accounts;
mod cache;
mod erasure;
mod file;
mod joining;
mod malformed;
mod marks;
mod messages;
pub(super) mod privacy;
pub(super) mod registration;
mod sessions;
mod usage;

pub use self::malformed::MalformedCommand;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension, params};

use self::cache::{Caches, Conversation};
use self::usage::Quota;
use super::codec;
use super::db::{self, Checkpoints, Int};
use super::digest::{Chain, Fold};
use super::error::{Context, StorageError};
use super::intake::{self, RawProposal};
use super::{divergence, locks, snapshot};
use crate::chat::{
    AccountCommand, AccountId, Command, ConversationId, DigestReport, Event, EventKind, Member, Outcome, Rejection,
    Revision, SessionId, StateDigest, TimeMs,
};
use crate::failpoints;
use crate::proto::log::v1 as pb;
use crate::trace::TraceContext;

/// The part of the state that is not in the rows of the chat.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedState {
    /// The last applied entry.
    pub log_id: Option<pb::LogId>,
    /// The membership of the last entry that contained one.
    pub membership: pb::StoredMembership,
    /// The last assigned revision.
    pub revision: Revision,
    /// The replicated clock.
    pub clock: TimeMs,
    /// The digest of everything applied.
    pub chain: Chain,
}

/// An entry of the log that a majority has committed.
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
    /// Nothing; the first entry of a new leader.
    Blank,
    /// An encoded `log.v1.Batch`.
    Batch(Bytes),
    /// The membership of the cluster.
    Membership(pb::Membership),
}

/// The result of [`StateMachine::stage`].
#[derive(Debug)]
pub struct Applied {
    /// One list for each entry, with one outcome for each proposal. Empty for entries without proposals.
    pub outcomes: Vec<Vec<Outcome>>,
    /// Events, in the order of their revisions.
    pub events: Vec<Arc<Event>>,
    /// Sessions that ended. Their subscriptions have to be closed.
    pub closed_sessions: Vec<SessionId>,
    /// The revision after the last entry.
    pub revision: Revision,
    /// The clock after the last entry.
    pub clock: TimeMs,
    /// The digest of that revision.
    pub digest: StateDigest,
    /// Digests noted at marks, in the order of the log.
    pub noted: Vec<NotedDigest>,
    /// Digests reported by nodes, in the order of the log.
    pub reported: Vec<DigestReport>,
    /// Number of commands rejected because they are not valid in any version.
    pub malformed: u64,
    /// The first of those, at most eight.
    pub malformed_shown: Vec<MalformedCommand>,
}

/// The digest of the state at a mark in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct NotedDigest {
    /// Log index of the entry with the mark.
    pub mark: u64,
    /// The revision at the mark.
    pub revision: Revision,
    /// The digest of that revision.
    pub digest: StateDigest,
    /// The membership of the cluster at the mark.
    pub membership: pb::Membership,
}

/// The single writer of `chat.db`.
pub struct StateMachine {
    pub(super) dir: PathBuf,
    /// `None` after a failed rollback, or after the installation of a snapshot failed half-way.
    pub(super) conn: Option<Connection>,
    checkpoints: Checkpoints,
    applied: AppliedState,
    /// The state as of the last commit.
    committed: AppliedState,
    caches: Caches,
    /// Conversations whose row, or whose members' rows, are newer in the cache than in the database.
    dirty: Vec<ConversationId>,
    /// Accounts whose usage is newer in the cache than in the database.
    dirty_usage: Vec<AccountId>,
}

impl StateMachine {
    /// Opens `<dir>/chat.db` and creates missing files. Completes or removes the remains of an interrupted snapshot.
    ///
    /// # Errors
    /// The file is damaged, of another program or a later version, or known to differ from the other nodes' state.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        snapshot::prepare_directory(dir)?;
        divergence::refuse(dir)?;
        let (conn, checkpoints, applied) = file::open(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            conn: Some(conn),
            checkpoints,
            committed: applied.clone(),
            applied,
            caches: Caches::default(),
            dirty: Vec::new(),
            dirty_usage: Vec::new(),
        })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The applied state, committed or not. It is kept in memory.
    pub fn applied(&self) -> &AppliedState {
        &self.applied
    }

    /// Applies entries and commits them, all or none.
    ///
    /// # Errors
    /// As for [`Self::stage`] and [`Self::commit`]. The state is then that of the last commit.
    pub fn apply(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let applied = self.stage(entries)?;
        self.commit()?;
        Ok(applied)
    }

    /// Applies entries without committing them. Other connections do not see them before [`StateMachine::commit`]. A
    /// crash discards them, and they are applied again from the log.
    ///
    /// # Errors
    /// An entry does not follow the last one or cannot be applied, or the database failed. The state is then that of
    /// the last commit, without anything staged since.
    pub fn stage(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        let result = self.stage_all(entries);
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    /// Commits the staged entries. Does nothing if there are none.
    ///
    /// # Errors
    /// The database failed. The state is then that of the last commit.
    pub fn commit(&mut self) -> Result<(), StorageError> {
        if !self.is_staged() {
            return Ok(());
        }
        let result = self.write_and_commit();
        match result {
            Ok(()) => {
                self.committed.clone_from(&self.applied);
                self.caches.trim();
            }
            Err(_) => self.roll_back(),
        }
        result
    }

    /// Checkpoints and truncates the write-ahead log. Returns `false` if a reader prevents that.
    pub(super) fn cut_write_ahead_log(&self) -> Result<bool, StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        db::cut_wal(conn).context("cut the write-ahead log of chat.db")
    }

    /// Whether staged entries wait to be committed.
    pub fn is_staged(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| !conn.is_autocommit())
    }

    /// Begins a transaction unless one is open. Waits while another process holds a lock on the database.
    ///
    /// # Errors
    /// [`StorageError::Locked`] after a minute; or the database failed.
    pub(super) fn begin(&self) -> Result<(), StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        if !conn.is_autocommit() {
            return Ok(());
        }
        let begun = execute(conn, "BEGIN IMMEDIATE", []).context("begin to apply entries");
        begun.map(drop).map_err(|error| locks::name_holder(&db::database_path(&self.dir), error))
    }

    /// Like [`Self::begin`], but without waiting. Returns `false` if another process holds a lock on the database.
    pub(super) fn try_begin(&self) -> Result<bool, StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        if !conn.is_autocommit() {
            return Ok(true);
        }
        let wait = |time| conn.busy_timeout(time).context("set the time to wait for a lock");
        wait(Duration::ZERO)?;
        let begun = execute(conn, "BEGIN IMMEDIATE", []).context("begin to apply entries");
        wait(locks::RUNNING_MAX)?;
        match begun {
            Ok(_) => Ok(true),
            Err(error) if error.is_locked() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn stage_all(&mut self, entries: Vec<AppliedEntry>) -> Result<Applied, StorageError> {
        self.begin()?;
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        let mut applier = Applier {
            conn,
            caches: &mut self.caches,
            revision: self.applied.revision,
            clock: self.applied.clock,
            chain: self.applied.chain,
            fold: None,
            trace: None,
            events: Vec::new(),
            closed_sessions: Vec::new(),
            mark: None,
            reported: Vec::new(),
            malformed: 0,
            malformed_shown: Vec::new(),
            dirty: &mut self.dirty,
            dirty_usage: &mut self.dirty_usage,
            quota: Quota::default(),
        };
        let mut noted = Vec::new();
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(last) = self.applied.log_id.filter(|last| entry.log_id.index <= last.index) {
                return Err(StorageError::OutOfOrder { found: entry.log_id.index, applied: last.index });
            }
            outcomes.push(match entry.payload {
                AppliedPayload::Blank => Vec::new(),
                AppliedPayload::Batch(bytes) => applier.batch(entry.log_id.index, bytes)?,
                AppliedPayload::Membership(membership) => {
                    self.applied.membership =
                        pb::StoredMembership { log_id: Some(entry.log_id), membership: Some(membership) };
                    Vec::new()
                }
            });
            self.applied.log_id = Some(entry.log_id);
            if let Some((revision, digest)) = applier.mark.take() {
                let membership = self.applied.membership.membership.clone().unwrap_or_default();
                noted.push(NotedDigest { mark: entry.log_id.index, revision, digest, membership });
            }
        }
        let Applier { revision, clock, chain, events, closed_sessions, reported, .. } = applier;
        let Applier { malformed, malformed_shown, .. } = applier;
        (self.applied.revision, self.applied.clock, self.applied.chain) = (revision, clock, chain);
        let digest = chain.digest;
        Ok(Applied {
            outcomes,
            events,
            closed_sessions,
            revision,
            clock,
            digest,
            noted,
            reported,
            malformed,
            malformed_shown,
        })
    }

    fn write_and_commit(&mut self) -> Result<(), StorageError> {
        let conn = self.conn.as_ref().ok_or(StorageError::Closed)?;
        // Sorted, because neighboring rows share pages.
        self.dirty.sort_unstable();
        for id in self.dirty.drain(..) {
            self.caches.known_conversation(conn, id)?.write(conn, id)?;
        }
        self.dirty_usage.sort_unstable();
        for account in self.dirty_usage.drain(..) {
            if !failpoints::is_active(failpoints::USAGE_NOT_STORED) {
                self.caches.usage(conn, account)?.write(conn, account)?;
            }
        }
        if failpoints::is_active(failpoints::APPLIED_TWICE_AFTER_A_CRASH) {
            let behind = AppliedState { log_id: self.committed.log_id, ..self.applied.clone() };
            write_state(conn, &behind)?;
        } else {
            write_state(conn, &self.applied)?;
        }
        self.checkpoints.of(execute(conn, "COMMIT", [])).context("commit applied entries")?;
        Ok(())
    }

    /// Restores the state of the last commit.
    fn roll_back(&mut self) {
        self.caches.clear();
        self.dirty.clear();
        self.dirty_usage.clear();
        self.applied.clone_from(&self.committed);
        // After some errors SQLite has already rolled back. A connection that cannot roll back is unusable.
        if let Some(conn) = &self.conn
            && !conn.is_autocommit()
            && execute(conn, "ROLLBACK", []).is_err()
        {
            self.conn = None;
        }
    }

    /// Reopens the database after its file was replaced.
    pub(super) fn reopen(&mut self) -> Result<(), StorageError> {
        self.caches.clear();
        self.dirty.clear();
        self.dirty_usage.clear();
        let (conn, checkpoints, applied) = file::open(&self.dir)?;
        (self.conn, self.checkpoints) = (Some(conn), checkpoints);
        self.committed.clone_from(&applied);
        self.applied = applied;
        Ok(())
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        // Best effort: it only saves the next start from applying the entries again. A caller that needs the result
        // commits first.
        let _ = self.commit();
        if let Some(conn) = &self.conn {
            db::settle_wal(conn);
        }
    }
}

/// Reads the row of the table `state`.
pub(super) fn read_state(conn: &Connection) -> Result<AppliedState, StorageError> {
    let sql = "SELECT applied_term, applied_node, applied_index, membership, revision, clock_ms, digest, digest_since \
               FROM state";
    let row = conn
        .query_row(sql, [], |row| {
            let id: (Option<Int>, Option<Int>, Option<Int>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let chain = Chain { digest: row.get(6)?, since: row.get(7)? };
            Ok((id, row.get::<_, Vec<u8>>(3)?, row.get(4)?, row.get(5)?, chain))
        })
        .optional()
        .context("read what was applied")?;
    let (id, membership, revision, clock, chain) =
        row.ok_or_else(|| StorageError::Corrupt("the row of the state is missing".into()))?;
    let log_id = match id {
        (Some(term), Some(node), Some(index)) => Some(pb::LogId { term: term.0, node_id: node.0, index: index.0 }),
        (None, None, None) => None,
        _ => return Err(StorageError::Corrupt("the applied log id is incomplete".into())),
    };
    let membership = pb::StoredMembership::decode(membership.as_slice())
        .map_err(|error| StorageError::Corrupt(format!("the membership cannot be decoded: {error}")))?;
    Ok(AppliedState { log_id, membership, revision, clock, chain })
}

/// Writes the row of the table `state`.
pub(super) fn write_state(conn: &Connection, state: &AppliedState) -> Result<(), StorageError> {
    let sql = "UPDATE state SET applied_term = ?1, applied_node = ?2, applied_index = ?3, membership = ?4, \
               revision = ?5, clock_ms = ?6, digest = ?7, digest_since = ?8";
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
                state.chain.digest,
                state.chain.since,
            ])
        })
        .context("write what was applied")?;
    match changed {
        1 => Ok(()),
        _ => Err(StorageError::Corrupt("the row of the state is missing".into())),
    }
}

/// One call of `stage`: the open transaction and the results so far.
struct Applier<'a> {
    conn: &'a Connection,
    caches: &'a mut Caches,
    revision: Revision,
    clock: TimeMs,
    chain: Chain,
    /// The proposal being applied, on its way into the chain. `None` if it is not part of the chain.
    fold: Option<Fold>,
    /// The trace of the proposal being applied.
    trace: Option<TraceContext>,
    events: Vec<Arc<Event>>,
    closed_sessions: Vec<SessionId>,
    /// The revision and its digest, if the entry being applied contains a mark.
    mark: Option<(Revision, StateDigest)>,
    reported: Vec<DigestReport>,
    malformed: u64,
    malformed_shown: Vec<MalformedCommand>,
    dirty: &'a mut Vec<ConversationId>,
    dirty_usage: &'a mut Vec<AccountId>,
    /// Quota of an account, as set by the leader that created the current batch.
    quota: Quota,
}

impl Applier<'_> {
    /// An entry that is not a valid batch has one outcome, as if it were one command.
    fn batch(&mut self, index: u64, bytes: Bytes) -> Result<Vec<Outcome>, StorageError> {
        match intake::batch(bytes.clone()) {
            Ok(batch) => {
                self.quota = Quota::of(&batch);
                let proposals = batch.proposals.into_iter().enumerate();
                let outcomes = proposals.map(|(position, proposal)| self.proposal(index, position, proposal));
                let mut outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
                if failpoints::is_active(failpoints::MALFORMED_WITHOUT_OUTCOME) {
                    outcomes.retain(|outcome| !matches!(outcome, Outcome::Rejected(Rejection::Malformed)));
                }
                Ok(outcomes)
            }
            Err(problem) => Ok(vec![self.malformed(index, 0, problem, &bytes)]),
        }
    }

    fn proposal(&mut self, index: u64, position: usize, proposal: RawProposal) -> Result<Outcome, StorageError> {
        let bytes = proposal.command;
        let command = match intake::command(bytes.clone()) {
            Ok(Ok(command)) => command,
            Ok(Err(problem)) => {
                return Ok(self.malformed(index, position, problem, bytes.as_deref().unwrap_or_default()));
            }
            Err(StorageError::UnknownCommand(problem)) => {
                return Err(StorageError::UnknownCommand(format!(
                    "command {position} of log entry {index}: {problem}"
                )));
            }
            Err(error) => return Err(error),
        };
        // The clock of a new leader may be behind that of its predecessor; the replicated clock then stands still.
        // Times that SQLite cannot store are clamped.
        self.clock = self.clock.max(TimeMs(proposal.time_ms.min(i64::MAX.unsigned_abs())));
        self.trace = codec::trace(&proposal.traceparent);
        let (before, events) = (self.revision, self.events.len());
        self.fold = Some(Fold::begin(&self.chain, &command));
        let outcome = match command {
            Command::CreateAccount { username, password_hash, request_id, invitation } => {
                self.create_account(username, &password_hash, request_id, invitation.as_ref())
            }
            Command::OpenSession { account, token_hash, lifetime_ms, login } => {
                self.open_session(account, &token_hash, lifetime_ms, &login)
            }
            Command::Account(command) => self.account_command(command),
            Command::CloseSession { session, all } => self.close_session(session, all),
            Command::DeleteAccount { session } => self.delete_account(session),
            Command::BeginAccountDeletion { session } => self.begin_account_deletion(session),
            Command::EraseAccount { account, limit } => self.erase_account(account, limit),
            Command::SendMessage { session, to, client_id, body } => self.send_message(session, &to, client_id, &body),
            Command::Receipts(items) => self.receipts(&items),
            Command::DeleteMessages { session, messages, for_everyone } => {
                self.delete_messages(session, &messages, for_everyone)
            }
            Command::NoteDigest => Ok(self.note_digest()),
            Command::ReportDigest(report) => Ok(self.report_digest(report)),
            Command::IssueJoinToken { token_hash, lifetime_ms } => self.issue_join_token(&token_hash, lifetime_ms),
            Command::RedeemJoinToken { token_hash, admission } => self.redeem_join_token(&token_hash, admission),
        }?;
        if let Some(fold) = self.fold.take() {
            let events = self.events[events..].iter().map(|event| &**event);
            fold.end(&mut self.chain, &outcome, events, (before, self.revision), self.clock);
        }
        Ok(outcome)
    }

    fn account_command(&mut self, command: AccountCommand) -> Result<Outcome, StorageError> {
        match command {
            AccountCommand::ChangePassword { session, password_revision, password_hash } => {
                self.change_password(session, password_revision, &password_hash)
            }
            AccountCommand::ResetPassword { username, password_hash } => self.reset_password(&username, &password_hash),
            AccountCommand::SetDisabled { username, disabled } => self.set_disabled(&username, disabled),
            AccountCommand::EndSessions { username } => self.end_sessions_of(&username),
            AccountCommand::Purge { username } => self.purge(&username),
            AccountCommand::RevokeSession { session, target } => self.revoke_session(session, target),
            AccountCommand::TouchSessions(sessions) => self.touch_sessions(&sessions),
            AccountCommand::SetRegistration(registration) => self.set_registration(registration),
            AccountCommand::CreateInvitation { code_hash, uses, lifetime_ms } => {
                self.create_invitation(&code_hash, uses, lifetime_ms)
            }
            AccountCommand::RevokeInvitation { invitation } => self.revoke_invitation(invitation),
            AccountCommand::RemoveExpired { before, limit } => self.remove_expired(before, limit),
            AccountCommand::SetPrivacy { session, change } => self.set_privacy(session, change),
        }
    }

    fn note_digest(&mut self) -> Outcome {
        self.fold = None;
        self.mark.get_or_insert((self.revision, self.chain.digest));
        Outcome::DigestNoted
    }

    fn report_digest(&mut self, report: DigestReport) -> Outcome {
        self.fold = None;
        self.reported.push(report);
        Outcome::DigestNoted
    }

    /// Folds in numbers that the rows contain and that no outcome or event shows.
    fn fold_row<const N: usize>(&mut self, numbers: [u64; N]) {
        if let Some(fold) = &mut self.fold {
            fold.row(numbers);
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn event(&mut self, revision: Revision, conversation: ConversationId, members: Arc<[Member]>, kind: EventKind) {
        let (time, trace) = (self.clock, self.trace);
        self.events.push(Arc::new(Event { revision, time, conversation, members, kind, trace }));
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

    /// A conversation whose row is about to change. Marks it to be written before the commit.
    fn change(&mut self, id: ConversationId) -> Result<&mut Conversation, StorageError> {
        let conversation = self.caches.known_conversation(self.conn, id)?;
        if !conversation.dirty {
            conversation.dirty = true;
            self.dirty.push(id);
        }
        Ok(conversation)
    }
}

/// Runs a cached prepared statement and returns the number of changed rows.
fn execute(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params)
}

#[cfg(test)]
mod tests;
