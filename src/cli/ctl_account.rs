//! Accounts and sessions: register, login, logout, delete-account.

use serde_json::json;

use super::{
    ctl::{Context, Failure, ask, read_password},
    output::time,
    session_file::Session,
};
use crate::client::Client;

pub(super) async fn register(context: &mut Context, name: &str) -> Result<(), Failure> {
    context.file()?;
    let password = read_password(true)?;
    let client = context.connect().await?;
    let created = client.create_account(name, &password).await?;
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

/// Logs in and keeps the session; its expiry and the number of unread messages.
async fn open_session(context: &Context, client: &Client, name: &str, password: &str) -> Result<(u64, u64), Failure> {
    let answer = client.login(name, password).await?;
    // The session outlives the directory that this was typed in.
    let tls_ca = context.tls_ca(None).map(std::path::absolute).transpose()?;
    let (token, expires_at_ms) = (answer.token, answer.expires_at_ms);
    let session = Session { token, expires_at_ms, nodes: context.nodes(None), tls_ca };
    context.file()?.update(|sessions| sessions.insert(name, session))?;
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
                // It had ended before: there is nothing to keep.
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
    let answer = session.client.delete_account().await?;
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
