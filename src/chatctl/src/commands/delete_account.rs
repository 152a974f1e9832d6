//! `chatctl delete-account`: deletes the user's own account, after a confirmation and with the password.

use clap::Args;

use crate::{
    commands::account::{confirm_deletion, print_deletion},
    context::Context,
    failure::Failure,
    prompt::read_password,
};

/// Delete the account and all its messages
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Skip the confirmation
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(context: &mut Context, Arguments { yes }: Arguments) -> Result<(), Failure> {
    let session = context.session().await?;
    if !yes {
        confirm_deletion(&session.user)?;
    }
    let password = read_password(false)?;
    let answer = session.client.delete_account(&password).await?;
    context.forget(&session)?;
    print_deletion(context, &session.user, answer.deleted_messages, answer.revision)
}
