//! Bytes in the log that are not a valid command in any version. They are rejected, counted, and included in the
//! digest.

use super::applier::{Applier, MalformedCommand};
use crate::digest::Fold;
use crate::intake::Malformed;
use chat::{Outcome, Rejection};

/// Maximum number of malformed commands that a call of [`StateMachine::stage`](super::StateMachine::stage) describes.
const MALFORMED_SHOWN_MAX: usize = 8;

impl Applier<'_> {
    /// Rejects bytes that are not a valid command. They change neither the revision nor the clock; the digest includes
    /// them.
    pub(super) fn malformed(&mut self, index: u64, position: usize, problem: Malformed, bytes: &[u8]) -> Outcome {
        let outcome = Outcome::Rejected(Rejection::Malformed);
        if self.malformed == 0 || !failpoints::is_active(failpoints::MALFORMED_NOT_IN_DIGEST) {
            let fold = Fold::malformed(&self.chain, bytes);
            fold.end(&mut self.chain, &outcome, std::iter::empty(), (self.revision, self.revision), self.clock);
        }
        self.malformed += 1;
        if self.malformed_shown.len() < MALFORMED_SHOWN_MAX {
            self.malformed_shown.push(MalformedCommand { index, position, problem: problem.0 });
        }
        outcome
    }
}
