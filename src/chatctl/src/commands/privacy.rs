//! `chatctl privacy`: shows and changes the privacy settings of the account.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::{context::Context, failure::Failure};
use client::PrivacyChange;

/// Show or set what others see of the account, and what is recorded of it
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the settings
    Show,
    /// Change settings; options that are not given keep their values
    #[group(required = true, multiple = true)]
    Set {
        /// Exchange read receipts; off hides yours from others, and theirs from you
        #[arg(long, value_name = "ON|OFF")]
        read_receipts: Option<Switch>,
        /// Record when sessions are used; off removes what was recorded
        #[arg(long, value_name = "ON|OFF")]
        session_activity: Option<Switch>,
    },
}

/// A setting that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

pub(super) async fn run(context: &mut Context, Arguments { action }: Arguments) -> Result<(), Failure> {
    let client = context.session().await?.client;
    if let Action::Set { read_receipts, session_activity } = action {
        let is_on = |switch| switch == Switch::On;
        let (read_receipts, session_activity) = (read_receipts.map(is_on), session_activity.map(is_on));
        client.set_privacy(PrivacyChange { read_receipts, session_activity }).await?;
    }
    let settings = client.privacy().await?;
    let word = |is_on| if is_on { "on" } else { "off" };
    context.output.print(
        || json!({ "read_receipts": settings.read_receipts, "session_activity": settings.session_activity }),
        || {
            let (receipts, activity) = (word(settings.read_receipts), word(settings.session_activity));
            format!("read receipts     {receipts}\nsession activity  {activity}")
        },
    )?;
    Ok(())
}
