//! `chatctl logout`: ends the session, and removes it from the session file.

use clap::Args;
use serde_json::json;
use tonic::Code;

use crate::{context::Context, failure::Failure};

/// End the session
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Also end all other sessions of the account
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(context: &mut Context, Arguments { all }: Arguments) -> Result<(), Failure> {
    let session = context.session().await?;
    match session.client.logout(all).await {
        Ok(closed) => {
            context.forget(&session)?;
            context.output.print(
                || json!({ "username": session.user, "closed_sessions": closed }),
                || format!("{} logged out", session.user),
            )?;
            Ok(())
        }
        Err(error) => {
            if error.code == Code::Unauthenticated {
                // The session had ended before, so there is nothing to keep.
                context.forget(&session)?;
            }
            Err(error.into())
        }
    }
}
