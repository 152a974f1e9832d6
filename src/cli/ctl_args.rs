//! What can be typed after `chatctl`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

pub use super::ctl_args_accounts::{
    Accounts, Invites, OneAccount, Privacy, RegistrationMode, Sessions, Settings, Switch,
};

/// Chat from the command line, and look after the cluster.
#[derive(Debug, Parser)]
#[command(name = "chatctl", version, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 done, 1 refused by the service, 2 wrong usage, 3 no node or no leader reached, \
                        4 outcome unknown, 5 a promise was broken (verify), 6 nothing was proven (verify).\nPasswords are asked for on the terminal, or read from the first line of \
                        standard input.")]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Addresses of nodes, host:port, separated by commas; some are enough [env: CHAT_NODES] [default: those of the
    /// session; for `login` and `register`, and without one, 127.0.0.1:50051 to 50055]
    #[arg(long, global = true, value_delimiter = ',', value_name = "ADDRESSES")]
    pub nodes: Option<Vec<String>>,
    /// Talk TLS to the nodes, and trust the certificate authorities in this file (PEM) [env: CHAT_TLS_CA] [default: that of
    /// the session]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Output for people, or for machines
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Whose session to use [default: who logged in last]
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Have the nodes trace what they do for the calls, and print the id of the trace; a context in TRACEPARENT is used
    /// without this, too
    #[arg(long, global = true)]
    pub trace: bool,
    /// Time for one call with all its retries
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned, for people.
    Text,
    /// One JSON value per line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an account, and log in
    Register {
        /// 1-32 characters of [a-z0-9_.-]
        name: String,
        /// Code of an invitation, where one is needed
        #[arg(long, value_name = "CODE", default_value = "")]
        invitation: String,
    },
    /// Log in and keep the session
    Login {
        /// The account
        name: String,
    },
    /// End the session
    Logout {
        /// End the account's other sessions too
        #[arg(long)]
        all: bool,
    },
    /// Send a message
    Send {
        /// To whom
        to: String,
        /// The text; read from standard input when absent
        text: Option<String>,
        /// Send under this id: a repeat with the same id is stored once
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
    },
    /// Read a conversation, newest at the bottom
    Read {
        /// With whom
        partner: String,
        /// Most messages to show (1-200)
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Only messages before this number
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        before: u64,
        /// How fresh it must be
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Show what happens, as it happens: first what was not delivered yet
    Listen {
        /// Start after this revision instead
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// End after this many messages (receipts and deletions do not count)
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Do not tell the senders that their messages were delivered
        #[arg(long)]
        no_ack: bool,
    },
    /// List accounts; or, as an operator, look after them (through the admin.sock in a node's data directory)
    #[command(args_conflicts_with_subcommands = true)]
    Accounts {
        /// Part of the name
        #[arg(default_value = "")]
        query: String,
        /// What an operator does
        #[command(subcommand)]
        action: Option<Accounts>,
    },
    /// Change the password; the account's other sessions end. Standard input, when it is no terminal, has the old one in its first
    /// line and the new one in its second
    Password,
    /// Show the sessions of the account, or end one
    Sessions {
        /// What to do
        #[command(subcommand)]
        action: Sessions,
    },
    /// Show or set what others see of the account, and what is kept of it
    Privacy {
        /// What to do
        #[command(subcommand)]
        action: Privacy,
    },
    /// Show or set who may create an account (through the admin.sock in a node's data directory)
    Settings {
        /// What to do
        #[command(subcommand)]
        action: Settings,
        /// The admin socket of any node
        #[arg(long, global = true, value_name = "PATH", default_value = "admin.sock")]
        socket: PathBuf,
    },
    /// Make, list and withdraw invitations (through the admin.sock in a node's data directory)
    Invites {
        /// What to do
        #[command(subcommand)]
        action: Invites,
        /// The admin socket of any node
        #[arg(long, global = true, value_name = "PATH", default_value = "admin.sock")]
        socket: PathBuf,
    },
    /// List the people you chat with
    Partners,
    /// Mark a conversation read
    MarkRead {
        /// With whom
        partner: String,
        /// Up to this number; all of it when absent
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        up_to: u64,
    },
    /// Delete messages, for you alone unless told otherwise
    DeleteMessages {
        /// Message ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u64>,
        /// Delete those that you sent for everyone
        #[arg(long)]
        for_everyone: bool,
    },
    /// Delete the account with all of its messages
    DeleteAccount {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show which node leads
    Leader,
    /// Show the nodes and how they are; cluster id, digests and peer addresses only with a session or a socket
    Status {
        /// Ask one node, through its admin socket
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Ask each node whether it serves; exit code 1 when one does not
    Health {
        /// Ask only this address
        #[arg(long, value_name = "ADDRESS")]
        one: Option<String>,
    },
    /// Change who belongs to the cluster, or who leads (through the admin.sock in a node's data directory)
    Members {
        /// What to do
        #[command(subcommand)]
        change: Members,
        /// The admin socket of any node
        #[arg(long, global = true, value_name = "PATH", default_value = "admin.sock")]
        socket: PathBuf,
    },
    /// Build a snapshot on a node now
    Snapshot {
        /// The admin socket of the node
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
    /// Copy the whole state of a node to a file, checked and complete, while the cluster goes on
    Backup {
        /// Where to; only a complete and verified backup gets this name
        file: PathBuf,
        /// The admin socket of any node
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
        /// What the node has, even without a majority, instead of everything that was acknowledged
        #[arg(long)]
        local: bool,
    },
    /// Make a certificate authority, if there is none, and certificates for nodes: NODE.pem and NODE.key, for the name itself,
    /// localhost and more
    Certs {
        /// Where to; the authority is ca.pem, and ca.key, which is to be kept to yourself
        dir: PathBuf,
        /// The nodes' names, each perhaps with more host names and addresses: n1=n1.example.org,10.0.0.1
        #[arg(required = true, value_name = "NODE[=HOST,...]")]
        named: Vec<NodeHosts>,
        /// How long the certificates are good for
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: u64,
    },
    /// Measure: each client is a connection with one send in flight
    Bench(BenchArgs),
    /// Prove that the cluster keeps its promises, while you break things: send, read, subscribe, mark read and delete
    /// through all nodes, read everything back, and count what is wrong
    Verify(VerifyArgs),
    /// Break the cluster on purpose, one fault after the other and no more than it can bear, while the workload of `verify` runs;
    /// then the verdict, and what the clients had of it. Takes some minutes; Ctrl-C mends what is broken
    Drill(DrillArgs),
}

/// A node, and where it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHosts {
    /// Its name.
    pub name: String,
    /// More names and addresses.
    pub hosts: Vec<String>,
}

impl std::str::FromStr for NodeHosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hosts) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() || name.contains(['/', ',']) || name == "ca" {
            return Err(format!("{name:?} is no name of a node"));
        }
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), hosts })
    }
}

/// A change of the membership.
#[derive(Debug, Subcommand)]
pub enum Members {
    /// Add an empty node that was started with CHAT_JOIN=invitation
    Add {
        /// Where it listens for peers
        #[arg(value_name = "HOST:PORT")]
        peer_address: String,
    },
    /// Take a node out of the cluster for good
    Remove {
        /// Its name
        name: String,
    },
    /// Make a token with which one node of any name may join (CHAT_JOIN_TOKEN); valid for an hour
    Token,
    /// Move leadership to another node
    Transfer {
        /// Its name; the leader chooses when absent
        name: Option<String>,
    },
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
pub struct Freshness {
    /// What the node has, even without a majority; says how old it may be
    #[arg(long)]
    pub local: bool,
    /// At least this revision
    #[arg(long, value_name = "REVISION")]
    pub at_least: Option<u64>,
}

/// Options of `bench`.
#[derive(Debug, Clone, Copy, Args)]
pub struct BenchArgs {
    /// Clients, each with its own connection and one send in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// How long to measure, after one second that is not counted
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Length of each message
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub body_bytes: u32,
    /// Accounts to make and to send between [default: one per client, at most 16]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub accounts: Option<u32>,
}

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Clients, each with one call under way
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// How long to work, before everything is read back; Ctrl-C ends the work earlier, and a second one gives up
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub seconds: Duration,
    /// Where the choices come from; a random one, which is printed, when absent
    #[arg(long, value_name = "X")]
    pub seed: Option<u64>,
    /// Write all operations to this file, one JSON value per line
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
}

/// Options of `drill`.
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// Who breaks the nodes
    #[command(subcommand)]
    pub by: DrillBy,
    /// Clients, each with one call under way
    #[arg(long, global = true, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// How long a fault lasts
    #[arg(long, global = true, value_name = "S", default_value = "5", value_parser = seconds)]
    pub hold: Duration,
    /// Where the choices come from; a random one, which is printed, when absent
    #[arg(long, global = true, value_name = "X")]
    pub seed: Option<u64>,
    /// Do not ask
    #[arg(long, global = true)]
    pub yes: bool,
}

/// Who breaks the nodes.
#[derive(Debug, Clone, Subcommand)]
pub enum DrillBy {
    /// Docker Compose, whose services have the names of the nodes
    Compose {
        /// Where docker-compose.yml is [default: here]
        #[arg(long, value_name = "DIR")]
        project_directory: Option<PathBuf>,
    },
    /// Kubernetes, whose pods have the names of the nodes
    Kubectl {
        /// Their namespace [default: that of the current context]
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// A program that is called as PROGRAM kill|start|pause|resume|restart NODE
    Program {
        /// The program
        #[arg(value_name = "PROGRAM")]
        path: PathBuf,
    },
    /// Yourself: print each step, and verify it
    Guide,
}

/// A positive number of seconds, at most a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be more than 0 and at most 86400 seconds".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in [
            "chatctl --nodes a:1,b:2 --output json --user bob --timeout 2.5 send alice hi",
            "chatctl send alice hi --nodes a:1,b:2 --output json --user bob --timeout 2.5",
        ] {
            let cli = parse(line).expect(line);
            assert_eq!(cli.global.nodes.as_deref(), Some(&["a:1".to_owned(), "b:2".to_owned()][..]));
            assert_eq!(cli.global.output, Format::Json);
            assert_eq!(cli.global.user.as_deref(), Some("bob"));
            assert_eq!(cli.global.timeout, Duration::from_millis(2500));
            assert!(matches!(cli.command, Command::Send { text: Some(text), id: None, .. } if text == "hi"));
        }
    }

    #[test]
    fn every_command_of_the_manual_parses() {
        for line in [
            "register alice",
            "login alice",
            "logout --all",
            "send bob",
            "send bob hi --id 01890a5d-ac96-774b-bcce-b302099a8057",
            "read bob --limit 10 --before 5 --local",
            "read bob --at-least 17",
            "listen --after 3 --count 2 --no-ack",
            "accounts",
            "accounts ali",
            "accounts list ali --socket /tmp/admin.sock",
            "accounts show alice --socket /tmp/admin.sock",
            "accounts reset-password alice --socket /tmp/admin.sock",
            "accounts disable alice --socket /tmp/admin.sock",
            "accounts enable alice --socket /tmp/admin.sock",
            "accounts logout alice --socket /tmp/admin.sock",
            "accounts delete alice --yes --socket /tmp/admin.sock",
            "register alice --invitation 0123456789abcdef",
            "password",
            "sessions list",
            "sessions revoke 7",
            "settings get registration --socket /tmp/admin.sock",
            "settings set registration invitation --socket /tmp/admin.sock",
            "invites create --uses 3 --hours 24 --socket /tmp/admin.sock",
            "invites list --socket /tmp/admin.sock",
            "invites revoke 7 --socket /tmp/admin.sock",
            "partners",
            "mark-read bob --up-to 4",
            "delete-messages 1 2 3 --for-everyone",
            "delete-account --yes",
            "leader",
            "status",
            "health",
            "health --one 127.0.0.1:50051",
            "members add n6.example.org:50052 --socket /tmp/admin.sock",
            "members remove n6 --socket /tmp/admin.sock",
            "members token --socket /tmp/admin.sock",
            "members transfer --socket /tmp/admin.sock",
            "snapshot --socket /tmp/admin.sock",
            "backup /tmp/chat.backup --socket /tmp/admin.sock --force --local",
            "certs /tmp/certs n1 n2=n2.example.org,10.0.0.2 --days 7",
            "status --tls-ca /tmp/certs/ca.pem",
            "bench --clients 8 --seconds 2 --body-bytes 128 --accounts 4",
            "verify",
            "verify --clients 8 --seconds 2 --seed 7 --history /tmp/history.jsonl",
            "drill guide",
            "drill compose --project-directory /srv/chat --yes --hold 3 --seed 7 --clients 4",
            "drill --yes kubectl --namespace chat",
            "drill program /usr/local/bin/break",
        ] {
            parse(&format!("chatctl {line}")).expect(line);
        }
    }

    #[test]
    fn nonsense_is_refused_as_usage() {
        for line in [
            "",
            "login alice secret",
            "send",
            "send bob hi --id 7",
            "read bob --local --at-least 3",
            "delete-messages",
            "delete-messages x",
            "members",
            "members remove --socket /tmp/admin.sock",
            "backup --socket /tmp/admin.sock",
            "backup /tmp/chat.backup",
            "bench --clients 0",
            "bench --body-bytes 20000",
            "certs /tmp/certs",
            "certs /tmp/certs ca",
            "certs /tmp/certs a/b",
            "certs /tmp/certs n1 --days 0",
            "verify --clients 0",
            "verify --clients 257",
            "verify --seed x",
            "drill",
            "drill program",
            "drill guide --hold 0",
            "status --timeout 0",
            "status --timeout nan",
        ] {
            let error = parse(&format!("chatctl {line}")).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
