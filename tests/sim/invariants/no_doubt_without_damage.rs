//! A crash is no damage: whatever it leaves, a node finds its way from there, and does not take its files for damaged.
//!
//! What a run damages by intent is left out; nothing else changes what was flushed. A node that moves its files aside all
//! the same has written them wrongly, or doubts them without reason; that it comes back as another one would hide it.

use super::{Invariant, Look};

pub struct NoDoubtWithoutDamage;

impl Invariant for NoDoubtWithoutDamage {
    fn name(&self) -> &'static str {
        "files are not doubted without damage"
    }

    fn look(&mut self, look: &Look) -> Result<(), String> {
        match look.moved_aside.first() {
            Some(seat) => Err(format!("n{} has moved its files aside", seat + 1)),
            None => Ok(()),
        }
    }
}
