//! The digest of the state: a SHA-256 chain over the applied commands and their results.
//!
//! It is not a hash of the rows, which would require reading all of them. Instead each proposal is folded in together
//! with the results that the rows produced: its outcome, its events, and the ids, names, links and counters that were
//! read or computed. Two nodes whose rows differ therefore get different digests as soon as a command touches the
//! difference, and never get equal ones again.
//!
//! Invariants:
//! - The same proposals produce the same digest in any batching, and after restarts and snapshots, because the chain
//!   has one link per proposal.
//! - The digest belongs to a revision. Proposals that do not advance the revision (rejections, repeats, receipts that
//!   move nothing) are kept separately ([`Chain::since`]) and become part of the digest with the next revision, so that
//!   equal revisions imply equal digests.
//! - Entries without proposals, and the proposals that note and report digests, are not included.
//! - **The hashed bytes never change.** Nodes of different versions compare their digests, and the chain depends on the
//!   whole history. A different computation requires a command that makes all nodes change over at one position in the
//!   log.
//!
//! The bytes of a proposal are: the chain before it (digest, since), the command, rows, the outcome, the events, then
//! revision and clock. Each part begins with a tag of two bytes, the part and its kind. Numbers have 8 bytes,
//! little-endian. Texts and lists are prefixed with their length. A part that later versions added is present only
//! where it is needed.

use sha2::{Digest as _, Sha256};

use super::codec;
use chat::{ClientId, Command, Destination, Event, EventKind, Outcome, Rejection, Revision, Seq, StateDigest, TimeMs};

/// The current end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain {
    /// Digest of everything up to the last revision.
    pub digest: StateDigest,
    /// Digest of the later proposals that did not advance the revision; zero if there are none.
    pub since: StateDigest,
}

// The parts of a proposal. The kind of a command's tag is the command's; 0 means bytes that are not a command, as they
// are in the log.
const COMMAND: u8 = 1;
const ROW: u8 = 2;
const OUTCOME: u8 = 3;
const EVENT: u8 = 4;
const END: u8 = 5;

/// Kind of the part of a receipt's event that holds the position shown to others.
const SHOWN: u8 = 6;

/// A proposal on its way into the chain.
pub(super) struct Fold(Sha256);

impl Fold {
    /// Begins with the previous chain and the command.
    pub(super) fn begin(chain: &Chain, command: &Command) -> Self {
        let mut fold = Self(Sha256::new_with_prefix(chain.digest.0));
        fold.0.update(chain.since.0);
        fold.command(command);
        fold
    }

    /// Begins with the previous chain and bytes that are not a command.
    pub(super) fn malformed(chain: &Chain, bytes: &[u8]) -> Self {
        let mut fold = Self(Sha256::new_with_prefix(chain.digest.0));
        fold.0.update(chain.since.0);
        fold.tag(COMMAND, 0);
        fold.bytes(bytes);
        fold
    }

    /// Folds in numbers that were read or computed and that no outcome shows.
    pub(super) fn row<const N: usize>(&mut self, numbers: [u64; N]) {
        self.tag(ROW, N as u8);
        numbers.into_iter().for_each(|number| self.number(number));
    }

    /// Ends with the result of the proposal. `revision` and `clock` are those of the state afterwards.
    pub(super) fn end<'a>(
        mut self,
        chain: &mut Chain,
        outcome: &Outcome,
        events: impl Iterator<Item = &'a Event>,
        (before, revision): (Revision, Revision),
        clock: TimeMs,
    ) {
        self.outcome(outcome);
        events.for_each(|event| self.event(event));
        self.tag(END, 0);
        self.number(revision.0);
        self.number(clock.0);
        let link = StateDigest(self.0.finalize().into());
        *chain = match revision == before {
            true => Chain { since: link, ..*chain },
            false => Chain { digest: link, since: StateDigest::default() },
        };
    }

    fn tag(&mut self, part: u8, kind: u8) {
        self.0.update([part, kind]);
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn option(&mut self, id: Option<ClientId>) {
        self.bytes(id.as_ref().map_or(&[], |id| &id.0));
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::CreateAccount { username, password_hash, request_id, invitation } => {
                self.tag(COMMAND, 1);
                self.bytes(username.as_bytes());
                self.bytes(password_hash.as_bytes());
                self.option(*request_id);
                self.invitation(invitation.as_ref());
            }
            Command::OpenSession { account, token_hash, lifetime_ms, login } => {
                self.tag(COMMAND, 2);
                self.number(account.0);
                self.0.update(token_hash.0);
                self.number(*lifetime_ms);
                self.login(login);
            }
            Command::CloseSession { session, all } => {
                self.tag(COMMAND, 3);
                self.number(session.0);
                self.number(u64::from(*all));
            }
            Command::DeleteAccount { session } => {
                self.tag(COMMAND, 4);
                self.number(session.0);
            }
            Command::SendMessage { session, to, client_id, body } => {
                self.tag(COMMAND, 5);
                self.number(session.0);
                self.destination(to);
                self.0.update(client_id.0);
                self.bytes(body.as_bytes());
            }
            Command::Receipts(items) => {
                self.tag(COMMAND, 6);
                self.number(items.len() as u64);
                for item in items {
                    let numbers = [item.session.0, item.conversation.0, item.up_to.0, u64::from(item.read)];
                    numbers.into_iter().for_each(|number| self.number(number));
                }
            }
            Command::DeleteMessages { session, messages, for_everyone } => {
                self.tag(COMMAND, 7);
                self.number(session.0);
                self.number(messages.len() as u64);
                messages.iter().for_each(|message| self.number(*message));
                self.number(u64::from(*for_everyone));
            }
            Command::Account(command) => self.account_command(command),
            // These are not part of the chain.
            Command::NoteDigest => self.tag(COMMAND, 8),
            Command::ReportDigest(_) => self.tag(COMMAND, 9),
            Command::IssueJoinToken { token_hash, lifetime_ms } => {
                self.tag(COMMAND, 10);
                self.0.update(token_hash.0);
                self.number(*lifetime_ms);
            }
            Command::RedeemJoinToken { token_hash, admission } => {
                self.tag(COMMAND, 11);
                self.0.update(token_hash.0);
                self.number(*admission);
            }
            Command::BeginAccountDeletion { session } => {
                self.tag(COMMAND, 20);
                self.number(session.0);
            }
            Command::EraseAccount { account, limit } => {
                self.tag(COMMAND, 21);
                self.number(account.0);
                self.number(u64::from(*limit));
            }
        }
    }

    fn destination(&mut self, to: &Destination) {
        match to {
            Destination::Person(name) => self.bytes(name.as_bytes()),
            // Longer than any name.
            Destination::Conversation(id) => {
                self.number(u64::MAX);
                self.number(id.0);
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let (kind, numbers) = match outcome {
            Outcome::Rejected(reason) => (1, [rejection(*reason), 0, 0, 0, 0]),
            Outcome::AccountCreated { account, revision, repeated } => {
                (2, [account.0, revision.0, u64::from(*repeated), 0, 0])
            }
            Outcome::SessionOpened { session, account, expires_at, revision } => {
                (3, [session.0, account.0, expires_at.0, revision.0, 0])
            }
            Outcome::SessionsClosed { count, revision } => (4, [u64::from(*count), revision.0, 0, 0, 0]),
            Outcome::AccountDeleted { revision, deleted_messages } => (5, [revision.0, *deleted_messages, 0, 0, 0]),
            Outcome::MessageSent(sent) => {
                (6, [sent.conversation.0, sent.seq.0, sent.revision.0, sent.time.0, u64::from(sent.repeated)])
            }
            Outcome::ReceiptsApplied(results) => (7, [results.len() as u64, 0, 0, 0, 0]),
            Outcome::MessagesDeleted { deleted, ignored, revision } => {
                (8, [u64::from(*deleted), u64::from(*ignored), revision.0, 0, 0])
            }
            Outcome::Changed { count, revision } => (25, [*count, revision.0, 0, 0, 0]),
            Outcome::InvitationCreated { expires_at, revision } => (26, [expires_at.0, revision.0, 0, 0, 0]),
            Outcome::DigestNoted => (9, [0; 5]),
            Outcome::JoinTokenIssued { expires_at } => (10, [expires_at.0, 0, 0, 0, 0]),
            Outcome::JoinTokenRedeemed => (11, [0; 5]),
            Outcome::AccountErased { revision, done } => (20, [revision.0, u64::from(*done), 0, 0, 0]),
        };
        self.tag(OUTCOME, kind);
        numbers.into_iter().for_each(|number| self.number(number));
        if let Outcome::ReceiptsApplied(results) = outcome {
            for result in results {
                let (reason, seq, revision) = match result {
                    Ok((seq, revision)) => (0, seq.0, revision.0),
                    Err(reason) => (rejection(*reason), 0, 0),
                };
                [reason, seq, revision].into_iter().for_each(|number| self.number(number));
            }
        }
    }

    /// Excludes the text of a message, because the command already contains it.
    fn event(&mut self, event: &Event) {
        let kind = match &event.kind {
            EventKind::Message { .. } => 1,
            EventKind::Receipt { .. } => 2,
            EventKind::DeletedForEveryone { .. } => 3,
            EventKind::DeletedForMember { .. } => 4,
            EventKind::AccountDeleted { .. } => 5,
        };
        self.tag(EVENT, kind);
        let members = event.members.len() as u64;
        [event.revision.0, event.time.0, event.conversation.0, members].into_iter().for_each(|n| self.number(n));
        for member in event.members.iter() {
            self.number(member.account.0);
            self.bytes(member.username.as_bytes());
        }
        match &event.kind {
            EventKind::Message { seq, sender, sender_name, client_id, body: _, deleted } => {
                [seq.0, sender.0, u64::from(*deleted)].into_iter().for_each(|n| self.number(n));
                self.bytes(sender_name.as_bytes());
                self.0.update(client_id.0);
            }
            EventKind::Receipt { member, member_name, delivered, read, shown } => {
                [member.0, delivered.0, read.0].into_iter().for_each(|n| self.number(n));
                self.bytes(member_name.as_bytes());
                // Earlier versions showed others everything that was read. The bytes of such events do not change.
                if *shown != Some(*read) {
                    self.tag(EVENT, SHOWN);
                    self.number(shown.map_or(u64::MAX, |seq| seq.0));
                }
            }
            EventKind::DeletedForEveryone { seqs } => self.seqs(seqs),
            EventKind::DeletedForMember { member, seqs } => {
                self.number(member.0);
                self.seqs(seqs);
            }
            EventKind::AccountDeleted { member, member_name } => {
                self.number(member.0);
                self.bytes(member_name.as_bytes());
            }
        }
    }

    fn seqs(&mut self, seqs: &[Seq]) {
        self.number(seqs.len() as u64);
        seqs.iter().for_each(|seq| self.number(seq.0));
    }
}

fn rejection(reason: Rejection) -> u64 {
    // The numbers are those on disk: positive, and never reused.
    u64::from(codec::encode_rejection(reason).unsigned_abs())
}

mod accounts;

#[cfg(test)]
mod tests;
