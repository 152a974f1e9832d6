//! `chatctl delete-messages`: deletes messages, for the user or for everyone.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure};

/// Delete messages, for you alone by default
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Message ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u64>,
    /// Delete your own messages for everyone
    #[arg(long)]
    for_everyone: bool,
}

pub(super) async fn run(context: &mut Context, Arguments { ids, for_everyone }: Arguments) -> Result<(), Failure> {
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
