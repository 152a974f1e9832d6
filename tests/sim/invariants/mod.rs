//! What has to hold at every moment of a run, and at its end: one file for each property.
//!
//! Every few milliseconds of simulated time all running nodes are looked at, from inside of the process: a [`Look`]. At the end
//! the recorded history of the clients is judged by the same checker that `chatctl verify` uses.

mod applied_in_order;
mod committed_never_lost;
mod digests_equal;
mod election_safety;
mod exactly_once;
mod linearizable_reads;
mod log_joins_state;
mod log_matching;
mod no_doubt_without_damage;
mod resume_without_gap;

use quorum_chat::{
    client::verify::checker::Report,
    proto::log::v1 as pb,
    raft::{Node, NodeStatus},
    storage::AppliedState,
};

/// A node at one moment.
pub struct Sight {
    /// Its number, from 0.
    pub seat: usize,
    /// How often it was started: what was in memory only is gone with each start.
    pub start: u64,
    pub status: NodeStatus,
    /// What it applied so far, committed to its file or not.
    pub applied: AppliedState,
    /// Entries that it has come to know as committed since the look before.
    pub committed: Vec<pb::Entry>,
    pub node: Node,
}

/// All running nodes at one moment.
pub struct Look {
    pub sights: Vec<Sight>,
    /// Nodes that did not trust their files.
    pub moved_aside: Vec<usize>,
}

/// A property.
pub trait Invariant {
    /// Its name in the output.
    fn name(&self) -> &'static str;

    /// Says what is wrong.
    fn look(&mut self, _look: &Look) -> Result<(), String> {
        Ok(())
    }

    /// Says what is wrong with what the clients saw.
    fn judge(&mut self, _report: &Report) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(log_matching::LogMatching::default()),
        Box::new(log_joins_state::LogJoinsState),
        Box::new(committed_never_lost::CommittedNeverLost::default()),
        Box::new(applied_in_order::AppliedInOrder::default()),
        Box::new(digests_equal::DigestsEqual::default()),
        Box::new(no_doubt_without_damage::NoDoubtWithoutDamage),
        Box::new(exactly_once::ExactlyOnce),
        Box::new(linearizable_reads::LinearizableReads),
        Box::new(resume_without_gap::ResumeWithoutGap),
    ]
}

/// The first example of a kind of violation whose count is not zero.
fn none(count: u64, report: &Report) -> Result<(), String> {
    if count == 0 {
        return Ok(());
    }
    let told = report.violations.iter().map(|found| format!("{} ({}): {}", found.kind, found.count, found.example));
    Err(told.collect::<Vec<_>>().join("; "))
}

/// An entry's id; entries of the log have one.
fn id_of(entry: &pb::Entry) -> pb::LogId {
    entry.log_id.expect("an entry of the log has an id")
}
