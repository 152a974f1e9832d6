//! Log compaction (Raft, section 7): entries are only purged when the state contains their effects.
//!
//! A node whose log begins after the end of its state has a gap: it can neither apply the entries committed in between
//! nor send them to others. A snapshot from another node would fill the gap, and so hide the fault.

use super::{Invariant, Observation};

pub struct LogJoinsState;

impl Invariant for LogJoinsState {
    fn name(&self) -> &'static str {
        "the log begins where the state ends, or before"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in &observation.nodes {
            let Some(purged) = seen.log.purged() else { continue };
            let applied = seen.applied.log_id.map_or(0, |id| id.index);
            if purged.index > applied {
                let slot = seen.slot + 1;
                return Err(format!("n{slot} has thrown away entries up to {}, and applied {applied}", purged.index));
            }
        }
        Ok(())
    }
}
