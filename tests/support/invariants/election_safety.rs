//! Election safety (Raft, section 5.2): a leadership belongs to one node, and to one life of it.
//!
//! In this cluster a term and a node identify a leadership, so two nodes never share one. But a node that resumed its
//! own leadership after a restart would assign log ids that it has assigned before.

use std::collections::BTreeMap;

use raft::Role;

use super::{Invariant, Observation};

#[derive(Default)]
pub struct ElectionSafety {
    /// The slot and its life that led in a term under an id.
    led: BTreeMap<(u64, u64), (usize, u64)>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in observation.nodes.iter().filter(|seen| seen.status.role == Role::Leader) {
            let leadership = (seen.status.term, seen.status.node_id);
            let life = (seen.slot, seen.start);
            let first = *self.led.entry(leadership).or_insert(life);
            if first != life {
                return Err(format!(
                    "term {} of node {} was led by life {} of n{}, and is led again by life {} of n{}",
                    leadership.0,
                    leadership.1,
                    first.1,
                    first.0 + 1,
                    life.1,
                    life.0 + 1
                ));
            }
        }
        Ok(())
    }
}
