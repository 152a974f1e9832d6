//! What can be typed after `chatctl accounts`, `sessions`, `privacy`, `settings` and `invites`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Commands for one's own sessions.
#[derive(Debug, Subcommand)]
pub enum Sessions {
    /// List the sessions
    List,
    /// End a session and remove its record
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: u64,
    },
}

/// Commands for one's own privacy settings.
#[derive(Debug, Subcommand)]
pub enum Privacy {
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
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Operators' commands for accounts.
#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// List accounts, including disabled and deleted ones
    List {
        /// Text that the names contain
        #[arg(default_value = "")]
        query: String,
        /// The admin socket of any node
        #[command(flatten)]
        socket: Socket,
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
        /// Name of the account
        #[command(flatten)]
        account: OneAccount,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// An account, and the admin socket to use.
#[derive(Debug, Clone, Args)]
pub struct OneAccount {
    /// Name of the account
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
pub enum Setting {
    /// Who can register.
    Registration,
}

/// Who can register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegistrationMode {
    /// Everyone.
    Open,
    /// Holders of an invitation.
    Invitation,
    /// No one.
    Closed,
}

/// Operators' commands for invitations.
#[derive(Debug, Subcommand)]
pub enum Invites {
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
