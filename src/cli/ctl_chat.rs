//! Messages and people: send, read, listen, accounts, partners, mark-read, delete-messages.

use std::cmp::Reverse;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ctl::{Context, Failure, read_text},
    ctl_args::Freshness,
    output::{body, table, time},
};
use crate::{
    chat::limits::PAGE_SIZE_MAX,
    client::{
        Consistency, Event, EventKind, Options,
        types::{Account, ChatPartner, Member, Message, MessageStatus, ReadConversationResponse, ReadHeader},
    },
};

/// Maximum number of rows in a list. Users search for more.
const ROWS_MAX: usize = 1000;

pub(super) async fn send(
    context: &mut Context,
    to: &str,
    text: Option<String>,
    id: Option<Uuid>,
) -> Result<(), Failure> {
    let text = text.map_or_else(read_text, Ok)?;
    let session = context.session().await?;
    let id = id.unwrap_or_else(Uuid::now_v7);
    let sent = session.client.send_message_with_id(id, to, &text).await.map_err(|mut error| {
        if error.outcome_unknown {
            error.message = format!("{}; to settle it, send the same with --id {id}", error.message);
        }
        error
    })?;
    context.output.print(
        || {
            json!({ "message_id": sent.message_id, "conversation_id": sent.conversation_id, "seq": sent.seq,
                    "revision": sent.revision, "time_ms": sent.time_ms, "repeated": sent.repeated,
                    "client_message_id": sent.client_message_id.to_string() })
        },
        || {
            let repeated = if sent.repeated { " (it had been sent before)" } else { "" };
            format!("sent to {to} as #{}, id {}, {}{repeated}", sent.seq, sent.message_id, time(sent.time_ms))
        },
    )?;
    Ok(())
}

pub(super) async fn read(
    context: &mut Context,
    partner: &str,
    limit: u32,
    before: u64,
    freshness: Freshness,
) -> Result<(), Failure> {
    let consistency = match freshness {
        Freshness { local: true, .. } => Consistency::Local,
        Freshness { at_least: Some(revision), .. } => Consistency::AtLeast(revision),
        _ => Consistency::Linearizable,
    };
    let session = context.session().await?;
    let page = session.client.read_conversation(partner, before, limit, consistency).await?;
    let text = conversation_text(&page, freshness.local);
    context.output.print(|| conversation_json(&page), || text)?;
    Ok(())
}

fn conversation_text(page: &ReadConversationResponse, local: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    if page.has_more
        && let Some(oldest) = page.messages.last()
    {
        lines.push(format!("(older messages: --before {})", oldest.seq));
    }
    // In chronological order: the newest comes last.
    lines.extend(page.messages.iter().rev().map(|message| {
        let status = match message.status() {
            MessageStatus::Unspecified => "",
            MessageStatus::Sent => " [sent]",
            MessageStatus::Delivered => " [delivered]",
            MessageStatus::Read => " [read]",
        };
        format!("{}{status}", message_text(message))
    }));
    let mut summary = format!("{}, {} unread", several(page.total_count, "message"), page.unread_count);
    if let (true, Some(header)) = (local, &page.header) {
        summary.push_str(&match header.age_ms {
            Some(age) => format!("; as {} knew it, at most {age} ms ago", header.node),
            None => format!("; as {} knows it, how old that is it cannot say", header.node),
        });
    }
    lines.push(summary);
    lines.join("\n")
}

fn conversation_json(page: &ReadConversationResponse) -> Value {
    json!({
        "messages": page.messages.iter().map(message_json).collect::<Vec<_>>(),
        "conversation_id": page.conversation_id,
        "total_count": page.total_count,
        "unread_count": page.unread_count,
        "last_seq": page.last_seq,
        "has_more": page.has_more,
        "members": page.members.iter().map(member_json).collect::<Vec<_>>(),
        "header": header_json(page.header.as_ref()),
    })
}

fn message_text(message: &Message) -> String {
    let body = if message.deleted { "(deleted)".into() } else { body(&message.body) };
    format!("{}  #{} id {}  {}: {body}", time(message.time_ms), message.seq, message.message_id, message.sender)
}

fn message_json(message: &Message) -> Value {
    let status = match message.status() {
        MessageStatus::Unspecified => Value::Null,
        MessageStatus::Sent => "sent".into(),
        MessageStatus::Delivered => "delivered".into(),
        MessageStatus::Read => "read".into(),
    };
    json!({ "message_id": message.message_id, "conversation_id": message.conversation_id, "seq": message.seq,
            "sender": message.sender, "body": message.body, "time_ms": message.time_ms, "deleted": message.deleted,
            "status": status, "client_message_id": message.client_message_id })
}

fn member_json(member: &Member) -> Value {
    json!({ "username": member.username, "deleted": member.deleted, "delivered_seq": member.delivered_seq,
            "read_seq": member.read_seq })
}

fn header_json(header: Option<&ReadHeader>) -> Value {
    header.map_or(Value::Null, |h| json!({ "revision": h.revision, "age_ms": h.age_ms, "node": h.node }))
}

pub(super) async fn listen(
    context: &mut Context,
    after: Option<u64>,
    count: Option<u64>,
    acknowledge: bool,
) -> Result<(), Failure> {
    let session = context.session_with(|options| Options { acknowledge, ..options }).await?;
    let mut events = session.client.events(after);
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = events.next() => event,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; None }
        };
        let Some(event) = event else { break };
        let event = event?;
        if matches!(event.kind, EventKind::Message(_)) {
            left -= 1;
        }
        let text = event_text(&event);
        context.output.print(|| event_json(&event), || text)?;
    }
    events.close().await;
    Ok(())
}

fn event_text(event: &Event) -> String {
    match &event.kind {
        EventKind::Message(message) => message_text(message),
        EventKind::Receipt(receipt) => format!(
            "{}  {} has received up to #{} and read up to #{} of conversation {}",
            time(receipt.time_ms),
            receipt.member,
            receipt.delivered_seq,
            receipt.read_seq,
            receipt.conversation_id
        ),
        EventKind::Deletion(deletion) => {
            let seqs: Vec<String> = deletion.seqs.iter().map(|seq| format!("#{seq}")).collect();
            let whom = if deletion.for_everyone { "for everyone" } else { "for you" };
            format!("deleted {whom} in conversation {}: {}", deletion.conversation_id, seqs.join(", "))
        }
        EventKind::AccountDeleted(gone) => {
            format!("{} deleted the account (conversation {})", gone.member, gone.conversation_id)
        }
    }
}

fn event_json(event: &Event) -> Value {
    let (name, what) = match &event.kind {
        EventKind::Message(message) => ("message", message_json(message)),
        EventKind::Receipt(r) => (
            "receipt",
            json!({ "conversation_id": r.conversation_id, "member": r.member, "delivered_seq": r.delivered_seq,
                    "read_seq": r.read_seq, "time_ms": r.time_ms }),
        ),
        EventKind::Deletion(d) => (
            "deletion",
            json!({ "conversation_id": d.conversation_id, "seqs": d.seqs, "for_everyone": d.for_everyone }),
        ),
        EventKind::AccountDeleted(gone) => {
            ("account_deleted", json!({ "conversation_id": gone.conversation_id, "member": gone.member }))
        }
    };
    json!({ "revision": event.revision, name: what })
}

pub(super) async fn accounts(context: &mut Context, query: &str) -> Result<(), Failure> {
    let client = context.session().await?.client;
    let mut found: Vec<Account> = Vec::new();
    let mut token = String::new();
    let total = loop {
        let page = client.list_accounts(query, PAGE_SIZE_MAX, &token, Consistency::Linearizable).await?;
        found.extend(page.accounts);
        token = page.next_page_token;
        if token.is_empty() || found.len() >= ROWS_MAX {
            break page.total_count;
        }
    };
    let json = |a: &Account| json!({ "account_id": a.account_id, "username": a.username, "deleted": a.deleted });
    context.output.print(
        || json!({ "accounts": found.iter().map(json).collect::<Vec<_>>(), "total_count": total }),
        || {
            let line = |a: &Account| if a.deleted { format!("{} (deleted)", a.username) } else { a.username.clone() };
            let mut lines: Vec<String> = found.iter().map(line).collect();
            lines.push(counted(found.len(), total, "account"));
            lines.join("\n")
        },
    )?;
    Ok(())
}

fn counted(shown: usize, total: u64, what: &str) -> String {
    let all = several(total, what);
    if shown as u64 == total { all } else { format!("{shown} of {all}") }
}

/// Formats a count, as in "1 message", "2 messages".
fn several(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

pub(super) async fn partners(context: &mut Context) -> Result<(), Failure> {
    let client = context.session().await?.client;
    let mut found: Vec<ChatPartner> = Vec::new();
    let mut token = String::new();
    let total = loop {
        let page = client.list_chat_partners(PAGE_SIZE_MAX, &token, Consistency::Linearizable).await?;
        // A conversation that moved while the list was read appears again: the later entry replaces the earlier one.
        for partner in page.partners {
            found.retain(|earlier| earlier.conversation_id != partner.conversation_id);
            found.push(partner);
        }
        token = page.next_page_token;
        if token.is_empty() || found.len() >= ROWS_MAX {
            break page.total_count;
        }
    };
    found.sort_by_key(|partner| Reverse(partner.last_message.as_ref().map_or(0, |message| message.message_id)));
    let text = partners_text(&found, total);
    let json = |p: &ChatPartner| {
        json!({ "username": p.username, "deleted": p.deleted, "conversation_id": p.conversation_id,
                "unread_count": p.unread_count, "last_seq": p.last_seq,
                "last_message": p.last_message.as_ref().map(message_json),
                "members": p.members.iter().map(member_json).collect::<Vec<_>>() })
    };
    context
        .output
        .print(|| json!({ "partners": found.iter().map(json).collect::<Vec<_>>(), "total_count": total }), || text)?;
    Ok(())
}

fn partners_text(partners: &[ChatPartner], total: u64) -> String {
    /// Maximum length of the shown part of the last message, in characters.
    const SHOWN_MAX: usize = 60;
    let mut rows = vec![["PARTNER", "UNREAD", "LAST", ""].map(str::to_owned).to_vec()];
    for partner in partners {
        let name = if partner.deleted { format!("{} (deleted)", partner.username) } else { partner.username.clone() };
        let (when, what) = match &partner.last_message {
            Some(message) if message.deleted => (time(message.time_ms), "(deleted)".to_owned()),
            Some(message) => {
                let first = message.body.lines().next().unwrap_or_default();
                let short: String = first.chars().take(SHOWN_MAX).collect();
                (time(message.time_ms), format!("{}: {}", message.sender, body(&short)))
            }
            None => Default::default(),
        };
        rows.push(vec![name, partner.unread_count.to_string(), when, what]);
    }
    format!("{}\n{}", table(&rows), counted(partners.len(), total, "partner"))
}

pub(super) async fn mark_read(context: &mut Context, partner: &str, up_to: u64) -> Result<(), Failure> {
    let answer = context.session().await?.client.mark_read(partner, up_to).await?;
    context.output.print(
        || json!({ "read_seq": answer.read_seq, "unread_count": answer.unread_count, "revision": answer.revision }),
        || format!("read up to #{}; {} unread", answer.read_seq, answer.unread_count),
    )?;
    Ok(())
}

pub(super) async fn delete(context: &mut Context, ids: Vec<u64>, for_everyone: bool) -> Result<(), Failure> {
    let answer = context.session().await?.client.delete_messages(ids, for_everyone).await?;
    context.output.print(
        || {
            json!({ "deleted_count": answer.deleted_count, "ignored_count": answer.ignored_count,
                    "revision": answer.revision })
        },
        || format!("{} deleted, {} ignored", answer.deleted_count, answer.ignored_count),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let body = "hello\n2026-01-01T00:00:00Z  #2 id 9  bob: I owe you\x1b[2J".to_owned();
        let message = Message { seq: 1, message_id: 8, sender: "alice".into(), body, ..Default::default() };
        let text = message_text(&message);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let page = ReadConversationResponse { messages: vec![message], total_count: 1, ..Default::default() };
        let text = conversation_text(&page, false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("\n1 message, 0 unread"), "{text}");
    }

    #[test]
    fn one_is_not_several() {
        assert_eq!([0, 1, 2].map(|count| several(count, "partner")), ["0 partners", "1 partner", "2 partners"]);
        assert_eq!(
            (counted(1, 1, "account"), counted(1, 2, "account")),
            ("1 account".into(), "1 of 2 accounts".into())
        );
    }
}
