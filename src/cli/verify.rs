//! `chatctl verify`: checks the guarantees of a cluster while faults are injected.
//!
//! Runs the workload, checks the recorded history and prints the counts. Succeeds only if there are no violations and
//! the run proves something: messages were acknowledged, and read back at the end. SIGINT or SIGTERM end the load
//! early, and the remaining phases run as usual. A second signal aborts.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    ctl::{Context, Failure},
    ctl_args::VerifyArgs,
};
use crate::client::{
    random::Random,
    verify::{
        checker::{self, Report},
        history::History,
        workload::{self, Plan},
    },
};

/// Creates the file for the history. It contains account names and message ids, so only the user may read it.
fn private_file(path: impl AsRef<Path>) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

pub(super) async fn run(context: &mut Context, args: VerifyArgs) -> Result<(), Failure> {
    // 53 bits, so that every JSON reader preserves the seed.
    let seed = args.seed.unwrap_or_else(|| Random::new().next() >> 11);
    // Opened before the run, so that a wrong path fails early.
    let file = args.history.as_ref().map(private_file).transpose()?;
    let plan = Plan { clients: args.clients, duration: args.seconds, seed };
    let (nodes, options) = context.cluster()?;
    let asked = asked_to_end()?;
    let history = tokio::select! {
        history = workload::run_until(nodes, options, plan, times(asked.clone(), 1)) => history?,
        () = times(asked, 2) => return Err(Failure::Inconclusive("it was interrupted before everything was read back")),
    };
    if let Some(file) = file {
        let mut to = BufWriter::new(file);
        history.write(&mut to)?;
        to.flush()?;
    }
    let report = checker::check(&history);
    context.output.print(|| value(&history, &report), || text(&history, &report))?;
    judged(&report)
}

/// Returns the result of the command.
pub(super) fn judged(report: &Report) -> Result<(), Failure> {
    if !report.violations.is_empty() {
        return Err(Failure::Violated);
    }
    report.proved_nothing().map_or(Ok(()), |why| Err(Failure::Inconclusive(why)))
}

/// Counts the signals that ask this process to end.
fn asked_to_end() -> io::Result<watch::Receiver<u32>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (count, asked) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(asked)
}

async fn times(mut asked: watch::Receiver<u32>, count: u32) {
    // Fails only when the runtime ends, and the sender with it.
    let _ = asked.wait_for(|asked| *asked >= count).await;
}

fn counts(report: &Report) -> [(&'static str, u64); 9] {
    [
        ("acknowledged", report.acknowledged),
        ("lost", report.lost),
        ("duplicated", report.duplicated),
        ("reordered", report.reordered),
        ("phantom", report.phantom),
        ("stale_reads", report.stale_reads),
        ("resume_gaps", report.resume_gaps),
        ("unknown", report.unknown),
        ("longest_outage_ms", report.longest_outage_us.div_ceil(1000)),
    ]
}

pub(super) fn value(history: &History, report: &Report) -> Value {
    let violations: Vec<Value> = report
        .violations
        .iter()
        .map(|one| json!({ "kind": one.kind.name(), "count": one.count, "example": one.example }))
        .collect();
    let mut value = json!({ "seed": history.header.seed, "seconds": history.header.seconds,
                            "clients": history.header.clients, "reads": report.reads, "events": report.events,
                            "nodes": history.header.nodes.len(), "nodes_read_back": report.nodes_read_back,
                            "streams_behind": report.streams_behind, "violations": violations });
    for (name, count) in counts(report) {
        value[name] = count.into();
    }
    value
}

pub(super) fn text(history: &History, report: &Report) -> String {
    let header = &history.header;
    let mut lines: Vec<String> = counts(report).iter().map(|(name, count)| format!("{name:<18}{count}")).collect();
    lines.push(format!(
        "{} clients for {:.1} s, seed {}; {} reads, {} events; {} of {} nodes read back at the end",
        header.clients,
        header.seconds,
        header.seed,
        report.reads,
        report.events,
        report.nodes_read_back,
        header.nodes.len()
    ));
    let violation = |one: &checker::Violation| format!("{} ({}): {}", one.kind, one.count, one.example);
    lines.extend(report.violations.iter().map(violation));
    lines.join("\n")
}
