//! Leader completeness (Raft, section 5.4): a leader has every entry that was committed before its term. At the end,
//! every acknowledged message is stored.

use std::collections::{BTreeMap, BTreeSet};

use proto::log::v1 as pb;
use raft::Role;
use verify::checker::Report;

use super::{Invariant, NodeSnapshot, Observation, id_of, none};

/// Number of entries compared when a node becomes leader. The newest ones are those at risk.
const COMPARED_MAX: u64 = 500;

#[derive(Default)]
pub struct CommittedNeverLost {
    committed: BTreeMap<u64, pb::LogId>,
    /// Leaderships that were checked.
    checked: BTreeSet<(u64, usize, u64)>,
}

impl CommittedNeverLost {
    fn check(&self, seen: &NodeSnapshot) -> Result<(), String> {
        let older = self.committed.iter().rev().filter(|(_, id)| id.term < seen.status.term);
        let Some((&newest, _)) = older.clone().next() else { return Ok(()) };
        let first = newest.saturating_sub(COMPARED_MAX);
        let entries = seen.log.read(first..newest + 1)?;
        let had: BTreeMap<u64, pb::LogId> = entries.iter().map(|entry| (id_of(entry).index, id_of(entry))).collect();
        let begin = seen.log.purged().map_or(0, |id| id.index + 1).max(first);
        for (index, id) in older.take_while(|(index, _)| **index >= begin) {
            if had.get(index) != Some(id) {
                return Err(format!(
                    "n{} leads in term {} and has {:?} where {id:?} was committed",
                    seen.slot + 1,
                    seen.status.term,
                    had.get(index)
                ));
            }
        }
        Ok(())
    }
}

impl Invariant for CommittedNeverLost {
    fn name(&self) -> &'static str {
        "committed entries are never lost"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in observation.nodes.iter().filter(|seen| seen.status.role == Role::Leader) {
            if self.checked.insert((seen.status.term, seen.slot, seen.start)) {
                self.check(seen)?;
            }
        }
        for entry in observation.nodes.iter().flat_map(|seen| &seen.committed) {
            self.committed.entry(id_of(entry).index).or_insert(id_of(entry));
        }
        Ok(())
    }

    fn check_history(&mut self, report: &Report) -> Result<(), String> {
        none(report.lost, report)
    }
}
