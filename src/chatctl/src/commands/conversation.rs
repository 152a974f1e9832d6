//! How commands show messages and the members of a conversation.

use serde_json::{Value, json};

use crate::output::single_line;
use client::{Member, Message, MessageStatus};
use terminal::time;

/// Returns the status of a message, if the service reports one.
pub(super) fn status(message: &Message) -> Option<&'static str> {
    match message.status? {
        MessageStatus::Sent => Some("sent"),
        MessageStatus::Delivered => Some("delivered"),
        MessageStatus::Read => Some("read"),
        _ => None,
    }
}

/// Formats a message as one line, whatever its body contains.
pub(super) fn message_text(message: &Message) -> String {
    let body = if message.deleted { "(deleted)".into() } else { single_line(&message.body) };
    format!("{}  #{} id {}  {}: {body}", time(message.time_ms), message.seq, message.message_id, message.sender)
}

pub(super) fn message_json(message: &Message) -> Value {
    let client_message_id = message.client_message_id.map(|id| id.to_string()).unwrap_or_default();
    json!({ "message_id": message.message_id, "conversation_id": message.conversation_id, "seq": message.seq,
            "sender": message.sender, "body": message.body, "time_ms": message.time_ms, "deleted": message.deleted,
            "status": status(message), "client_message_id": client_message_id })
}

pub(super) fn member_json(member: &Member) -> Value {
    json!({ "username": member.username, "deleted": member.deleted, "delivered_seq": member.delivered_seq,
            "read_seq": member.read_seq })
}
