//! The longest time without an acknowledgement.

use crate::history::{Action, History, Outcome};

/// Returns the longest time in which sends were in flight and none was acknowledged: see `Report::longest_outage_us`.
/// Counts only sends that began during the load. The time ends with the load.
pub(super) fn longest_us(history: &History) -> u64 {
    let end = history.header.load_ended_us;
    let sends = || {
        history.records.iter().filter_map(move |record| match &record.action {
            Action::Send { outcome, .. } if record.began_us < end => Some((record, outcome)),
            _ => None,
        })
    };
    let acknowledged = sends().filter(|(_, outcome)| matches!(outcome, Outcome::Ok(_)));
    let mut moments: Vec<u64> = acknowledged.map(|(record, _)| record.ended_us).filter(|at| *at < end).collect();
    moments.sort_unstable();
    moments.dedup();
    // Gap g lies between moment g - 1 and moment g. The last gap ends with the load.
    let gap = |at: u64| moments.partition_point(|moment| *moment <= at);
    let starts: Vec<u64> = std::iter::once(0).chain(moments.iter().copied()).collect();
    let ends: Vec<u64> = moments.iter().copied().chain([end]).collect();
    let mut waiting_since: Vec<Option<u64>> = vec![None; ends.len()];
    // For each gap, the number of sends that began before it and are still in flight when it begins, as differences.
    let mut carried = vec![0_i64; ends.len() + 1];
    for (record, _) in sends() {
        let first = gap(record.began_us);
        let since = &mut waiting_since[first];
        *since = Some(since.map_or(record.began_us, |since| since.min(record.began_us)));
        // A send is in flight in a gap if it completes after the gap begins.
        let last = moments.partition_point(|moment| *moment < record.ended_us);
        if last > first {
            carried[first + 1] += 1;
            carried[last + 1] -= 1;
        }
    }
    let mut in_flight = 0;
    let mut longest = 0;
    for at in 0..ends.len() {
        in_flight += carried[at];
        let since = if in_flight > 0 { Some(starts[at]) } else { waiting_since[at] };
        longest = longest.max(since.map_or(0, |since| ends[at].saturating_sub(since)));
    }
    longest
}
