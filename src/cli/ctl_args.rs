//! What can be typed after `chatctl`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

pub use super::ctl_args_accounts::{
    Accounts, Invites, OneAccount, Privacy, RegistrationMode, Sessions, Settings, Switch,
};

/// Chat from the command line, and operate the cluster.
#[derive(Debug, Parser)]
#[command(name = "chatctl", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 success, 1 rejected by the service, 2 wrong usage, 3 no node or no leader reached, \
                        4 outcome unknown; of verify and drill: 5 a guarantee was violated, 6 nothing was proven.\n\
                        Passwords are prompted for on the terminal, or read from the first line of standard input."
)]
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
    /// Addresses of nodes (host:port, separated by commas); some are enough [env: CHAT_NODES] [default: those of the
    /// session; without one, and for `login` and `register`, 127.0.0.1:50051 to 50055]
    #[arg(long, global = true, value_delimiter = ',', value_name = "ADDRESSES")]
    pub nodes: Option<Vec<String>>,
    /// Connect with TLS, and trust the certificate authorities in this file (PEM) [env: CHAT_TLS_CA] [default: that of
    /// the session]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Output format
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Account whose session to use [default: the latest login]
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Request a trace of the calls, and print its id; a context in TRACEPARENT is used without this option, too
    #[arg(long, global = true)]
    pub trace: bool,
    /// Timeout of one call, including its retries
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
}

/// Format of the output.
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
    /// Create an account and log in
    Register {
        /// 1-32 characters of [a-z0-9_.-]
        name: String,
        /// Invitation code, if the cluster requires one
        #[arg(long, value_name = "CODE", default_value = "")]
        invitation: String,
    },
    /// Log in and keep the session
    Login {
        /// Name of the account
        name: String,
    },
    /// End the session
    Logout {
        /// Also end all other sessions of the account
        #[arg(long)]
        all: bool,
    },
    /// Send a message
    Send {
        /// Recipient
        to: String,
        /// Text of the message [default: read from standard input]
        text: Option<String>,
        /// Id of the message (a UUID); sends with the same id store one message
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
    },
    /// Read a conversation, the newest message last
    Read {
        /// Partner of the conversation
        partner: String,
        /// Maximum number of messages (1-200)
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Only messages with a lower number
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        before: u64,
        /// Consistency of the read
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Print undelivered messages, then events as they happen
    Listen {
        /// Print the events after this revision instead
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// Exit after this many messages (receipts and deletions do not count)
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Do not acknowledge the delivery of the messages
        #[arg(long)]
        no_ack: bool,
    },
    /// List accounts; as an operator, manage them (through admin.sock in a node's data directory)
    #[command(args_conflicts_with_subcommands = true)]
    Accounts {
        /// Text that the names contain
        #[arg(default_value = "")]
        query: String,
        /// Operators' commands
        #[command(subcommand)]
        action: Option<Accounts>,
    },
    /// Change the password, and end the account's other sessions. Without a terminal, the first line of standard input
    /// is the old password and the second line the new one
    Password,
    /// List the sessions of the account, or end one
    Sessions {
        /// What to do
        #[command(subcommand)]
        action: Sessions,
    },
    /// Show or set what others see of the account, and what is recorded of it
    Privacy {
        /// What to do
        #[command(subcommand)]
        action: Privacy,
    },
    /// Show or set who can register (through admin.sock in a node's data directory)
    Settings {
        /// What to do
        #[command(subcommand)]
        action: Settings,
        /// The admin socket of any node
        #[arg(long, global = true, value_name = "PATH", default_value = "admin.sock")]
        socket: PathBuf,
    },
    /// Create, list and revoke invitations (through admin.sock in a node's data directory)
    Invites {
        /// What to do
        #[command(subcommand)]
        action: Invites,
        /// The admin socket of any node
        #[arg(long, global = true, value_name = "PATH", default_value = "admin.sock")]
        socket: PathBuf,
    },
    /// List your conversations
    Partners,
    /// Mark a conversation read
    MarkRead {
        /// Partner of the conversation
        partner: String,
        /// Number of the last message to mark [default: all]
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        up_to: u64,
    },
    /// Delete messages, for you alone by default
    DeleteMessages {
        /// Message ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u64>,
        /// Delete your own messages for everyone
        #[arg(long)]
        for_everyone: bool,
    },
    /// Delete the account and all its messages
    DeleteAccount {
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Show the leader
    Leader,
    /// Show the nodes and their health; the cluster id, digests and peer addresses require a session or a socket
    Status {
        /// Admin socket of the node to ask
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Check whether each node serves; exit code 1 if one does not
    Health {
        /// Check only this address
        #[arg(long, value_name = "ADDRESS")]
        one: Option<String>,
    },
    /// Change the membership or the leader (through admin.sock in a node's data directory)
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
    /// Back up the whole state to a verified file, while the cluster serves
    Backup {
        /// File for the backup; it appears once the backup is complete and verified
        file: PathBuf,
        /// The admin socket of any node
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
        /// Back up the node's local state, even without a majority, instead of everything acknowledged
        #[arg(long)]
        local: bool,
    },
    /// Create a certificate authority, if there is none, and certificates for nodes (NODE.pem, NODE.key), valid for the
    /// node's name, localhost and further hosts
    Certs {
        /// Directory for the files; the authority is ca.pem and ca.key (keep ca.key secret)
        dir: PathBuf,
        /// Names of nodes, with further host names and addresses if needed, such as n1=n1.example.org,10.0.0.1
        #[arg(required = true, value_name = "NODE[=HOST,...]")]
        named: Vec<NodeHosts>,
        /// Validity of the certificates in days
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: u64,
    },
    /// Measure acknowledged sends: each client has one connection and one send in flight
    Bench(BenchArgs),
    /// Verify the cluster's guarantees while you inject faults: send, read, subscribe, mark read and delete through all
    /// nodes, read everything back, and count violations
    Verify(VerifyArgs),
    /// Inject faults, one after the other and never more than the cluster tolerates, while the workload of `verify`
    /// runs; then print the verdict and what clients experienced. Takes some minutes; Ctrl-C repairs the current fault
    Drill(DrillArgs),
}

/// A node and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHosts {
    /// Its name.
    pub name: String,
    /// Further names and addresses.
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
        /// Address at which it listens for peers
        #[arg(value_name = "HOST:PORT")]
        peer_address: String,
    },
    /// Remove a node from the cluster permanently
    Remove {
        /// Name of the node
        name: String,
    },
    /// Create a token with which one node of any name can join (CHAT_JOIN_TOKEN); valid for an hour
    Token,
    /// Transfer leadership to another node
    Transfer {
        /// Name of the node [default: chosen by the leader]
        name: Option<String>,
    },
}

/// Consistency of a read.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
pub struct Freshness {
    /// Read the node's local state, even without a majority, and report its age
    #[arg(long)]
    pub local: bool,
    /// Read a state of at least this revision
    #[arg(long, value_name = "REVISION")]
    pub at_least: Option<u64>,
}

/// Options of `bench`.
#[derive(Debug, Clone, Copy, Args)]
pub struct BenchArgs {
    /// Clients, each with its own connection and one send in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// Duration of the measurement, after one second of warm-up
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Size of each message in bytes
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub body_bytes: u32,
    /// Accounts to create and to send between [default: one per client, at most 16]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub accounts: Option<u32>,
}

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Clients, each with one call in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Duration of the load, before everything is read back; Ctrl-C ends the load early, a second one aborts
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub seconds: Duration,
    /// Seed of the random choices [default: a random one, which is printed]
    #[arg(long, value_name = "X")]
    pub seed: Option<u64>,
    /// File for a record of all operations, one JSON value per line
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
}

/// Options of `drill`.
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// How to control the nodes
    #[command(subcommand)]
    pub by: DrillBy,
    /// Clients, each with one call in flight
    #[arg(long, global = true, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Duration of each fault
    #[arg(long, global = true, value_name = "S", default_value = "5", value_parser = seconds)]
    pub hold: Duration,
    /// Seed of the random choices [default: a random one, which is printed]
    #[arg(long, global = true, value_name = "X")]
    pub seed: Option<u64>,
    /// Skip the confirmation
    #[arg(long, global = true)]
    pub yes: bool,
}

/// How to control the nodes.
#[derive(Debug, Clone, Subcommand)]
pub enum DrillBy {
    /// Docker Compose; the services have the names of the nodes
    Compose {
        /// Directory of docker-compose.yml [default: the current one]
        #[arg(long, value_name = "DIR")]
        project_directory: Option<PathBuf>,
    },
    /// Kubernetes; the pods have the names of the nodes
    Kubectl {
        /// Namespace of the pods [default: that of the current context]
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// A program that is run as PROGRAM kill|start|pause|resume|restart NODE
    Program {
        /// Path of the program
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
