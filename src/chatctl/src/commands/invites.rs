//! `chatctl invites`: creates, lists and revokes invitations, through a node's admin socket.

use clap::{Args, Subcommand};
use serde_json::json;
use tonic::transport::Channel;

use crate::{
    commands::operator::{GlobalSocket, account_admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use proto::chat::v1::{
    CreateInvitationRequest, ListInvitationsRequest, RevokeInvitationRequest,
    account_admin_service_client::AccountAdminServiceClient,
};
use terminal::time;

/// Create, list and revoke invitations (through admin.sock in a node's data directory)
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    socket: GlobalSocket,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create an invitation; its code is shown once
    Create {
        /// Number of accounts that can be created with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        uses: u32,
        /// Hours until it expires
        #[arg(long, value_name = "H", default_value_t = 168, value_parser = clap::value_parser!(u32).range(1..=8760))]
        hours: u32,
    },
    /// List the invitations, without their codes
    List,
    /// Revoke an invitation
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: u64,
    },
}

type Admin = AccountAdminServiceClient<Channel>;

pub(super) async fn run(context: &mut Context, Arguments { action, socket }: Arguments) -> Result<(), Failure> {
    let client = account_admin(context, &socket.path).await?;
    match action {
        Action::Create { uses, hours } => create(context, client, CreateInvitationRequest { uses, hours }).await,
        Action::List => list(context, client).await,
        Action::Revoke { id } => revoke(context, client, id).await,
    }
}

async fn create(context: &mut Context, mut client: Admin, message: CreateInvitationRequest) -> Result<(), Failure> {
    let made = client.create_invitation(request(context, message)).await.map_err(admin_error)?.into_inner();
    context.output.print(
        || json!({ "code": made.code, "invitation_id": made.invitation_id, "expires_at_ms": made.expires_at_ms }),
        || format!("{}  (id {}, until {})", made.code, made.invitation_id, time(made.expires_at_ms)),
    )?;
    Ok(())
}

async fn list(context: &mut Context, mut client: Admin) -> Result<(), Failure> {
    let message = ListInvitationsRequest {};
    let answer = client.list_invitations(request(context, message)).await.map_err(admin_error)?;
    for invitation in answer.into_inner().invitations {
        context.output.print(
            || {
                json!({ "invitation_id": invitation.invitation_id, "uses": invitation.uses, "used": invitation.used,
                        "created_ms": invitation.created_ms, "expires_at_ms": invitation.expires_at_ms })
            },
            || {
                let until = time(invitation.expires_at_ms);
                let (used, uses) = (invitation.used, invitation.uses);
                format!("{}  {used} of {uses} used  until {until}", invitation.invitation_id)
            },
        )?;
    }
    Ok(())
}

async fn revoke(context: &mut Context, mut client: Admin, id: u64) -> Result<(), Failure> {
    let message = RevokeInvitationRequest { invitation_id: id };
    let answer = client.revoke_invitation(request(context, message)).await.map_err(admin_error)?.into_inner();
    let text = if answer.revoked { "withdrawn" } else { "was not there" };
    context
        .output
        .print(|| json!({ "invitation_id": id, "revoked": answer.revoked }), || format!("invitation {id} {text}"))?;
    Ok(())
}
