//! Nodes at the same revision have the same digest of their state.

use std::collections::BTreeMap;

use quorum_chat::chat::StateDigest;

use super::{Invariant, Look};

#[derive(Default)]
pub struct DigestsEqual {
    digests: BTreeMap<u64, (StateDigest, usize)>,
}

impl Invariant for DigestsEqual {
    fn name(&self) -> &'static str {
        "digests are equal at equal revisions"
    }

    fn look(&mut self, look: &Look) -> Result<(), String> {
        for sight in &look.sights {
            let (revision, digest) = (sight.applied.revision.0, sight.applied.chain.digest);
            let (first, seat) = *self.digests.entry(revision).or_insert((digest, sight.seat));
            if first != digest {
                return Err(format!(
                    "at revision {revision} n{} has {first} and n{} has {digest}",
                    seat + 1,
                    sight.seat + 1
                ));
            }
        }
        Ok(())
    }
}
