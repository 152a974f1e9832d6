//! The result of a verified workload: the exit code it leads to, and how `verify` and `drill` show it.

use serde_json::{Value, json};

use crate::failure::Failure;
use ::verify::{
    checker::{Report, Violation},
    history::History,
};

/// Converts the report into the result of the command, which succeeds if there are no violations and the run proves
/// something.
pub(super) fn verdict(report: &Report) -> Result<(), Failure> {
    if !report.violations.is_empty() {
        return Err(Failure::Violated);
    }
    report.proved_nothing().map_or(Ok(()), |why| Err(Failure::Inconclusive(why)))
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

pub(super) fn report_json(history: &History, report: &Report) -> Value {
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

pub(super) fn report_text(history: &History, report: &Report) -> String {
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
    let violation = |one: &Violation| format!("{} ({}): {}", one.kind, one.count, one.example);
    lines.extend(report.violations.iter().map(violation));
    lines.join("\n")
}
