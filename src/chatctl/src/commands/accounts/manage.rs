//! The operator's actions on accounts, through a node's admin socket.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    commands::{
        account::{confirm_deletion, last_use, print_deletion},
        operator::{Socket, account_admin, admin_error, request},
    },
    context::Context,
    failure::Failure,
    prompt::read_password,
};
use proto::chat::v1::{
    AccountState, AddAccountRequest, EndSessionsRequest, FindAccountsRequest, PurgeAccountRequest,
    ResetPasswordRequest, SetAccountDisabledRequest, ShowAccountRequest,
};
use terminal::time;

/// Number of accounts that one call returns.
const PAGE_SIZE: u32 = 200;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List accounts, including disabled and deleted ones
    List {
        /// Text that the names contain
        #[arg(default_value = "")]
        query: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Create an account without a password, as a bot needs it, and print the token of its first session
    Add {
        #[command(flatten)]
        account: OneAccount,
        /// Invitation code, if registration needs one
        #[arg(long, value_name = "CODE", default_value = "", hide_default_value = true)]
        invitation: String,
    },
    /// Show an account and its sessions
    Show(OneAccount),
    /// Replace the password (prompted for, or read from standard input) and end all sessions
    ResetPassword(OneAccount),
    /// Forbid logins and end all sessions
    Disable(OneAccount),
    /// Allow logins again
    Enable(OneAccount),
    /// End all sessions
    Logout(OneAccount),
    /// Delete an account and all its messages
    Delete {
        #[command(flatten)]
        account: OneAccount,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// An account, and the admin socket to use.
#[derive(Debug, Clone, Args)]
pub(super) struct OneAccount {
    /// Name of the account
    name: String,
    #[command(flatten)]
    socket: Socket,
}

pub(super) async fn run(context: &mut Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { query, socket } => list(context, query, &socket.path).await,
        Action::Add { account, invitation } => add(context, account, invitation).await,
        Action::Show(account) => show(context, account).await,
        Action::ResetPassword(account) => reset_password(context, account).await,
        Action::Disable(account) => set_disabled(context, account, true).await,
        Action::Enable(account) => set_disabled(context, account, false).await,
        Action::Logout(account) => logout(context, account).await,
        Action::Delete { account, yes } => delete(context, account, yes).await,
    }
}

fn state(account: &AccountState) -> &'static str {
    match (account.deleted, account.disabled) {
        (true, _) => "deleted",
        (false, true) => "disabled",
        (false, false) => "active",
    }
}

async fn list(context: &mut Context, query: String, socket: &Path) -> Result<(), Failure> {
    let mut client = account_admin(context, socket).await?;
    let mut page_token = String::new();
    loop {
        let message = FindAccountsRequest { query: query.clone(), page_size: PAGE_SIZE, page_token };
        let page = client.find_accounts(request(context, message)).await.map_err(admin_error)?.into_inner();
        for account in page.accounts {
            context.output.print(
                || json!({ "username": account.username, "account_id": account.account_id, "state": state(&account) }),
                || format!("{:<32}  {}", account.username, state(&account)),
            )?;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

async fn add(context: &mut Context, account: OneAccount, invitation: String) -> Result<(), Failure> {
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = AddAccountRequest { username: account.name.clone(), invitation };
    let added = client.add_account(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || {
            json!({ "username": account.name, "account_id": added.account_id, "token": added.token,
                    "expires_at_ms": added.expires_at_ms })
        },
        || added.token.clone(),
    )?;
    Ok(())
}

async fn show(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = ShowAccountRequest { username: account.name };
    let answer = client.show_account(request(context, message)).await.map_err(admin_error)?.into_inner();
    let found = answer.account.unwrap_or_default();
    let sessions = &answer.sessions;
    context.output.print(
        || {
            let sessions = sessions.iter().map(|session| {
                json!({ "session_id": session.session_id, "created_ms": session.created_ms,
                        "used_ms": session.used_ms, "expires_at_ms": session.expires_at_ms })
            });
            json!({ "username": found.username, "account_id": found.account_id, "state": state(&found),
                    "created_ms": answer.created_ms, "sessions": sessions.collect::<Vec<_>>() })
        },
        || {
            let head = format!("{}: {}, created {}", found.username, state(&found), time(answer.created_ms));
            let lines = sessions.iter().map(|session| {
                let (opened, used) = (time(session.created_ms), last_use(Some(session.used_ms).filter(|ms| *ms > 0)));
                format!("session {}  opened {opened}{used}", session.session_id)
            });
            std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
        },
    )?;
    Ok(())
}

async fn reset_password(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let password = read_password(true)?;
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = ResetPasswordRequest { username: account.name.clone(), password };
    let answer = client.reset_password(request(context, message)).await.map_err(admin_error)?.into_inner();
    print_change(context, &account.name, "password replaced", answer.closed_sessions)
}

async fn set_disabled(context: &mut Context, account: OneAccount, disabled: bool) -> Result<(), Failure> {
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = SetAccountDisabledRequest { username: account.name.clone(), disabled };
    let answer = client.set_account_disabled(request(context, message)).await.map_err(admin_error)?.into_inner();
    print_change(context, &account.name, if disabled { "disabled" } else { "enabled" }, answer.closed_sessions)
}

async fn logout(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = EndSessionsRequest { username: account.name.clone() };
    let answer = client.end_sessions(request(context, message)).await.map_err(admin_error)?.into_inner();
    print_change(context, &account.name, "logged out", answer.closed_sessions)
}

/// Prints a change of an account, and how many sessions it ended.
fn print_change(context: &mut Context, name: &str, change: &str, closed_sessions: u64) -> Result<(), Failure> {
    context.output.print(
        || json!({ "username": name, "closed_sessions": closed_sessions }),
        || format!("{name} {change}; ended sessions: {closed_sessions}"),
    )?;
    Ok(())
}

async fn delete(context: &mut Context, account: OneAccount, yes: bool) -> Result<(), Failure> {
    if !yes {
        confirm_deletion(&account.name)?;
    }
    let mut client = account_admin(context, &account.socket.path).await?;
    let message = PurgeAccountRequest { username: account.name.clone() };
    let answer = client.purge_account(request(context, message)).await.map_err(admin_error)?.into_inner();
    print_deletion(context, &account.name, answer.deleted_messages, answer.revision)
}
