//! The operator's commands about accounts, through a node's admin socket: accounts, settings, invites.

use std::path::Path;

use serde_json::json;
use tonic::transport::Channel;

use super::{
    ctl::{Context, Failure, ask, read_password},
    ctl_admin::{admin_error, channel, request},
    ctl_args::{Accounts, Invites, OneAccount, RegistrationMode, Settings},
    output::time,
};
use crate::proto::chat::v1::{
    AccountState, CreateInvitationRequest, EndSessionsRequest, FindAccountsRequest, GetSettingsRequest,
    ListInvitationsRequest, PurgeAccountRequest, Registration, ResetPasswordRequest, RevokeInvitationRequest,
    SetAccountDisabledRequest, SetRegistrationRequest, ShowAccountRequest,
    account_admin_service_client::AccountAdminServiceClient,
};

const PAGE: u32 = 200;

async fn connect(context: &Context, socket: &Path) -> Result<AccountAdminServiceClient<Channel>, Failure> {
    Ok(AccountAdminServiceClient::new(channel(context, socket).await?))
}

pub(super) async fn accounts(context: &mut Context, action: Accounts) -> Result<(), Failure> {
    match action {
        Accounts::List { query, socket } => list(context, query, &socket.path).await,
        Accounts::Show(account) => show(context, account).await,
        Accounts::ResetPassword(account) => reset_password(context, account).await,
        Accounts::Disable(account) => set_disabled(context, account, true).await,
        Accounts::Enable(account) => set_disabled(context, account, false).await,
        Accounts::Logout(account) => logout(context, account).await,
        Accounts::Delete { account, yes } => delete(context, account, yes).await,
    }
}

/// Returns the special state of an account, if it has one.
fn state(account: &AccountState) -> &'static str {
    match (account.deleted, account.disabled) {
        (true, _) => "deleted",
        (false, true) => "disabled",
        (false, false) => "active",
    }
}

async fn list(context: &mut Context, query: String, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let mut page_token = String::new();
    loop {
        let message = FindAccountsRequest { query: query.clone(), page_size: PAGE, page_token };
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

async fn show(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let mut client = connect(context, &account.socket.path).await?;
    let message = ShowAccountRequest { username: account.name };
    let answer = client.show_account(request(context, message)).await.map_err(admin_error)?.into_inner();
    let found = answer.account.unwrap_or_default();
    let sessions: Vec<_> = answer
        .sessions
        .iter()
        .map(|session| {
            json!({ "session_id": session.session_id, "created_ms": session.created_ms, "used_ms": session.used_ms,
                    "expires_at_ms": session.expires_at_ms })
        })
        .collect();
    context.output.print(
        || {
            json!({ "username": found.username, "account_id": found.account_id, "state": state(&found),
                    "created_ms": answer.created_ms, "sessions": sessions })
        },
        || {
            let head = format!("{}: {}, created {}", found.username, state(&found), time(answer.created_ms));
            let lines = answer.sessions.iter().map(|session| {
                let used =
                    if session.used_ms == 0 { String::new() } else { format!("  used {}", time(session.used_ms)) };
                format!("session {}  opened {}{used}", session.session_id, time(session.created_ms))
            });
            std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
        },
    )?;
    Ok(())
}

async fn reset_password(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let password = read_password(true)?;
    let mut client = connect(context, &account.socket.path).await?;
    let message = ResetPasswordRequest { username: account.name.clone(), password };
    let answer = client.reset_password(request(context, message)).await.map_err(admin_error)?.into_inner();
    closed(context, &account.name, "password replaced", answer.closed_sessions)
}

async fn set_disabled(context: &mut Context, account: OneAccount, disabled: bool) -> Result<(), Failure> {
    let mut client = connect(context, &account.socket.path).await?;
    let message = SetAccountDisabledRequest { username: account.name.clone(), disabled };
    let answer = client.set_account_disabled(request(context, message)).await.map_err(admin_error)?.into_inner();
    closed(context, &account.name, if disabled { "disabled" } else { "enabled" }, answer.closed_sessions)
}

async fn logout(context: &mut Context, account: OneAccount) -> Result<(), Failure> {
    let mut client = connect(context, &account.socket.path).await?;
    let message = EndSessionsRequest { username: account.name.clone() };
    let answer = client.end_sessions(request(context, message)).await.map_err(admin_error)?.into_inner();
    closed(context, &account.name, "logged out", answer.closed_sessions)
}

fn closed(context: &mut Context, name: &str, done: &str, sessions: u64) -> Result<(), Failure> {
    context.output.print(
        || json!({ "username": name, "closed_sessions": sessions }),
        || format!("{name} {done}; ended sessions: {sessions}"),
    )?;
    Ok(())
}

async fn delete(context: &mut Context, account: OneAccount, yes: bool) -> Result<(), Failure> {
    let name = account.name;
    if !yes && ask(&format!("This deletes {name} and all messages it sent. Type the name to go on: "))? != name {
        return Err(Failure::Usage("not the name of the account: nothing was deleted".to_owned()));
    }
    let mut client = connect(context, &account.socket.path).await?;
    let message = PurgeAccountRequest { username: name.clone() };
    let answer = client.purge_account(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "username": name, "deleted_messages": answer.deleted_messages, "revision": answer.revision }),
        || format!("account {name} deleted, with {} messages", answer.deleted_messages),
    )?;
    Ok(())
}

pub(super) async fn settings(context: &mut Context, action: Settings, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    let value = match action {
        Settings::Get { name: _ } => {
            let answer = client.get_settings(request(context, GetSettingsRequest {})).await.map_err(admin_error)?;
            match answer.into_inner().registration() {
                Registration::Closed => "closed",
                Registration::Invitation => "invitation",
                Registration::Open | Registration::Unspecified => "open",
            }
        }
        Settings::Set { name: _, value } => {
            let (registration, value) = match value {
                RegistrationMode::Open => (Registration::Open, "open"),
                RegistrationMode::Invitation => (Registration::Invitation, "invitation"),
                RegistrationMode::Closed => (Registration::Closed, "closed"),
            };
            let message = SetRegistrationRequest { registration: registration.into() };
            client.set_registration(request(context, message)).await.map_err(admin_error)?;
            value
        }
    };
    context.output.print(|| json!({ "registration": value }), || format!("registration {value}"))?;
    Ok(())
}

pub(super) async fn invites(context: &mut Context, action: Invites, socket: &Path) -> Result<(), Failure> {
    let mut client = connect(context, socket).await?;
    match action {
        Invites::Create { uses, hours } => {
            let message = CreateInvitationRequest { uses, hours };
            let made = client.create_invitation(request(context, message)).await.map_err(admin_error)?.into_inner();
            context.output.print(
                || {
                    json!({ "code": made.code, "invitation_id": made.invitation_id,
                            "expires_at_ms": made.expires_at_ms })
                },
                || format!("{}  (id {}, until {})", made.code, made.invitation_id, time(made.expires_at_ms)),
            )?;
        }
        Invites::List => {
            let message = ListInvitationsRequest {};
            let answer = client.list_invitations(request(context, message)).await.map_err(admin_error)?;
            for invitation in answer.into_inner().invitations {
                context.output.print(
                    || {
                        json!({ "invitation_id": invitation.invitation_id, "uses": invitation.uses,
                                "used": invitation.used, "created_ms": invitation.created_ms,
                                "expires_at_ms": invitation.expires_at_ms })
                    },
                    || {
                        let until = time(invitation.expires_at_ms);
                        let (used, uses) = (invitation.used, invitation.uses);
                        format!("{}  {used} of {uses} used  until {until}", invitation.invitation_id)
                    },
                )?;
            }
        }
        Invites::Revoke { id } => {
            let message = RevokeInvitationRequest { invitation_id: id };
            let answer = client.revoke_invitation(request(context, message)).await.map_err(admin_error)?.into_inner();
            let text = if answer.revoked { "withdrawn" } else { "was not there" };
            context.output.print(
                || json!({ "invitation_id": id, "revoked": answer.revoked }),
                || format!("invitation {id} {text}"),
            )?;
        }
    }
    Ok(())
}
