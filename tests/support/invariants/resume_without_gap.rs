//! A resumed subscription has no gaps.

use verify::checker::Report;

use super::{Invariant, none};

pub struct ResumeWithoutGap;

impl Invariant for ResumeWithoutGap {
    fn name(&self) -> &'static str {
        "resumed streams have no gap"
    }

    fn check_history(&mut self, report: &Report) -> Result<(), String> {
        none(report.resume_gaps, report)
    }
}
