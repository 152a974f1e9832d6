//! State machine safety (Raft, section 5.4.3): all nodes apply the same entries, in order and once.
//!
//! Observed from outside: after the same entry, every node in every life has the same revision and the same digest, and
//! no life of a node goes back. After a power failure a node may have to apply entries again that its file has lost. A
//! node that applied an entry twice, or skipped one, has a different digest from there on.

use std::collections::BTreeMap;

use chat::Revision;
use storage::Chain;

use super::{Invariant, Observation};

#[derive(Default)]
pub struct AppliedInOrder {
    /// The state after each entry, and the slot that it was observed on.
    after: BTreeMap<u64, (Revision, Chain, usize)>,
    /// The index that each life of each slot has reached.
    reached: BTreeMap<(usize, u64), u64>,
}

impl Invariant for AppliedInOrder {
    fn name(&self) -> &'static str {
        "entries are applied in order and once"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in &observation.nodes {
            let Some(id) = seen.applied.log_id else { continue };
            let reached = self.reached.entry((seen.slot, seen.start)).or_default();
            if id.index < *reached {
                return Err(format!("n{} went back from entry {reached} to {}", seen.slot + 1, id.index));
            }
            *reached = id.index;
            let state = (seen.applied.revision, seen.applied.chain, seen.slot);
            let first = *self.after.entry(id.index).or_insert(state);
            if (first.0, first.1) != (state.0, state.1) {
                return Err(format!(
                    "after entry {} n{} is at revision {} and n{} at {}{}",
                    id.index,
                    first.2 + 1,
                    first.0,
                    seen.slot + 1,
                    state.0,
                    if first.0 == state.0 { ", with another digest" } else { "" }
                ));
            }
        }
        Ok(())
    }
}
