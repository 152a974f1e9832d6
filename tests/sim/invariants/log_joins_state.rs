//! Log compaction (Raft, section 7): entries are only thrown away when the state has what they did.
//!
//! A node whose log begins later than its state ends has a hole: it can neither apply what was committed in between nor give
//! it to others. A snapshot from another node would fill it, and so hide it.

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
