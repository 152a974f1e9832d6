//! `chatctl password`: changes the password of the account.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure, prompt::prompt_password};

/// Change the password, and end the account's other sessions. Without a terminal, the first line of standard input
/// is the old password and the second line the new one
#[derive(Debug, Args)]
pub(crate) struct Arguments;

pub(super) async fn run(context: &mut Context, _: Arguments) -> Result<(), Failure> {
    let session = context.session().await?;
    let old = prompt_password("Password: ", false)?;
    let new = prompt_password("New password: ", true)?;
    let answer = session.client.change_password(&old, &new).await?;
    context.output.print(
        || json!({ "username": session.user, "closed_sessions": answer.closed_sessions, "revision": answer.revision }),
        || format!("password of {} changed; other sessions closed: {}", session.user, answer.closed_sessions),
    )?;
    Ok(())
}
