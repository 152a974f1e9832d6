//! `chatctl sessions`: lists the sessions of the account, and ends one.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{commands::account::last_use, context::Context, failure::Failure};
use terminal::time;

/// List the sessions of the account, or end one
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the sessions
    List,
    /// End a session and remove its record
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: u64,
    },
}

pub(super) async fn run(context: &mut Context, Arguments { action }: Arguments) -> Result<(), Failure> {
    let client = context.session().await?.client;
    match action {
        Action::List => {
            for open in client.sessions().await? {
                context.output.print(
                    || {
                        json!({
                            "session_id": open.session_id,
                            "created_ms": open.created_ms,
                            "used_ms": open.used_ms.unwrap_or(0),
                            "expires_at_ms": open.expires_at_ms,
                            "current": open.current,
                        })
                    },
                    || {
                        let mark = if open.current { "  (this one)" } else { "" };
                        let used = last_use(open.used_ms);
                        format!("{}  opened {}{used}{mark}", open.session_id, time(open.created_ms))
                    },
                )?;
            }
        }
        Action::Revoke { id } => {
            client.revoke_session(id).await?;
            context.output.print(|| json!({ "session_id": id }), || format!("session {id} ended"))?;
        }
    }
    Ok(())
}
