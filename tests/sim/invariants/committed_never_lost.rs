//! Leader completeness (Raft, section 5.4): a leader has every entry that was committed before its term. At the end,
//! every acknowledged message is stored.

use std::collections::{BTreeMap, BTreeSet};

use quorum_chat::{client::verify::checker::Report, proto::log::v1 as pb, raft::Role};

use super::{Invariant, Look, Sight, id_of, none};

/// Number of entries compared when a node becomes leader. The newest ones are those at risk.
const COMPARED_MAX: u64 = 500;

#[derive(Default)]
pub struct CommittedNeverLost {
    committed: BTreeMap<u64, pb::LogId>,
    /// Leaderships that were checked.
    checked: BTreeSet<(u64, usize, u64)>,
}

impl CommittedNeverLost {
    fn check(&self, sight: &Sight) -> Result<(), String> {
        let older = self.committed.iter().rev().filter(|(_, id)| id.term < sight.status.term);
        let Some((&newest, _)) = older.clone().next() else { return Ok(()) };
        let (log, _) = sight.node.files();
        let first = newest.saturating_sub(COMPARED_MAX);
        let entries = log.read(first..newest + 1, usize::MAX).map_err(|error| error.to_string())?;
        let had: BTreeMap<u64, pb::LogId> = entries.iter().map(|entry| (id_of(entry).index, id_of(entry))).collect();
        let (purged, _) = log.bounds();
        let begin = purged.map_or(0, |id| id.index + 1).max(first);
        for (index, id) in older.take_while(|(index, _)| **index >= begin) {
            if had.get(index) != Some(id) {
                return Err(format!(
                    "n{} leads in term {} and has {:?} where {id:?} was committed",
                    sight.seat + 1,
                    sight.status.term,
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

    fn look(&mut self, look: &Look) -> Result<(), String> {
        for sight in look.sights.iter().filter(|sight| sight.status.role == Role::Leader) {
            if self.checked.insert((sight.status.term, sight.seat, sight.start)) {
                self.check(sight)?;
            }
        }
        for entry in look.sights.iter().flat_map(|sight| &sight.committed) {
            self.committed.entry(id_of(entry).index).or_insert(id_of(entry));
        }
        Ok(())
    }

    fn judge(&mut self, report: &Report) -> Result<(), String> {
        none(report.lost, report)
    }
}
