//! Applies the commands of a batch, one by one, within the open transaction.
//!
//! Owns the order of the steps around a command: decoding, the replicated clock, the digest chain and the outcome; and
//! the types that its parts share. Does not cover: the effect of a command, which is in the module of its subject.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;

use super::cache::{Caches, Conversation};
use crate::codec;
use crate::digest::{Chain, Fold};
use crate::error::StorageError;
use crate::intake::{self, RawBatch, RawProposal};
use chat::{
    AccountCommand, AccountId, Command, ConversationId, DigestReport, Event, EventKind, Member, Outcome, Rejection,
    Revision, SessionId, StateDigest, TimeMs,
};
use trace::TraceContext;

/// Bytes in the log that are not a valid command in any version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedCommand {
    /// Log index of the entry.
    pub index: u64,
    /// Position in the entry's batch, from 0.
    pub position: usize,
    /// Why they are not valid.
    pub problem: String,
}

/// Storage quota of an account; 0 means unlimited.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quota {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Quota {
    pub(super) fn of(batch: &RawBatch) -> Self {
        Self { messages: batch.quota_messages, bytes: batch.quota_bytes }
    }
}

/// One call of `stage`: the open transaction and the results so far.
pub(super) struct Applier<'a> {
    pub(super) conn: &'a Connection,
    pub(super) caches: &'a mut Caches,
    pub(super) revision: Revision,
    pub(super) clock: TimeMs,
    pub(super) chain: Chain,
    /// The proposal being applied, on its way into the chain. `None` if it is not part of the chain.
    pub(super) fold: Option<Fold>,
    /// The trace of the proposal being applied.
    pub(super) trace: Option<TraceContext>,
    pub(super) events: Vec<Arc<Event>>,
    pub(super) closed_sessions: Vec<SessionId>,
    /// The revision and its digest, if the entry being applied contains a mark.
    pub(super) mark: Option<(Revision, StateDigest)>,
    pub(super) reported: Vec<DigestReport>,
    pub(super) malformed: u64,
    pub(super) malformed_shown: Vec<MalformedCommand>,
    pub(super) dirty: &'a mut Vec<ConversationId>,
    pub(super) dirty_usage: &'a mut Vec<AccountId>,
    /// Quota of an account, as set by the leader that created the current batch.
    pub(super) quota: Quota,
}

impl Applier<'_> {
    /// An entry that is not a valid batch has one outcome, as if it were one command.
    pub(super) fn batch(&mut self, index: u64, bytes: Bytes) -> Result<Vec<Outcome>, StorageError> {
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
    pub(super) fn fold_row<const N: usize>(&mut self, numbers: [u64; N]) {
        if let Some(fold) = &mut self.fold {
            fold.row(numbers);
        }
    }

    pub(super) fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    pub(super) fn event(
        &mut self,
        revision: Revision,
        conversation: ConversationId,
        members: Arc<[Member]>,
        kind: EventKind,
    ) {
        let (time, trace) = (self.clock, self.trace);
        self.events.push(Arc::new(Event { revision, time, conversation, members, kind, trace }));
    }

    /// The account of a valid session.
    pub(super) fn caller(&mut self, id: SessionId) -> Result<Result<AccountId, Rejection>, StorageError> {
        let session = self.caches.session(self.conn, id)?;
        Ok(match session {
            None => Err(Rejection::SessionUnknown),
            Some(session) if session.expires <= self.clock => Err(Rejection::SessionExpired),
            Some(session) => Ok(session.account),
        })
    }

    /// A conversation whose row is about to change. Marks it to be stored before the commit.
    pub(super) fn change(&mut self, id: ConversationId) -> Result<&mut Conversation, StorageError> {
        let conversation = self.caches.known_conversation(self.conn, id)?;
        if !conversation.dirty {
            conversation.dirty = true;
            self.dirty.push(id);
        }
        Ok(conversation)
    }
}
