//! `chatctl settings`: shows and changes settings of the cluster, through a node's admin socket.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    commands::operator::{GlobalSocket, account_admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use proto::chat::v1::{GetSettingsRequest, Registration, SetRegistrationRequest};

/// Show or set who can register (through admin.sock in a node's data directory)
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    socket: GlobalSocket,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a setting
    Get {
        /// Name of the setting
        name: Setting,
    },
    /// Change a setting
    Set {
        /// Name of the setting
        name: Setting,
        /// Who can register
        value: RegistrationMode,
    },
}

/// A setting of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Setting {
    /// Who can register.
    Registration,
}

/// Who can register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RegistrationMode {
    /// Everyone.
    Open,
    /// Holders of an invitation.
    Invitation,
    /// No one.
    Closed,
}

pub(super) async fn run(context: &mut Context, Arguments { action, socket }: Arguments) -> Result<(), Failure> {
    let mut client = account_admin(context, &socket.path).await?;
    let value = match action {
        Action::Get { name: Setting::Registration } => {
            let answer = client.get_settings(request(context, GetSettingsRequest {})).await.map_err(admin_error)?;
            match answer.into_inner().registration() {
                Registration::Closed => "closed",
                Registration::Invitation => "invitation",
                Registration::Open | Registration::Unspecified => "open",
            }
        }
        Action::Set { name: Setting::Registration, value } => {
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
