//! A crash is not damage: a node recovers from whatever a crash leaves, and does not quarantine its files.
//!
//! Deliberate damage of a run is excluded; nothing else changes flushed data. A node that still moves its files aside
//! has written them wrongly, or quarantines them without reason. Its return under a new id would hide the fault.

use super::{Invariant, Observation};

pub struct NoQuarantineWithoutDamage;

impl Invariant for NoQuarantineWithoutDamage {
    fn name(&self) -> &'static str {
        "files are not quarantined without damage"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        match observation.moved_aside.first() {
            Some(slot) => Err(format!("n{} has moved its files aside", slot + 1)),
            None => Ok(()),
        }
    }
}
