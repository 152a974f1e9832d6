//! Each client message id is stored once, and every answer to it names the same message.

use verify::checker::Report;

use super::{Invariant, none};

pub struct ExactlyOnce;

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once per client message id"
    }

    fn check_history(&mut self, report: &Report) -> Result<(), String> {
        none(report.duplicated, report)
    }
}
