//! `chatctl listen`: prints undelivered messages, then events as they happen, until Ctrl-C.

use clap::Args;
use serde_json::{Value, json};
use tokio::signal;

use crate::{
    commands::conversation::{message_json, message_text},
    context::Context,
    failure::Failure,
};
use client::{Event, EventKind, Options};
use terminal::time;

/// Print undelivered messages, then events as they happen
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print the events after this revision instead
    #[arg(long, value_name = "REVISION")]
    after: Option<u64>,
    /// Exit after this many messages (receipts and deletions do not count)
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Do not acknowledge the delivery of the messages
    #[arg(long)]
    no_ack: bool,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { after, count, no_ack } = arguments;
    let session = context.session_with(|options| Options { acknowledge: !no_ack, ..options }).await?;
    let mut events = session.client.events(after);
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = events.next() => event,
            interrupted = signal::ctrl_c() => { interrupted?; None }
        };
        let Some(event) = event else { break };
        let event = event?;
        if matches!(event.kind, EventKind::Message(_)) {
            left -= 1;
        }
        context.output.print(|| event_json(&event), || event_text(&event))?;
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
    let (name, value) = match &event.kind {
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
    json!({ "revision": event.revision, name: value })
}
