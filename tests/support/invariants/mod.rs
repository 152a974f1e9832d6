//! The invariants of a run, at every moment and at its end: one file for each.
//!
//! Every few milliseconds of simulated time, all running nodes are observed from inside the process: an
//! [`Observation`]. At the end, the checker of `chatctl verify` checks the recorded history of the clients.
//!
//! They are values without I/O, so that `tests` shows of each of them, on states made by hand, what it accepts and what
//! it rejects. `docs/simulation.md` has a table with the source of each and the seeded bugs that it finds.

mod applied_in_order;
mod committed_never_lost;
mod digests_equal;
mod election_safety;
mod exactly_once;
mod linearizable_reads;
mod log_joins_state;
mod log_matching;
mod no_quarantine_without_damage;
mod resume_without_gap;
#[cfg(test)]
mod tests;

use std::ops::Range;

use proto::log::v1 as pb;
use raft::NodeStatus;
use storage::{AppliedState, LogDb};
use verify::checker::Report;

/// A node at one moment.
pub struct NodeSnapshot {
    /// Its number, from 0.
    pub slot: usize,
    /// The number of its starts. Each start loses what was only in memory.
    pub start: u64,
    pub status: NodeStatus,
    /// The applied state, committed to its file or not.
    pub applied: AppliedState,
    /// Entries that the node has learned to be committed since the previous observation.
    pub committed: Vec<pb::Entry>,
    /// Its log.
    pub log: Box<dyn Log>,
}

/// What the invariants ask of a node's log.
pub trait Log {
    /// The last entry that was purged.
    fn purged(&self) -> Option<pb::LogId>;

    /// The entries in a range of indexes, as far as the log has them.
    fn read(&self, range: Range<u64>) -> Result<Vec<pb::Entry>, String>;
}

impl Log for LogDb {
    fn purged(&self) -> Option<pb::LogId> {
        self.bounds().0
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<pb::Entry>, String> {
        self.read(range, usize::MAX).map_err(|error| error.to_string())
    }
}

/// All running nodes at one moment.
pub struct Observation {
    pub nodes: Vec<NodeSnapshot>,
    /// Nodes that have quarantined their files.
    pub moved_aside: Vec<usize>,
}

/// An invariant.
pub trait Invariant {
    /// Its name in the output.
    fn name(&self) -> &'static str;

    /// Checks an observation. The error describes the violation.
    fn observe(&mut self, _observation: &Observation) -> Result<(), String> {
        Ok(())
    }

    /// Checks the report on the clients' history. The error describes the violation.
    fn check_history(&mut self, _report: &Report) -> Result<(), String> {
        Ok(())
    }
}

/// All invariants.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(log_matching::LogMatching::default()),
        Box::new(log_joins_state::LogJoinsState),
        Box::new(committed_never_lost::CommittedNeverLost::default()),
        Box::new(applied_in_order::AppliedInOrder::default()),
        Box::new(digests_equal::DigestsEqual::default()),
        Box::new(no_quarantine_without_damage::NoQuarantineWithoutDamage),
        Box::new(exactly_once::ExactlyOnce),
        Box::new(linearizable_reads::LinearizableReads),
        Box::new(resume_without_gap::ResumeWithoutGap),
    ]
}

/// Returns the first example of a kind of violation, if its count is not zero.
fn none(count: u64, report: &Report) -> Result<(), String> {
    if count == 0 {
        return Ok(());
    }
    let violations =
        report.violations.iter().map(|found| format!("{} ({}): {}", found.kind, found.count, found.example));
    Err(violations.collect::<Vec<_>>().join("; "))
}

/// An entry's id; entries of the log have one.
fn id_of(entry: &pb::Entry) -> pb::LogId {
    entry.log_id.expect("an entry of the log has an id")
}
