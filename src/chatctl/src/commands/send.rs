//! `chatctl send`: sends a message.

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use crate::{context::Context, failure::Failure, prompt::read_text};
use terminal::time;

/// Send a message
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Recipient
    to: String,
    /// Text of the message [default: read from standard input]
    pub(crate) text: Option<String>,
    /// Id of the message (a UUID); sends with the same id store one message
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<Uuid>,
}

pub(super) async fn run(context: &mut Context, Arguments { to, text, id }: Arguments) -> Result<(), Failure> {
    let text = text.map_or_else(read_text, Ok)?;
    let session = context.session().await?;
    let id = id.unwrap_or_else(Uuid::now_v7);
    let sent = session.client.send_message_with_id(id, &to, &text).await.map_err(|mut error| {
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
