//! `chatctl register`: creates an account, and opens a session.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure, prompt::read_password};
use terminal::time;

/// Create an account and log in
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// 1-32 characters of [a-z0-9_.-]
    name: String,
    /// Invitation code, if the cluster requires one
    #[arg(long, value_name = "CODE", default_value = "")]
    invitation: String,
}

pub(super) async fn run(context: &mut Context, Arguments { name, invitation }: Arguments) -> Result<(), Failure> {
    context.session_file()?;
    let password = read_password(true)?;
    let client = context.connect().await?;
    let created = client.create_account_with_invitation(&name, &password, &invitation).await?;
    let session = context.log_in(&client, &name, &password).await?;
    context.output.print(
        || {
            json!({ "username": name, "account_id": created.account_id, "revision": created.revision,
                    "expires_at_ms": session.expires_at_ms, "unread_count": session.unread_count })
        },
        || format!("account {name} made; logged in until {}", time(session.expires_at_ms)),
    )?;
    Ok(())
}
