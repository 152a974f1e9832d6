//! The longest time without an acknowledgement.

use crate::client::verify::history::{Action, History, Outcome};

/// The longest time in which sends were under way and none was acknowledged: see `Report::longest_outage_us`. Only what
/// was begun during the load counts, and the time ends with it.
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
    // Gap number g is what lies before moment g and after the one before it; the last one ends with the load.
    let gap = |at: u64| moments.partition_point(|moment| *moment <= at);
    let starts: Vec<u64> = std::iter::once(0).chain(moments.iter().copied()).collect();
    let ends: Vec<u64> = moments.iter().copied().chain([end]).collect();
    let mut waiting_since: Vec<Option<u64>> = vec![None; ends.len()];
    // How many sends that began before a gap are still under way when it begins: as differences.
    let mut carried = vec![0_i64; ends.len() + 1];
    for (record, _) in sends() {
        let first = gap(record.began_us);
        let since = &mut waiting_since[first];
        *since = Some(since.map_or(record.began_us, |since| since.min(record.began_us)));
        // Under way in a gap means: over after its beginning.
        let last = moments.partition_point(|moment| *moment < record.ended_us);
        if last > first {
            carried[first + 1] += 1;
            carried[last + 1] -= 1;
        }
    }
    let mut under_way = 0;
    let mut longest = 0;
    for at in 0..ends.len() {
        under_way += carried[at];
        let since = if under_way > 0 { Some(starts[at]) } else { waiting_since[at] };
        longest = longest.max(since.map_or(0, |since| ends[at].saturating_sub(since)));
    }
    longest
}
