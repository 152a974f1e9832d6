//! Real-time order against the order of revisions.
//!
//! Every answer names a revision that had been assigned when the operation completed. Operations that begin later get
//! later revisions.

use super::{
    Findings, Kind,
    ledger::{Ledger, Message},
    words,
};
use crate::history::{Action, History, Record};

/// The newest revision that any client had observed before a given time.
pub(super) struct Floor {
    /// Completion times, each with the newest revision observed by then. Both increase.
    known: Vec<(u64, u64)>,
}

impl Floor {
    pub(super) fn new(records: &[Record]) -> Self {
        let mut known: Vec<(u64, u64)> =
            records.iter().filter_map(|record| Some((record.ended_us, record.revision()?))).collect();
        known.sort_unstable();
        let mut newest = 0;
        for (_, revision) in &mut known {
            newest = newest.max(*revision);
            *revision = newest;
        }
        Self { known }
    }

    /// Returns the newest revision that operations had observed that completed before `moment_us`.
    pub(super) fn before(&self, moment_us: u64) -> u64 {
        let after = self.known.partition_point(|(ended, _)| *ended < moment_us);
        after.checked_sub(1).map_or(0, |at| self.known[at].1)
    }
}

/// Checks that sends come after everything that completed before their first attempt, and that the answers to other
/// changes reflect no older state.
pub(super) fn check(history: &History, ledger: &Ledger, floor: &Floor, found: &mut Findings) {
    let mut clock: Option<(u64, &Message)> = None;
    for (id, message) in &ledger.messages {
        if let Some(send) = message.owner.and_then(|owner| ledger.sends.get(&owner)) {
            let known = floor.before(send.first_began);
            if *id <= known {
                let send = words(history, send.first_record);
                found.add(Kind::RealTimeViolation, (*id, 0), || {
                    format!("message {id} has a revision that is not after {known}, which was seen before {send} began")
                });
            }
        }
        if let Some((before, earlier)) = clock
            && earlier.time_ms > message.time_ms
        {
            found.add(Kind::ClockBackwards, (*id, 0), || {
                format!("message {id} is of {} ms, and {before} before it of {} ms", message.time_ms, earlier.time_ms)
            });
        }
        clock = Some((*id, message));
    }
    for (at, record) in history.records.iter().enumerate() {
        if !matches!(record.action, Action::MarkRead { .. } | Action::Deliver { .. } | Action::Delete { .. }) {
            continue;
        }
        let Some(revision) = record.revision() else { continue };
        let known = floor.before(record.began_us);
        if revision < known {
            found.add(Kind::RealTimeViolation, (at as u64, 1), || {
                format!("{} was applied at {revision}, before {known}, which was seen before", words(history, at))
            });
        }
    }
}
