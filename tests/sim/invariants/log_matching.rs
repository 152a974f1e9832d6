//! Log matching (Raft, section 5.3): the committed entry at an index is the same on all nodes, forever.

use std::collections::BTreeMap;

use quorum_chat::proto::log::v1 as pb;

use super::{Invariant, Look, id_of};

#[derive(Default)]
pub struct LogMatching {
    committed: BTreeMap<u64, (pb::Entry, usize)>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn look(&mut self, look: &Look) -> Result<(), String> {
        for sight in &look.sights {
            for entry in &sight.committed {
                let index = id_of(entry).index;
                let (first, seat) = self.committed.entry(index).or_insert_with(|| (entry.clone(), sight.seat));
                if first != entry {
                    return Err(format!(
                        "entry {index} is {:?} on n{} and {:?} on n{}{}",
                        id_of(first),
                        *seat + 1,
                        id_of(entry),
                        sight.seat + 1,
                        if first.log_id == entry.log_id { ", with another content" } else { "" }
                    ));
                }
            }
        }
        Ok(())
    }
}
