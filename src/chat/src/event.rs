//! Events for subscribers, sent after a change is committed and applied.

use std::sync::Arc;

use super::{AccountId, ClientId, ConversationId, Revision, Seq, TimeMs, TraceContext};

/// A change that subscribers may have to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The position of the change in the order of all changes.
    pub revision: Revision,
    /// Time at which it was applied, on the replicated clock.
    pub time: TimeMs,
    /// The conversation of the change.
    pub conversation: ConversationId,
    /// The members of the conversation. They receive the event, unless the kind restricts that.
    pub members: Arc<[Member]>,
    /// Kind and details of the change.
    pub kind: EventKind,
    /// The trace of the change, if it is sampled. It is not stored, so past events have none.
    pub trace: Option<TraceContext>,
}

/// A member of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The account.
    pub account: AccountId,
    /// The account's name.
    pub username: Arc<str>,
}

/// The kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A message was stored. Its id is the event's revision.
    Message {
        /// Its position in the conversation.
        seq: Seq,
        /// The sender's account.
        sender: AccountId,
        /// The sender's name.
        sender_name: Arc<str>,
        /// The id that the sender's client assigned.
        client_id: ClientId,
        /// The text; empty if `deleted`.
        body: Arc<str>,
        /// Whether it has been deleted since (only in a resumed subscription).
        deleted: bool,
    },
    /// A member received or read more messages.
    Receipt {
        /// The member's account.
        member: AccountId,
        /// The member's name.
        member_name: Arc<str>,
        /// Position up to which messages are delivered.
        delivered: Seq,
        /// Position up to which messages are read.
        read: Seq,
        /// The read position as visible to the other members. `None` if the change is visible only to the member.
        shown: Option<Seq>,
    },
    /// Messages became tombstones for all members.
    DeletedForEveryone {
        /// Positions of the messages.
        seqs: Vec<Seq>,
    },
    /// Messages were hidden by one member. Only that member receives the event.
    DeletedForMember {
        /// The member's account.
        member: AccountId,
        /// Positions of the messages.
        seqs: Vec<Seq>,
    },
    /// A member deleted its account. All of its messages are tombstones.
    AccountDeleted {
        /// The member's account.
        member: AccountId,
        /// The member's name.
        member_name: Arc<str>,
    },
}

impl Event {
    /// Approximate size in memory, in bytes.
    pub fn size(&self) -> usize {
        const FIXED_BYTES: usize = 256;
        let content = match &self.kind {
            EventKind::Message { body, .. } => body.len(),
            EventKind::DeletedForEveryone { seqs } | EventKind::DeletedForMember { seqs, .. } => seqs.len() * 8,
            EventKind::Receipt { .. } | EventKind::AccountDeleted { .. } => 0,
        };
        FIXED_BYTES + content
    }

    /// Whether `account` receives the event.
    pub fn concerns(&self, account: AccountId) -> bool {
        match &self.kind {
            EventKind::DeletedForMember { member, .. } | EventKind::Receipt { member, shown: None, .. } => {
                *member == account
            }
            _ => self.members.iter().any(|m| m.account == account),
        }
    }
}
