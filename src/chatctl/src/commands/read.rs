//! `chatctl read`: shows the newest messages of a conversation.

use clap::Args;
use serde_json::{Value, json};

use crate::{
    commands::{
        conversation::{member_json, message_json, message_text, status},
        listing::plural,
    },
    context::Context,
    failure::Failure,
};
use client::{Consistency, ConversationPage, ReadHeader};

/// Read a conversation, the newest message last
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Partner of the conversation
    partner: String,
    /// Maximum number of messages (1-200)
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Only messages with a lower number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    before: u64,
    #[command(flatten)]
    freshness: Freshness,
}

/// Consistency of the read.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
struct Freshness {
    /// Read the node's local state, even without a majority, and report its age
    #[arg(long)]
    local: bool,
    /// Read a state of at least this revision
    #[arg(long, value_name = "REVISION")]
    at_least: Option<u64>,
}

impl Freshness {
    fn consistency(self) -> Consistency {
        match self {
            Self { local: true, .. } => Consistency::Local,
            Self { at_least: Some(revision), .. } => Consistency::AtLeast(revision),
            _ => Consistency::Linearizable,
        }
    }
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { partner, limit, before, freshness } = arguments;
    let session = context.session().await?;
    let page = session.client.read_conversation(&partner, before, limit, freshness.consistency()).await?;
    context.output.print(|| page_json(&page), || page_text(&page, freshness.local))?;
    Ok(())
}

fn page_text(page: &ConversationPage, local: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    if page.has_more
        && let Some(oldest) = page.messages.last()
    {
        lines.push(format!("(older messages: --before {})", oldest.seq));
    }
    // In chronological order: the newest comes last.
    lines.extend(page.messages.iter().rev().map(|message| {
        let status = status(message).map(|status| format!(" [{status}]")).unwrap_or_default();
        format!("{}{status}", message_text(message))
    }));
    let mut summary = format!("{}, {} unread", plural(page.total_count, "message"), page.unread_count);
    if local {
        let ReadHeader { age_ms, node, .. } = &page.header;
        summary.push_str(&match age_ms {
            Some(age) => format!("; as {node} knew it, at most {age} ms ago"),
            None => format!("; as {node} knows it, how old that is it cannot say"),
        });
    }
    lines.push(summary);
    lines.join("\n")
}

fn page_json(page: &ConversationPage) -> Value {
    json!({
        "messages": page.messages.iter().map(message_json).collect::<Vec<_>>(),
        "conversation_id": page.conversation_id,
        "total_count": page.total_count,
        "unread_count": page.unread_count,
        "last_seq": page.last_seq,
        "has_more": page.has_more,
        "members": page.members.iter().map(member_json).collect::<Vec<_>>(),
        "header": header_json(&page.header),
    })
}

fn header_json(header: &ReadHeader) -> Value {
    json!({ "revision": header.revision, "age_ms": header.age_ms, "node": header.node })
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::Message;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let body = "hello\n2026-01-01T00:00:00Z  #2 id 9  bob: I owe you\x1b[2J".to_owned();
        let message = Message { seq: 1, message_id: 8, sender: "alice".into(), body, ..Default::default() };
        let text = message_text(&message);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let page = ConversationPage { messages: vec![message], total_count: 1, ..Default::default() };
        let text = page_text(&page, false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("\n1 message, 0 unread"), "{text}");
    }
}
