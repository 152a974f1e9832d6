//! Accounts and sessions: register, login, logout, password, sessions, privacy, delete-account.

use serde_json::json;

use super::{
    ctl::{Context, Failure, ask, prompt_password, read_password},
    ctl_args,
    output::time,
    session_file::Session,
};
use crate::{client::Client, proto::chat::v1::SetPrivacyRequest};

pub(super) async fn register(context: &mut Context, name: &str, invitation: &str) -> Result<(), Failure> {
    context.file()?;
    let password = read_password(true)?;
    let client = context.connect().await?;
    let created = client.create_account_with_invitation(name, &password, invitation).await?;
    let (token_expires, unread) = open_session(context, &client, name, &password).await?;
    context.output.print(
        || {
            json!({ "username": name, "account_id": created.account_id, "revision": created.revision,
                    "expires_at_ms": token_expires, "unread_count": unread })
        },
        || format!("account {name} made; logged in until {}", time(token_expires)),
    )?;
    Ok(())
}

pub(super) async fn login(context: &mut Context, name: &str) -> Result<(), Failure> {
    context.file()?;
    let password = read_password(false)?;
    let client = context.connect().await?;
    let (expires, unread) = open_session(context, &client, name, &password).await?;
    context.output.print(
        || json!({ "username": name, "expires_at_ms": expires, "unread_count": unread }),
        || format!("logged in as {name} until {}; {unread} unread", time(expires)),
    )?;
    Ok(())
}

/// Logs in and stores the session. Returns its expiry and the number of unread messages.
async fn open_session(context: &Context, client: &Client, name: &str, password: &str) -> Result<(u64, u64), Failure> {
    if let Some(device) = context.file()?.load()?.devices.get(name) {
        client.keep_device(name, device);
    }
    let answer = client.login(name, password).await?;
    // An absolute path, because the session is also used from other directories.
    let tls_ca = context.tls_ca(None).map(std::path::absolute).transpose()?;
    let (token, expires_at_ms) = (answer.token, answer.expires_at_ms);
    let session = Session { token, expires_at_ms, nodes: context.nodes(None), tls_ca };
    let device = answer.device_token;
    context.file()?.update(|sessions| {
        sessions.insert(name, session);
        sessions.devices.insert(name.to_owned(), device);
    })?;
    Ok((answer.expires_at_ms, answer.unread_count))
}

pub(super) async fn logout(context: &mut Context, all: bool) -> Result<(), Failure> {
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
            if error.code == tonic::Code::Unauthenticated {
                // The session had ended before, so there is nothing to keep.
                context.forget(&session)?;
            }
            Err(error.into())
        }
    }
}

pub(super) async fn delete_account(context: &mut Context, yes: bool) -> Result<(), Failure> {
    let session = context.session().await?;
    if !yes {
        let question = format!("This deletes {} and all messages it sent. Type the name to go on: ", session.user);
        if ask(&question)? != session.user {
            return Err(Failure::Usage("not the name of the account: nothing was deleted".to_owned()));
        }
    }
    let password = read_password(false)?;
    let answer = session.client.delete_account(&password).await?;
    context.forget(&session)?;
    context.output.print(
        || {
            json!({ "username": session.user, "deleted_messages": answer.deleted_messages,
                    "revision": answer.revision })
        },
        || format!("account {} deleted, with {} messages", session.user, answer.deleted_messages),
    )?;
    Ok(())
}

pub(super) async fn password(context: &mut Context) -> Result<(), Failure> {
    let session = context.session().await?;
    let old = prompt_password("Password: ", false)?;
    let new = prompt_password("New password: ", true)?;
    let answer = session.client.change_password(&old, &new).await?;
    context.output.print(
        || json!({ "username": session.user, "closed_sessions": answer.closed_sessions, "revision": answer.revision }),
        || format!("password of {} changed; other sessions that ended: {}", session.user, answer.closed_sessions),
    )?;
    Ok(())
}

pub(super) async fn sessions(context: &mut Context, action: ctl_args::Sessions) -> Result<(), Failure> {
    let session = context.session().await?;
    match action {
        ctl_args::Sessions::List => {
            for open in session.client.sessions().await? {
                context.output.print(
                    || {
                        json!({ "session_id": open.session_id, "created_ms": open.created_ms, "used_ms": open.used_ms,
                                "expires_at_ms": open.expires_at_ms, "current": open.current })
                    },
                    || {
                        let mark = if open.current { "  (this one)" } else { "" };
                        let used =
                            if open.used_ms == 0 { String::new() } else { format!("  used {}", time(open.used_ms)) };
                        format!("{}  opened {}{used}{mark}", open.session_id, time(open.created_ms))
                    },
                )?;
            }
        }
        ctl_args::Sessions::Revoke { id } => {
            session.client.revoke_session(id).await?;
            context.output.print(|| json!({ "session_id": id }), || format!("session {id} ended"))?;
        }
    }
    Ok(())
}

pub(super) async fn privacy(context: &mut Context, action: ctl_args::Privacy) -> Result<(), Failure> {
    let session = context.session().await?;
    if let ctl_args::Privacy::Set { read_receipts, session_activity } = action {
        let is_on = |switch| switch == ctl_args::Switch::On;
        let (read_receipts, session_activity) = (read_receipts.map(is_on), session_activity.map(is_on));
        session.client.set_privacy(SetPrivacyRequest { read_receipts, session_activity }).await?;
    }
    let settings = session.client.privacy().await?;
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
