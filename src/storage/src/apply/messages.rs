//! Sends, applied exactly once regardless of retries and of the nodes that receive them.
//!
//! The unique index on (client id, sender) makes a retry harmless. A message to an existing conversation within the
//! quota is inserted without looking for its id. If the index rejects the row, and in all other cases, an earlier
//! outcome with the id comes first.

use rusqlite::{OptionalExtension, params};

use super::applier::Applier;
use crate::codec;
use crate::db::{Int, execute};
use crate::error::{Context, StorageError};
use crate::recent::Head;
use chat::{
    AccountId, ClientId, ConversationId, Destination, EventKind, MessageSent, Outcome, Rejection, Revision, Seq,
    SessionId, TimeMs,
};

/// The destination of a message.
enum Target {
    Existing(ConversationId),
    /// A new direct conversation with this account.
    New(AccountId),
    Nowhere(Rejection),
}

impl Applier<'_> {
    pub(super) fn send_message(
        &mut self,
        session: SessionId,
        to: &Destination,
        client_id: ClientId,
        body: &str,
    ) -> Result<Outcome, StorageError> {
        let sender = match self.caller(session)? {
            Ok(account) => account,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let target = self.target(sender, to)?;
        let fits = self.fits_quota(sender, body.len() as u64)?;
        if let Target::Existing(conversation) = target
            && fits
            && let Some(outcome) = self.store_message(conversation, sender, client_id, body)?
        {
            return Ok(outcome);
        }
        // The client id is already known, or this is not the common case.
        if let Some(outcome) = self.first_outcome(sender, to, client_id, body)? {
            return Ok(outcome);
        }
        let reason = match target {
            Target::New(_) | Target::Existing(_) if !fits => Rejection::QuotaExceeded,
            Target::New(partner) => {
                let conversation = self.create_direct(sender, partner)?;
                if let Some(outcome) = self.store_message(conversation, sender, client_id, body)? {
                    return Ok(outcome);
                }
                return Err(StorageError::Corrupt("the index of client ids has an entry without a row".into()));
            }
            Target::Existing(_) => {
                return Err(StorageError::Corrupt("the index of client ids has an entry without a row".into()));
            }
            Target::Nowhere(reason) => reason,
        };
        let sql = "INSERT INTO rejected_send (client_id, sender_id, reason) VALUES (?1, ?2, ?3)";
        execute(self.conn, sql, params![client_id, sender, codec::encode_rejection(reason)])
            .context("remember a rejection")?;
        self.caches.note_rejection();
        Ok(Outcome::Rejected(reason))
    }

    fn target(&mut self, sender: AccountId, to: &Destination) -> Result<Target, StorageError> {
        match to {
            Destination::Person(name) => {
                let Some(recipient) = self.caches.account(self.conn, name)? else {
                    return Ok(Target::Nowhere(Rejection::RecipientUnknown));
                };
                if recipient.deleted {
                    return Ok(Target::Nowhere(Rejection::RecipientDeleted));
                }
                Ok(match self.caches.direct(self.conn, sender, recipient.id)? {
                    Some(conversation) => Target::Existing(conversation),
                    None => Target::New(recipient.id),
                })
            }
            Destination::Conversation(id) => {
                let Some(conversation) = self.caches.conversation(self.conn, *id)? else {
                    return Ok(Target::Nowhere(Rejection::ConversationUnknown));
                };
                if conversation.position(sender).is_none() {
                    return Ok(Target::Nowhere(Rejection::ConversationUnknown));
                }
                if conversation.direct && conversation.marks.iter().any(|at| at.has_left) {
                    return Ok(Target::Nowhere(Rejection::RecipientDeleted));
                }
                Ok(Target::Existing(*id))
            }
        }
    }

    /// Appends a message. Returns `None`, without any change, if the sender has used the client id before.
    fn store_message(
        &mut self,
        id: ConversationId,
        sender: AccountId,
        client_id: ClientId,
        body: &str,
    ) -> Result<Option<Outcome>, StorageError> {
        if self.rejection(sender, client_id)?.is_some() {
            return Ok(None);
        }
        let revision = Revision(self.revision.0 + 1);
        let time = self.clock;
        let conn = self.conn;
        let conversation = self.caches.known_conversation(conn, id)?;
        let position = conversation
            .position(sender)
            .ok_or_else(|| StorageError::Corrupt(format!("account {sender} is not in its conversation {id}")))?;
        let seq = Seq(conversation.head.last_seq.0 + 1);
        // A single row without a SELECT: for other statements SQLite keeps a copy of each page that they change, to be
        // able to roll back the statement alone.
        let sql = "INSERT INTO message (revision, conversation_id, seq, sender_id, client_id, time_ms, body, deleted, \
                   previous, jump, sent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9, ?10) \
                   ON CONFLICT (client_id, sender_id) DO NOTHING";
        let (previous, jump) = (conversation.head.last_message_revision, conversation.jumps.target(seq));
        let sent = conversation.marks[position].mark.sent + 1;
        let values = params![revision, id, seq, sender, client_id, time, body, previous, jump, Int(sent)];
        if execute(conn, sql, values).context("store a message")? == 0 {
            return Ok(None);
        }
        self.next_revision();
        let conversation = self.change(id)?;
        conversation.head = Head { last_seq: seq, last_message_revision: revision, last_revision: revision };
        conversation.jumps.push(seq, revision);
        conversation.mark(position).sent = sent;
        let members = conversation.members.clone();
        self.fold_row([previous.0, jump.0, sent]);
        self.use_more(sender, body.len() as u64)?;
        let sender_name = members[position].username.clone();
        let kind = EventKind::Message { seq, sender, sender_name, client_id, body: body.into(), deleted: false };
        self.event(revision, id, members, kind);
        Ok(Some(Outcome::MessageSent(MessageSent { conversation: id, seq, revision, time, repeated: false })))
    }

    /// The outcome of an earlier command with the client id.
    fn first_outcome(
        &mut self,
        sender: AccountId,
        to: &Destination,
        client_id: ClientId,
        body: &str,
    ) -> Result<Option<Outcome>, StorageError> {
        // Everything that makes a send another one than the first has to be compared here.
        let sql = "SELECT conversation_id, seq, revision, time_ms, deleted OR body = ?3 FROM message \
                   WHERE client_id = ?1 AND sender_id = ?2";
        let stored: Option<(ConversationId, Seq, Revision, TimeMs, bool)> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let read =
                    |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
                statement.query_row(params![client_id, sender, body], read).optional()
            })
            .context("look for a client id")?;
        if let Some((conversation, seq, revision, time, same_body)) = stored {
            return Ok(Some(match same_body && self.leads_to(sender, to, conversation)? {
                true => Outcome::MessageSent(MessageSent { conversation, seq, revision, time, repeated: true }),
                false => Outcome::Rejected(Rejection::ClientIdReused),
            }));
        }
        Ok(self.rejection(sender, client_id)?.map(Outcome::Rejected))
    }

    /// The reason for which an earlier send with the client id was rejected.
    fn rejection(&mut self, sender: AccountId, client_id: ClientId) -> Result<Option<Rejection>, StorageError> {
        if !self.caches.has_rejections(self.conn)? {
            return Ok(None);
        }
        let reason: Option<i32> = self
            .conn
            .prepare_cached("SELECT reason FROM rejected_send WHERE client_id = ?1 AND sender_id = ?2")
            .and_then(|mut statement| statement.query_row(params![client_id, sender], |row| row.get(0)).optional())
            .context("look for a rejection")?;
        reason
            .map(codec::decode_rejection)
            .transpose()
            .map_err(|error| StorageError::Corrupt(format!("a remembered rejection: {error}")))
    }

    /// Whether a destination is the given conversation, even if the recipient is deleted.
    fn leads_to(
        &mut self,
        sender: AccountId,
        to: &Destination,
        conversation: ConversationId,
    ) -> Result<bool, StorageError> {
        match to {
            Destination::Conversation(id) => Ok(*id == conversation),
            Destination::Person(name) => match self.caches.account(self.conn, name)? {
                None => Ok(false),
                Some(recipient) => Ok(self.caches.direct(self.conn, sender, recipient.id)? == Some(conversation)),
            },
        }
    }

    /// Creates a direct conversation, or the sender's notes, for the message that is stored next. Both share its
    /// revision.
    fn create_direct(&mut self, sender: AccountId, partner: AccountId) -> Result<ConversationId, StorageError> {
        let id = ConversationId(self.revision.0 + 1);
        let (low, high) = (sender.min(partner), sender.max(partner));
        let sql = "INSERT INTO conversation (id, direct_low, direct_high, last_seq, last_message_revision, \
                   last_revision) VALUES (?1, ?2, ?3, 0, 0, 0)";
        execute(self.conn, sql, params![id, low, high]).context("store a conversation")?;
        let accounts = if low == high { vec![low] } else { vec![low, high] };
        for account in accounts {
            let sql = "INSERT INTO member (conversation_id, account_id, delivered_seq, read_seq, sent, sent_read, \
                       gone, receipt_revision, receipt_ms) VALUES (?1, ?2, 0, 0, 0, 0, 0, 0, 0)";
            execute(self.conn, sql, params![id, account]).context("store a member")?;
        }
        Ok(id)
    }
}
