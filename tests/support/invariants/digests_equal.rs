//! Nodes at the same revision have the same digest of their state.

use std::collections::BTreeMap;

use chat::StateDigest;

use super::{Invariant, Observation};

#[derive(Default)]
pub struct DigestsEqual {
    digests: BTreeMap<u64, (StateDigest, usize)>,
}

impl Invariant for DigestsEqual {
    fn name(&self) -> &'static str {
        "digests are equal at equal revisions"
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), String> {
        for seen in &observation.nodes {
            let (revision, digest) = (seen.applied.revision.0, seen.applied.chain.digest);
            let (first, slot) = *self.digests.entry(revision).or_insert((digest, seen.slot));
            if first != digest {
                return Err(format!(
                    "at revision {revision} n{} has {first} and n{} has {digest}",
                    slot + 1,
                    seen.slot + 1
                ));
            }
        }
        Ok(())
    }
}
