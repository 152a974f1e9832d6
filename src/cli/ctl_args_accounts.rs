//! What can be typed after `chatctl accounts`, `sessions`, `privacy`, `settings` and `invites`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What a person does with the own sessions.
#[derive(Debug, Subcommand)]
pub enum Sessions {
    /// Show them
    List,
    /// End one, and forget its device
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: u64,
    },
}

/// What a person does with the own privacy settings.
#[derive(Debug, Subcommand)]
pub enum Privacy {
    /// Show the settings
    Show,
    /// Change settings; those that are not given stay as they are
    #[group(required = true, multiple = true)]
    Set {
        /// Exchange read receipts with others; off hides yours from them, and theirs from you
        #[arg(long, value_name = "ON|OFF")]
        read_receipts: Option<Switch>,
        /// Note when sessions are used; off removes what was noted
        #[arg(long, value_name = "ON|OFF")]
        session_activity: Option<Switch>,
    },
}

/// A setting that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What an operator does with accounts.
#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// List accounts, disabled and deleted ones too
    List {
        /// Part of the name
        #[arg(default_value = "")]
        query: String,
        /// The admin socket of any node
        #[command(flatten)]
        socket: Socket,
    },
    /// Show an account and its sessions
    Show(OneAccount),
    /// Replace the password, which is asked for or read from standard input; all sessions end
    ResetPassword(OneAccount),
    /// Forbid logins; all sessions end
    Disable(OneAccount),
    /// Allow logins again
    Enable(OneAccount),
    /// End all sessions
    Logout(OneAccount),
    /// Delete an account with all of its messages
    Delete {
        /// The account
        #[command(flatten)]
        account: OneAccount,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// An account, and where an operator reaches it.
#[derive(Debug, Clone, Args)]
pub struct OneAccount {
    /// Its name
    pub name: String,
    /// The admin socket of any node
    #[command(flatten)]
    pub socket: Socket,
}

/// The admin socket of a node.
#[derive(Debug, Clone, Args)]
pub struct Socket {
    /// The admin socket of any node
    #[arg(long = "socket", value_name = "PATH", default_value = "admin.sock")]
    pub path: PathBuf,
}

/// Settings of the cluster.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Show a setting
    Get {
        /// Which
        name: Setting,
    },
    /// Change a setting
    Set {
        /// Which
        name: Setting,
        /// Who may create an account
        value: RegistrationMode,
    },
}

/// A setting of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Setting {
    /// Who may create an account.
    Registration,
}

/// Who may create an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegistrationMode {
    /// Everybody.
    Open,
    /// Holders of an invitation.
    Invitation,
    /// Nobody.
    Closed,
}

/// What an operator does with invitations.
#[derive(Debug, Subcommand)]
pub enum Invites {
    /// Make one; its code is shown once
    Create {
        /// Accounts that may be created with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        uses: u32,
        /// Hours until it expires
        #[arg(long, value_name = "H", default_value_t = 168, value_parser = clap::value_parser!(u32).range(1..=8760))]
        hours: u32,
    },
    /// Show them, without their codes
    List,
    /// Withdraw one
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: u64,
    },
}
