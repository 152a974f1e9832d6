//! Runs the program: parses the command line, executes the command, and converts the result into an exit code.

use std::{env, io, process::ExitCode};

use clap::Parser;

use crate::{
    args::Global,
    commands::{self, Command},
    context::Context,
    failure::{Exit, Failure},
};
use terminal::{panics, tell};

/// Chat from the command line, and operate the cluster.
#[derive(Debug, Parser)]
#[command(name = "chatctl", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 success, 1 rejected by the service, 2 wrong usage, 3 no node or no leader reached, \
                        4 outcome unknown; of verify and drill: 5 a guarantee was violated, 6 nothing was proven.\n\
                        Passwords are prompted for on the terminal, or read from the first line of standard input."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Runs `chatctl`: parses the arguments, runs the command and prints failures.
pub fn main() -> ExitCode {
    panics::abort_on_panic(|| {});
    let cli = Cli::parse();
    let format = cli.global.output;
    // One thread: a command waits for one thing at a time, and `bench` has to leave the processors to the nodes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Failure::from).and_then(|runtime| {
        let context = Context::new(cli.global, |name| env::var(name).ok());
        let result = runtime.block_on(execute(context, cli.command));
        // A pending name resolution must not delay the exit.
        runtime.shutdown_background();
        result
    });
    let exit = match result {
        Ok(()) => Exit::Done,
        // The reader closed the pipe because it has enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(failure) => {
            failure.print(format);
            failure.exit()
        }
    };
    ExitCode::from(exit as u8)
}

async fn execute(mut context: Context, command: Command) -> Result<(), Failure> {
    if let Some(trace) = context.requested_trace() {
        tell!("trace {}", trace.trace_id_text());
    }
    commands::run(&mut context, command).await
}

#[cfg(test)]
mod tests;
