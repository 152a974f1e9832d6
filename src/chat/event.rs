//! What subscribers are told, after it is committed and applied.

use std::sync::Arc;

use crate::trace::TraceContext;

use super::{AccountId, ClientId, ConversationId, Revision, Seq, TimeMs};

/// A change that somebody may have subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The change's place in the order of all changes.
    pub revision: Revision,
    /// When it was applied, on the replicated clock.
    pub time: TimeMs,
    /// Where it happened.
    pub conversation: ConversationId,
    /// The members of the conversation: who is told, unless the kind says otherwise.
    pub members: Arc<[Member]>,
    /// What happened.
    pub kind: EventKind,
    /// The trace of the change, if it is sampled. Not kept: events of the past have none.
    pub trace: Option<TraceContext>,
}

/// A member of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The account.
    pub account: AccountId,
    /// Its name.
    pub username: Arc<str>,
}

/// The kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A message was stored. Its id is the event's revision.
    Message {
        /// Its place in the conversation.
        seq: Seq,
        /// Who sent it.
        sender: AccountId,
        /// The sender's name.
        sender_name: Arc<str>,
        /// The id the sender's client gave it.
        client_id: ClientId,
        /// The text; empty when `deleted` (only on resume: it was deleted since).
        body: Arc<str>,
        /// It has been deleted since (only on resume).
        deleted: bool,
    },
    /// A member received or read more.
    Receipt {
        /// Who.
        member: AccountId,
        /// The member's name.
        member_name: Arc<str>,
        /// Delivered up to here.
        delivered: Seq,
        /// Read up to here.
        read: Seq,
        /// Read up to here as the other members see it. `None`: the change concerns the member alone.
        shown: Option<Seq>,
    },
    /// Messages became tombstones for all members.
    DeletedForEveryone {
        /// Which.
        seqs: Vec<Seq>,
    },
    /// Messages were hidden by one member: only that member is told.
    DeletedForMember {
        /// Who.
        member: AccountId,
        /// Which.
        seqs: Vec<Seq>,
    },
    /// A member deleted the account; all of its messages are tombstones.
    AccountDeleted {
        /// Who.
        member: AccountId,
        /// The name it had.
        member_name: Arc<str>,
    },
}

impl Event {
    /// About how many bytes it takes in memory.
    pub fn size(&self) -> usize {
        const FIXED_BYTES: usize = 256;
        let content = match &self.kind {
            EventKind::Message { body, .. } => body.len(),
            EventKind::DeletedForEveryone { seqs } | EventKind::DeletedForMember { seqs, .. } => seqs.len() * 8,
            EventKind::Receipt { .. } | EventKind::AccountDeleted { .. } => 0,
        };
        FIXED_BYTES + content
    }

    /// Whether `account` is told.
    pub fn concerns(&self, account: AccountId) -> bool {
        match &self.kind {
            EventKind::DeletedForMember { member, .. } | EventKind::Receipt { member, shown: None, .. } => {
                *member == account
            }
            _ => self.members.iter().any(|m| m.account == account),
        }
    }
}
