//! The commands, one file for each with its arguments and its code.
//!
//! A new command is a file, a variant of [`Command`] and a line in [`run`]. The help of a command is the documentation
//! of its `Arguments`.

// Shared by several commands.
mod account;
mod conversation;
mod listing;
mod node;
mod operator;
mod verdict;

// The commands.
mod accounts;
mod backup;
mod bench;
mod certs;
mod delete_account;
mod delete_messages;
mod drill;
mod health;
mod invites;
mod leader;
mod listen;
mod login;
mod logout;
mod mark_read;
mod members;
mod partners;
mod password;
mod privacy;
mod read;
mod register;
mod send;
mod sessions;
mod settings;
mod snapshot;
mod status;
mod verify;

use clap::Subcommand;

use crate::{context::Context, failure::Failure};

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Register(register::Arguments),
    Login(login::Arguments),
    Logout(logout::Arguments),
    Send(send::Arguments),
    Read(read::Arguments),
    Listen(listen::Arguments),
    Accounts(accounts::Arguments),
    Password(password::Arguments),
    Sessions(sessions::Arguments),
    Privacy(privacy::Arguments),
    Settings(settings::Arguments),
    Invites(invites::Arguments),
    Partners(partners::Arguments),
    MarkRead(mark_read::Arguments),
    DeleteMessages(delete_messages::Arguments),
    DeleteAccount(delete_account::Arguments),
    Leader(leader::Arguments),
    Status(status::Arguments),
    Health(health::Arguments),
    Members(members::Arguments),
    Snapshot(snapshot::Arguments),
    Backup(backup::Arguments),
    Certs(certs::Arguments),
    Bench(bench::Arguments),
    Verify(verify::Arguments),
    Drill(drill::Arguments),
}

/// Runs a command.
pub(crate) async fn run(context: &mut Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Register(arguments) => register::run(context, arguments).await,
        Command::Login(arguments) => login::run(context, arguments).await,
        Command::Logout(arguments) => logout::run(context, arguments).await,
        Command::Send(arguments) => send::run(context, arguments).await,
        Command::Read(arguments) => read::run(context, arguments).await,
        Command::Listen(arguments) => listen::run(context, arguments).await,
        Command::Accounts(arguments) => accounts::run(context, arguments).await,
        Command::Password(arguments) => password::run(context, arguments).await,
        Command::Sessions(arguments) => sessions::run(context, arguments).await,
        Command::Privacy(arguments) => privacy::run(context, arguments).await,
        Command::Settings(arguments) => settings::run(context, arguments).await,
        Command::Invites(arguments) => invites::run(context, arguments).await,
        Command::Partners(arguments) => partners::run(context, arguments).await,
        Command::MarkRead(arguments) => mark_read::run(context, arguments).await,
        Command::DeleteMessages(arguments) => delete_messages::run(context, arguments).await,
        Command::DeleteAccount(arguments) => delete_account::run(context, arguments).await,
        Command::Leader(arguments) => leader::run(context, arguments).await,
        Command::Status(arguments) => status::run(context, arguments).await,
        Command::Health(arguments) => health::run(context, arguments).await,
        Command::Members(arguments) => members::run(context, arguments).await,
        Command::Snapshot(arguments) => snapshot::run(context, arguments).await,
        Command::Backup(arguments) => backup::run(context, arguments).await,
        Command::Certs(arguments) => certs::run(context, arguments),
        Command::Bench(arguments) => bench::run(context, arguments).await,
        Command::Verify(arguments) => verify::run(context, arguments).await,
        Command::Drill(arguments) => drill::run(context, arguments).await,
    }
}
