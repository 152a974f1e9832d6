//! Log compaction (Raft, section 7): entries are only purged when the state contains their effects.
//!
//! A node whose log begins after the end of its state has a gap: it can neither apply the entries committed in between
//! nor send them to others. A snapshot from another node would fill the gap, and so hide the fault.

use super::{Invariant, Look};

pub struct LogJoinsState;

impl Invariant for LogJoinsState {
    fn name(&self) -> &'static str {
        "the log begins where the state ends, or before"
    }

    fn look(&mut self, look: &Look) -> Result<(), String> {
        for sight in &look.sights {
            let (Some(purged), _) = sight.node.files().0.bounds() else { continue };
            let applied = sight.applied.log_id.map_or(0, |id| id.index);
            if purged.index > applied {
                let seat = sight.seat + 1;
                return Err(format!("n{seat} has thrown away entries up to {}, and applied {applied}", purged.index));
            }
        }
        Ok(())
    }
}
