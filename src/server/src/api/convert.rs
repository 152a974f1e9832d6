//! Conversion of rows and events to the messages of `chat.v1`.

use std::time::Duration;

use tokio::time::Instant;

use chat::{AccountId, ClientId, Event, EventKind, Revision, limits::Invalid};
use proto::chat::v1 as pb;
use storage::{AccountRow, ConversationSummary, MemberRow, MessageProgress, MessageRow};

/// The id, from any textual form of a UUID.
pub(super) fn client_id(field: &'static str, text: &str) -> Result<ClientId, Invalid> {
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) => Ok(ClientId(uuid.into_bytes())),
        Err(_) => Err(Invalid::new(field, "must be a UUID, made by the client and kept for retries")),
    }
}

fn client_id_text(id: ClientId) -> String {
    uuid::Uuid::from_bytes(id.0).hyphenated().to_string()
}

/// The current age of data that had the age `age` at `measured_at`.
pub(super) fn age_ms(age: Option<Duration>, measured_at: Instant) -> Option<u64> {
    age.map(|age| u64::try_from((age + measured_at.elapsed()).as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn account(row: AccountRow) -> pb::Account {
    pb::Account { account_id: row.id.0, username: row.username, deleted: row.deleted }
}

pub(super) fn member(row: MemberRow) -> pb::Member {
    pb::Member { username: row.username, deleted: row.deleted, delivered_seq: row.delivered.0, read_seq: row.read.0 }
}

/// A message as `me` may see it.
pub(super) fn message(row: MessageRow, me: AccountId) -> pb::Message {
    let status = match row.status {
        MessageProgress::Sent => pb::MessageStatus::Sent,
        MessageProgress::Delivered => pb::MessageStatus::Delivered,
        MessageProgress::Read => pb::MessageStatus::Read,
    };
    pb::Message {
        message_id: row.id.0,
        conversation_id: row.conversation.0,
        seq: row.seq.0,
        sender: row.sender_name,
        body: if row.deleted { String::new() } else { row.body },
        time_ms: row.time.0,
        deleted: row.deleted,
        status: status.into(),
        client_message_id: if row.sender == me { client_id_text(row.client_id) } else { String::new() },
    }
}

/// A conversation of `me`. The partner is the other member, or `me` itself in its notes. A conversation of more than
/// two has none.
pub(super) fn partner(row: ConversationSummary, me: AccountId) -> pb::ChatPartner {
    let partner = match row.members.as_slice() {
        [only] => Some(only),
        [one, other] => Some(if one.account == me { other } else { one }),
        _ => None,
    };
    pb::ChatPartner {
        username: partner.map(|p| p.username.clone()).unwrap_or_default(),
        deleted: partner.is_some_and(|p| p.deleted),
        conversation_id: row.conversation.0,
        unread_count: row.unread,
        last_message: row.last_message.map(|last| message(last, me)),
        last_seq: row.last_seq.0,
        members: row.members.into_iter().map(member).collect(),
    }
}

/// An event as `me` may see it. A client resumes after `cursor`.
pub(super) fn event(event: &Event, me: AccountId, cursor: Revision) -> pb::SubscribeResponse {
    use pb::subscribe_response::Event as Wire;
    let conversation_id = event.conversation.0;
    let seqs = |seqs: &[chat::Seq]| seqs.iter().map(|seq| seq.0).collect();
    let wire = match &event.kind {
        EventKind::Message { seq, sender, sender_name, client_id, body, deleted } => {
            let message = pb::Message {
                message_id: event.revision.0,
                conversation_id,
                seq: seq.0,
                sender: sender_name.to_string(),
                body: if *deleted { String::new() } else { body.to_string() },
                time_ms: event.time.0,
                deleted: *deleted,
                status: pb::MessageStatus::Unspecified.into(),
                client_message_id: if *sender == me { client_id_text(*client_id) } else { String::new() },
            };
            let members = event.members.iter().map(|m| m.username.to_string()).collect();
            Wire::Message(pb::MessageEvent { message: Some(message), members })
        }
        EventKind::Receipt { member, member_name, delivered, read, shown } => {
            let read = if *member == me { *read } else { shown.unwrap_or_default() };
            Wire::Receipt(pb::ReceiptEvent {
                conversation_id,
                member: member_name.to_string(),
                delivered_seq: delivered.0,
                read_seq: read.0,
                time_ms: event.time.0,
            })
        }
        EventKind::DeletedForEveryone { seqs: gone } => {
            Wire::Deletion(pb::DeletionEvent { conversation_id, seqs: seqs(gone), for_everyone: true })
        }
        EventKind::DeletedForMember { member: _, seqs: gone } => {
            Wire::Deletion(pb::DeletionEvent { conversation_id, seqs: seqs(gone), for_everyone: false })
        }
        EventKind::AccountDeleted { member: _, member_name } => {
            Wire::AccountDeleted(pb::AccountDeletedEvent { conversation_id, member: member_name.to_string() })
        }
    };
    let traceparent = event.trace.map(|trace| trace.to_string()).unwrap_or_default();
    pb::SubscribeResponse { revision: cursor.0, event: Some(wire), traceparent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_uuids_in_any_text_form() {
        let text = "0190163d-8694-739b-aea5-966c26f8ad91";
        let id = client_id("client_message_id", text).unwrap();
        assert_eq!(client_id_text(id), text);
        for same in ["0190163d8694739baea5966c26f8ad91", "0190163D-8694-739B-AEA5-966C26F8AD91"] {
            assert_eq!(client_id("client_message_id", same), Ok(id));
        }
        for bad in ["", "1", "0190163d-8694-739b-aea5-966c26f8ad9", "not-a-uuid"] {
            assert_eq!(client_id("client_message_id", bad).unwrap_err().field, "client_message_id");
        }
    }
}
