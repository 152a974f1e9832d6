//! Log matching (Raft, section 5.3): the committed entry at an index is the same on all nodes, forever.

use std::collections::BTreeMap;

use proto::log::v1 as pb;

use super::{Invariant, Observation, id_of};

#[derive(Default)]
pub struct LogMatching {
    committed: BTreeMap<u64, (pb::Entry, usize)>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in &observation.nodes {
            for entry in &seen.committed {
                let index = id_of(entry).index;
                let (first, slot) = self.committed.entry(index).or_insert_with(|| (entry.clone(), seen.slot));
                if first != entry {
                    return Err(format!(
                        "entry {index} is {:?} on n{} and {:?} on n{}{}",
                        id_of(first),
                        *slot + 1,
                        id_of(entry),
                        seen.slot + 1,
                        if first.log_id == entry.log_id { ", with another content" } else { "" }
                    ));
                }
            }
        }
        Ok(())
    }
}
