//! `chatctl accounts`: finds accounts as a user (`search`), or manages them as an operator (`manage`).

mod manage;
mod search;

use clap::Args;

use crate::{context::Context, failure::Failure};

/// List accounts; as an operator, manage them (through admin.sock in a node's data directory)
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// Text that the names contain
    #[arg(default_value = "")]
    query: String,
    #[command(subcommand)]
    action: Option<manage::Action>,
}

pub(super) async fn run(context: &mut Context, Arguments { query, action }: Arguments) -> Result<(), Failure> {
    match action {
        None => search::run(context, &query).await,
        Some(action) => manage::run(context, action).await,
    }
}
