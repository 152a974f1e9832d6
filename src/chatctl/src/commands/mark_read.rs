//! `chatctl mark-read`: marks the messages of a conversation read.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure};

/// Mark a conversation read
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Partner of the conversation
    partner: String,
    /// Number of the last message to mark [default: all]
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    up_to: u64,
}

pub(super) async fn run(context: &mut Context, Arguments { partner, up_to }: Arguments) -> Result<(), Failure> {
    let answer = context.session().await?.client.mark_read(&partner, up_to).await?;
    context.output.print(
        || json!({ "read_seq": answer.read_seq, "unread_count": answer.unread_count, "revision": answer.revision }),
        || format!("read up to #{}; {} unread", answer.read_seq, answer.unread_count),
    )?;
    Ok(())
}
