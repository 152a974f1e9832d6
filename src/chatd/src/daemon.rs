//! `chatd`: arguments, configuration, run, exit code.
//!
//! Of `chatd`, only this module reads the environment. Errors before logging works go to standard error as plain text.

use std::{io, path::PathBuf, thread, time::Duration};

use clap::{Parser, Subcommand};
use rustix::{
    fs::Mode,
    process::{Signal, getpid, kill_process, umask},
    thread::disable_transparent_huge_pages,
};
use tokio::runtime::Builder;

use super::{
    health::{self, HealthArguments},
    local::{self, LocalArguments, LocalError},
    rescue::{self, RecoverArguments},
    runtime::runtime,
    secret::{self, SecretArguments},
};
use server::{
    config::{Config, ConfigErrors, LogFormat, keys},
    telemetry::{
        logs::{self, LogSettings},
        traces::Traces,
    },
};
use terminal::{panics, show, tell};
use trace::Tracer;

/// Exit code of `chatd config` when its output cannot be written, after `sysexits.h`.
const CANNOT_PRINT: u8 = 74;
/// Time in addition to the drain that a node has for its stop after its parent is gone. Then the process exits.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time limit for the last spans to reach their collector after the node has ended.
const TRACES_STOP_MAX: Duration = Duration::from_secs(2);
/// Time limit for the remaining tasks and threads after the node has ended.
const RUNTIME_STOP_MAX: Duration = Duration::from_secs(1);

/// A node of quorum-chat: a replicated chat backend that does not lose a message.
///
/// Without a command it runs one node, configured by environment variables.
#[derive(Debug, Parser)]
#[command(name = "chatd", version, after_long_help = keys::help(), after_help = "`--help` lists the configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the effective configuration without secrets, and exit; the exit code is 64 if it has mistakes.
    Config,
    /// Check the node on this machine, and exit: 0 if it is alive (or ready), else 1 and the reason in one line.
    ///
    /// For health checks in containers. Reads CHAT_METRICS_LISTEN, and waits at most 3 s.
    Health(HealthArguments),
    /// Start a new cluster from a backup, in the empty data directory of this node (CHAT_DATA_DIR, CHAT_NAME).
    ///
    /// At first the node is its only member. The other nodes of CHAT_INITIAL_NODES join when they are started with
    /// empty data directories. Nodes of the old cluster cannot join.
    Restore {
        /// Backup, as written by `chatctl backup`.
        file: PathBuf,
        /// End all sessions of the backup. Everyone has to log in again, and stolen tokens are useless.
        #[arg(long)]
        end_sessions: bool,
    },
    /// Start a new cluster from this node's data, when a majority of the nodes is lost permanently.
    ///
    /// Works on the data directory of the stopped node (CHAT_DATA_DIR, CHAT_NAME). Prints what the node has and what
    /// may be lost, and asks for confirmation. The other nodes join when they are started with empty data directories.
    /// Nodes of the old cluster cannot join.
    Recover(RecoverArguments),
    /// Create the secret that the nodes of a cluster share (CHAT_PEER_SECRET_FILE), unless the file has one.
    Secret(SecretArguments),
    /// Run a cluster of several nodes on this machine.
    Local(LocalArguments),
}

/// Runs `chatd` with the process's arguments and environment. Returns the exit code.
pub fn main() -> std::process::ExitCode {
    panics::abort_on_panic(logs::finish);
    keep_files_private();
    let code = match Arguments::parse().command {
        None => load(environment()).and_then(run_node),
        Some(Command::Config) => load(environment()).map(|config| print_config(&config)),
        Some(Command::Health(arguments)) => Ok(health::run(&arguments, environment())),
        Some(Command::Restore { file, end_sessions }) => {
            load(environment()).and_then(|config| rescue::restore(&config, &file, end_sessions))
        }
        Some(Command::Recover(arguments)) => {
            load(environment()).and_then(|config| rescue::recover(&config, &arguments))
        }
        Some(Command::Secret(arguments)) => secret::run(&arguments, &environment()),
        Some(Command::Local(arguments)) => run_local(&arguments),
    };
    code.unwrap_or_else(|code| code).into()
}

/// Restricts files of this process and its children to the user. Includes files that are created without an explicit
/// mode, such as SQLite's files and sockets.
pub(super) fn keep_files_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Returns the environment as text. Bytes that are not UTF-8 become the replacement character, which the configuration
/// rejects.
fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(key, value)| (text(key), text(value))).collect()
}

fn load(source: Vec<(String, String)>) -> Result<Config, u8> {
    Config::load(source).map_err(|errors| {
        tell!("chatd: {errors}\n`chatd --help` explains every key.");
        ConfigErrors::EXIT_CODE
    })
}

fn print_config(config: &Config) -> u8 {
    for (key, value) in config.effective() {
        match show!("{key}={value}") {
            Ok(()) => {}
            // The reader closed the pipe because it has enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => {
                tell!("chatd config: standard output: {error}");
                return CANNOT_PRINT;
            }
        }
    }
    for warning in &config.warnings {
        tell!("chatd: warning: {warning}");
    }
    0
}

fn run_local(arguments: &LocalArguments) -> Result<u8, u8> {
    let report_error = |error: LocalError| {
        tell!("chatd local: {error}");
        error.exit_code()
    };
    if arguments.start.is_some() {
        return local::prepare_start(arguments, environment()).map_err(report_error).and_then(run_node);
    }
    let runtime = runtime(Builder::new_current_thread())?;
    runtime.block_on(local::run(arguments, environment())).map_err(report_error)
}

/// Runs one node until it is stopped.
fn run_node(config: Config) -> Result<u8, u8> {
    let settings = LogSettings {
        level: config.log_level,
        heartbeat_level: config.heartbeat_log_level,
        json: config.log_format == LogFormat::Json,
    };
    let mut builder = Builder::new_multi_thread();
    if config.worker_threads > 0 {
        builder.worker_threads(config.worker_threads);
    }
    // Request and replication buffers are allocated and freed all the time. With huge pages, the kernel clears 2 MiB
    // for each, which took a twentieth of a busy node's time. A failure is harmless: the node then works with huge
    // pages.
    let _ = disable_transparent_huge_pages(true);
    let runtime = runtime(builder)?;
    let traces = config.traces.as_ref().map(|settings| {
        let _entered = runtime.enter();
        Traces::start(settings)
    });
    logs::init(&settings, &config.advertise, traces.as_ref()).map_err(|error| {
        tell!("chatd: log lines cannot be written: {error}");
        1
    })?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.exit_with_parent {
        stop_with_parent(config.drain_timeout + STOP_GRACE).map_err(|error| {
            tracing::error!(%error, "The thread that watches standard input could not be started");
            1
        })?;
    }
    let tracer = traces.as_ref().map_or_else(Tracer::off, Traces::tracer);
    let ended = runtime.block_on(server::run(config, tracer));
    if let Some(traces) = traces {
        traces.shutdown(TRACES_STOP_MAX);
    }
    // Remaining tasks may log errors about the end, so the reason of the end is logged last. The timeout prevents a
    // hung disk from keeping the process alive.
    runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    let code = ended.map(|()| 0).map_err(|error| {
        tracing::error!("{error}");
        error.exit_code()
    });
    logs::finish();
    code
}

/// Stops this process, as SIGTERM would, when standard input closes. Only the parent holds the other end, so it closes
/// however the parent ends. After `timeout` the process exits without an orderly stop.
///
/// Uses a plain thread, because a read of standard input cannot be cancelled and must not keep the runtime from
/// stopping.
fn stop_with_parent(timeout: Duration) -> io::Result<()> {
    let watch = move || {
        match io::copy(&mut io::stdin().lock(), &mut io::sink()) {
            Ok(_) => tracing::warn!("Standard input was closed by the parent process; stopping"),
            Err(error) => tracing::warn!(%error, "Standard input cannot be read; stopping"),
        }
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            tracing::error!(%error, "This process cannot send a signal to itself");
        }
        thread::sleep(timeout);
        tracing::error!("The stop exceeded its time limit");
        logs::finish();
        std::process::exit(1);
    };
    thread::Builder::new().name("parent-watch".to_owned()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_lists_every_key() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        for key in keys::KEYS {
            assert!(help.contains(&format!("CHAT_{} <", key.name)), "{}", key.name);
        }
    }

    #[test]
    fn commands_are_understood() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["chatd"], words].concat());
        assert!(parse(&[]).unwrap().command.is_none());
        assert!(matches!(parse(&["config"]).unwrap().command, Some(Command::Config)));
        assert!(matches!(parse(&["health", "--ready"]).unwrap().command, Some(Command::Health(_))));
        assert!(parse(&["local", "--nodes", "3", "--data", "/x", "--base-port", "0"]).is_ok());
        assert!(parse(&["local", "--start", "n2"]).is_ok());
        assert!(parse(&["local", "--start", "n2", "--nodes", "3"]).is_err());
        assert!(parse(&["local", "--nodes", "0"]).is_err());
        assert!(parse(&["local", "--nodes", "10"]).is_err());
        assert!(parse(&["restore", "/x/backup"]).is_ok());
        assert!(parse(&["restore"]).is_err());
        assert!(parse(&["recover", "--force-new-cluster", "--yes"]).is_ok());
        assert!(parse(&["recover", "--force-new-cluster", "--skip-entry", "7", "--skip-entry", "9"]).is_ok());
        assert!(parse(&["recover", "--yes"]).is_err());
        assert!(parse(&["secret", "/x/secret"]).is_ok());
        assert!(parse(&["secret", "--kubernetes", "name"]).is_ok());
        assert!(parse(&["secret"]).is_err());
        assert!(parse(&["secret", "/x/secret", "--kubernetes", "name"]).is_err());
        assert!(parse(&["run"]).is_err());
    }
}
