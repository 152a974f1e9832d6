//! `chatctl verify`: checks the guarantees of a cluster while faults are injected.
//!
//! Runs the workload, checks the recorded history and prints the counts. SIGINT or SIGTERM end the load early, and the
//! remaining phases run as usual. A second signal aborts.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    args::{random_seed, seconds},
    commands::verdict::{report_json, report_text, verdict},
    context::Context,
    failure::Failure,
};
use ::verify::{
    checker,
    workload::{self, Plan},
};

/// Verify the cluster's guarantees while you inject faults: send, read, subscribe, mark read and delete through all
/// nodes, read everything back, and count violations
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Clients, each with one call in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Duration of the load, before everything is read back; Ctrl-C ends the load early, a second one aborts
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    seconds: Duration,
    /// Seed of the random choices [default: a random one, which is printed]
    #[arg(long, value_name = "X")]
    seed: Option<u64>,
    /// File for a record of all operations, one JSON value per line
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let seed = arguments.seed.unwrap_or_else(random_seed);
    // Opened before the run, so that a wrong path fails early.
    let file = arguments.history.as_deref().map(private_file).transpose()?;
    let plan = Plan { clients: arguments.clients, duration: arguments.seconds, seed };
    let (nodes, options) = context.cluster()?;
    let signals = count_signals()?;
    let history = tokio::select! {
        history = workload::run_until(nodes, options, plan, received(signals.clone(), 1)) => history?,
        () = received(signals, 2) => {
            return Err(Failure::Inconclusive("it was interrupted before everything was read back"));
        }
    };
    if let Some(file) = file {
        let mut to = BufWriter::new(file);
        history.write(&mut to)?;
        to.flush()?;
    }
    let report = checker::check(&history);
    context.output.print(|| report_json(&history, &report), || report_text(&history, &report))?;
    verdict(&report)
}

/// Creates the file for the history. It contains account names and message ids, so only the user may read it.
fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Counts the signals that ask this process to end.
fn count_signals() -> io::Result<watch::Receiver<u32>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (count, signals) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(signals)
}

/// Completes when this many signals were received.
async fn received(mut signals: watch::Receiver<u32>, count: u32) {
    // Fails only when the runtime ends, and the sender with it.
    let _ = signals.wait_for(|signals| *signals >= count).await;
}
