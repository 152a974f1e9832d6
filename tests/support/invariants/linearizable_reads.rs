//! Reads show the state of a revision that agrees with real time: linearizability, witnessed by the order of revisions.

use verify::checker::Report;

use super::{Invariant, none};

pub struct LinearizableReads;

impl Invariant for LinearizableReads {
    fn name(&self) -> &'static str {
        "linearizable reads"
    }

    fn check_history(&mut self, report: &Report) -> Result<(), String> {
        none(report.stale_reads + report.reordered + report.phantom, report)
    }
}
