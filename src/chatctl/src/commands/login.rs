//! `chatctl login`: opens a session, and stores it for further commands.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure, prompt::read_password};
use terminal::time;

/// Log in and keep the session
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the account
    name: String,
}

pub(super) async fn run(context: &mut Context, Arguments { name }: Arguments) -> Result<(), Failure> {
    context.session_file()?;
    let password = read_password(false)?;
    let client = context.connect().await?;
    let session = context.log_in(&client, &name, &password).await?;
    context.output.print(
        || {
            json!({ "username": name, "expires_at_ms": session.expires_at_ms,
                    "unread_count": session.unread_count })
        },
        || format!("logged in as {name} until {}; {} unread", time(session.expires_at_ms), session.unread_count),
    )?;
    Ok(())
}
