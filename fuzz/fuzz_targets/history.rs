//! Histories of `chatctl verify`, from files: whatever is read is written as it was, and judged without a panic.
//!
//! What only a stopwatch would see is seen by the time limit of a run: the checker takes little more than linear time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use verify::{checker, history::History};

fuzz_target!(|bytes: &[u8]| {
    let Ok(history) = History::read(bytes) else { return };
    let mut written = Vec::new();
    history.write(&mut written).expect("a vector grows");
    let mut again = History::read(written.as_slice()).expect("what was written is read");
    // The parser of JSON may be off by the last bit of a fraction.
    let (seconds, read) = (history.header.seconds, again.header.seconds);
    assert!((seconds - read).abs() <= seconds.abs() * 1e-12);
    again.header.seconds = seconds;
    assert_eq!(again, history);
    let report = checker::check(&history);
    assert_eq!(checker::check(&again), report, "the same history has the same faults");
    let counted =
        report.lost + report.duplicated + report.reordered + report.phantom + report.stale_reads + report.resume_gaps;
    assert_eq!(counted, report.violations.iter().map(|violation| violation.count).sum::<u64>());
    assert!(report.acknowledged + report.unknown <= history.records.len() as u64);
});
