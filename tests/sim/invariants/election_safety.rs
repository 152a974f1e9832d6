//! Election safety (Raft, section 5.2): a leadership belongs to one node, and to one life of it.
//!
//! In this cluster a term and a node identify a leadership, so two nodes never share one. But a node that resumed its
//! own leadership after a restart would assign log ids that it has assigned before.

use std::collections::BTreeMap;

use quorum_chat::raft::Role;

use super::{Invariant, Look};

#[derive(Default)]
pub struct ElectionSafety {
    /// The seat and its life that led in a term under an id.
    led: BTreeMap<(u64, u64), (usize, u64)>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn look(&mut self, look: &Look) -> Result<(), String> {
        for sight in look.sights.iter().filter(|sight| sight.status.role == Role::Leader) {
            let leadership = (sight.status.term, sight.status.node_id);
            let life = (sight.seat, sight.start);
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
