//! Messages, conversations and their members.

use proto::chat::v1 as pb;
use uuid::Uuid;

use super::{each, from_wire};

/// Source and age of the data of a read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadHeader {
    /// Revision of the state that was read.
    pub revision: u64,
    /// Milliseconds since the node that answered was last known to have everything committed. 0 for linearizable reads.
    /// `None`: not known since the node started.
    pub age_ms: Option<u64>,
    /// Name of the node that answered.
    pub node: String,
}

impl From<Option<pb::ReadHeader>> for ReadHeader {
    fn from(wire: Option<pb::ReadHeader>) -> Self {
        let pb::ReadHeader { revision, age_ms, node } = wire.unwrap_or_default();
        Self { revision, age_ms, node }
    }
}

/// The receipt for a message, which is on disk on a majority of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The message's id; equal to the revision that stored the message.
    pub message_id: u64,
    /// The id of its conversation.
    pub conversation_id: u64,
    /// Its position in the conversation: 1, 2, 3 ... without gaps.
    pub seq: u64,
    /// The revision of the change.
    pub revision: u64,
    /// When it was stored.
    pub time_ms: u64,
    /// Whether an earlier attempt with this id had stored it.
    pub repeated: bool,
    /// The id that it was sent with. Sending it again with this id stores nothing new.
    pub client_message_id: Uuid,
}

impl Sent {
    pub(crate) fn new(client_message_id: Uuid, answer: pb::SendMessageResponse) -> Self {
        let pb::SendMessageResponse { message_id, conversation_id, seq, revision, time_ms, repeated } = answer;
        Self { message_id, conversation_id, seq, revision, time_ms, repeated, client_message_id }
    }
}

/// Progress of a message over all of its recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MessageStatus {
    /// On disk on a majority of the nodes.
    Sent,
    /// Received by a client of every recipient.
    Delivered,
    /// Read by every recipient, as far as they exchange read receipts.
    Read,
}

/// A message as the account may see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Its id; equal to the revision that stored it.
    pub message_id: u64,
    /// Its conversation.
    pub conversation_id: u64,
    /// Its position in the conversation: 1, 2, 3 ... without gaps.
    pub seq: u64,
    /// Name of the sender.
    pub sender: String,
    /// The text; empty if the message was deleted.
    pub body: String,
    /// When it was stored.
    pub time_ms: u64,
    /// Whether it was deleted for everyone, or with its sender's account.
    pub deleted: bool,
    /// Its progress at the time of a read. `None` in events, where receipts report the progress.
    pub status: Option<MessageStatus>,
    /// The id that this account sent it with. `None` for messages of others.
    pub client_message_id: Option<Uuid>,
}

impl From<pb::Message> for Message {
    fn from(wire: pb::Message) -> Self {
        let status = match wire.status() {
            pb::MessageStatus::Unspecified => None,
            pb::MessageStatus::Sent => Some(MessageStatus::Sent),
            pb::MessageStatus::Delivered => Some(MessageStatus::Delivered),
            pb::MessageStatus::Read => Some(MessageStatus::Read),
        };
        let pb::Message { message_id, conversation_id, seq, sender, body, time_ms, deleted, client_message_id, .. } =
            wire;
        let client_message_id = client_message_id.parse().ok();
        Self { message_id, conversation_id, seq, sender, body, time_ms, deleted, status, client_message_id }
    }
}

/// A member of a conversation, and its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name of the account.
    pub username: String,
    /// Whether the account was deleted.
    pub deleted: bool,
    /// A client of the member received everything up to this seq.
    pub delivered_seq: u64,
    /// The member read everything up to this seq, as far as it exchanges read receipts.
    pub read_seq: u64,
}

from_wire!(Member, pb::Member { username, deleted, delivered_seq, read_seq });

/// A page of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConversationPage {
    /// The messages, newest first. There may be fewer than requested, because a page is bounded in bytes.
    pub messages: Vec<Message>,
    /// Id of the conversation; 0 while there is none.
    pub conversation_id: u64,
    /// Number of messages that the account can see, on all pages.
    pub total_count: u64,
    /// Number of messages from others that the account has yet to read.
    pub unread_count: u64,
    /// The newest seq, visible or not.
    pub last_seq: u64,
    /// Whether there are older messages. Pass the smallest seq of this page as `before_seq` to read them.
    pub has_more: bool,
    /// All members, the account included.
    pub members: Vec<Member>,
    /// Source and age of the data.
    pub header: ReadHeader,
}

impl From<pb::ReadConversationResponse> for ConversationPage {
    fn from(wire: pb::ReadConversationResponse) -> Self {
        Self {
            messages: each(wire.messages),
            conversation_id: wire.conversation_id,
            total_count: wire.total_count,
            unread_count: wire.unread_count,
            last_seq: wire.last_seq,
            has_more: wire.has_more,
            members: each(wire.members),
            header: wire.header.into(),
        }
    }
}

/// A conversation in the list of the account's conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPartner {
    /// Name of the other member; the account's own name for its notes.
    pub username: String,
    /// Whether the partner's account was deleted.
    pub deleted: bool,
    /// Id of the conversation.
    pub conversation_id: u64,
    /// Number of messages from others that the account has yet to read.
    pub unread_count: u64,
    /// The newest message that the account can see. `None`: all are hidden.
    pub last_message: Option<Message>,
    /// The newest seq, visible or not.
    pub last_seq: u64,
    /// All members, the account included.
    pub members: Vec<Member>,
}

impl From<pb::ChatPartner> for ChatPartner {
    fn from(wire: pb::ChatPartner) -> Self {
        Self {
            username: wire.username,
            deleted: wire.deleted,
            conversation_id: wire.conversation_id,
            unread_count: wire.unread_count,
            last_message: wire.last_message.map(Message::from),
            last_seq: wire.last_seq,
            members: each(wire.members),
        }
    }
}

/// A page of the account's conversations, newest activity first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartnerPage {
    /// The conversations of this page.
    pub partners: Vec<ChatPartner>,
    /// Token for the next page. `None`: this is the last one.
    pub next_page_token: Option<String>,
    /// Number of conversations on all pages.
    pub total_count: u64,
    /// Source and age of the data.
    pub header: ReadHeader,
}

impl From<pb::ListChatPartnersResponse> for PartnerPage {
    fn from(wire: pb::ListChatPartnersResponse) -> Self {
        Self {
            partners: each(wire.partners),
            next_page_token: Some(wire.next_page_token).filter(|token| !token.is_empty()),
            total_count: wire.total_count,
            header: wire.header.into(),
        }
    }
}

/// A conversation was marked as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadMarked {
    /// Everything up to this seq is read.
    pub read_seq: u64,
    /// Number of messages from others that the account has yet to read.
    pub unread_count: u64,
    /// Revision of the change, or of the state if nothing changed.
    pub revision: u64,
}

from_wire!(ReadMarked, pb::MarkReadResponse { read_seq, unread_count, revision });

/// Messages were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessagesDeleted {
    /// Number of messages that this call deleted.
    pub deleted_count: u32,
    /// Number of ids that are unknown, deleted already, or not the caller's to delete.
    pub ignored_count: u32,
    /// Revision of the change.
    pub revision: u64,
}

from_wire!(MessagesDeleted, pb::DeleteMessagesResponse { deleted_count, ignored_count, revision });

/// A member received or read more of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The conversation.
    pub conversation_id: u64,
    /// Name of the member; perhaps the account itself, on another device.
    pub member: String,
    /// A client of the member received everything up to this seq.
    pub delivered_seq: u64,
    /// The member read everything up to this seq, as far as it exchanges read receipts.
    pub read_seq: u64,
    /// When.
    pub time_ms: u64,
}

from_wire!(Receipt, pb::ReceiptEvent { conversation_id, member, delivered_seq, read_seq, time_ms });

/// Messages of a conversation were deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The conversation.
    pub conversation_id: u64,
    /// Positions of the messages.
    pub seqs: Vec<u64>,
    /// Whether they are gone for all members, or hidden for this account only.
    pub for_everyone: bool,
}

from_wire!(Deletion, pb::DeletionEvent { conversation_id, seqs, for_everyone });

/// A member deleted its account. All of its messages in this conversation are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDeleted {
    /// The conversation. Each conversation of the account has an event of its own.
    pub conversation_id: u64,
    /// Name of the account, which stays taken.
    pub member: String,
}

from_wire!(MemberDeleted, pb::AccountDeletedEvent { conversation_id, member });
