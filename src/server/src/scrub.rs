//! Verifies the node's files in the background, because a start does not read all of them.
//!
//! A pass reads one page of `chat.db` after the other, in steps that are spread over the interval; a small state takes
//! less. Then `log.db` is checked at once: its size is bounded. Damage ends the node, and the next start moves the
//! files aside. A pass begins at a random page, so that all pages are read in the long run although the node is
//! restarted more often than a pass takes.
//!
//! Does not cover: pages in the write-ahead log, which are verified in the file once they are there, and pages of
//! `log.db` that are not in use.

use std::{path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::telemetry::metrics::Metrics;
use storage::{FirstFailure, SharedState, StorageError, VerifiedPages, integrity};
use trace::blocking;

/// Interval between two steps of a pass.
const STEP: Duration = Duration::from_secs(1);
/// Least and most pages that a step reads: 256 KiB and 64 MiB.
const PAGES_MIN: u32 = 64;
const PAGES_MAX: u32 = 16_384;
/// Attempts to read the pages of a step. Then the pass goes on behind them.
const ATTEMPTS: u32 = 3;

/// The files to verify.
pub(super) struct Scrub {
    pub data_dir: PathBuf,
    pub state: SharedState,
    pub failure: FirstFailure,
    /// Time from the beginning of a pass to that of the next.
    pub interval: Duration,
    pub metrics: Metrics,
}

/// The files are damaged, or their use has ended.
struct Ended;

impl Scrub {
    /// Runs until the files have failed.
    pub(super) async fn run(self) {
        loop {
            let began = Instant::now();
            match self.pass().await {
                Ok(true) => self.metrics.scrub_completed(),
                Ok(false) => {}
                Err(Ended) => return,
            }
            sleep_until(began + self.interval).await;
        }
    }

    /// Reads everything once. Returns false if a part could not be read.
    async fn pass(&self) -> Result<bool, Ended> {
        let Some(VerifiedPages { of, .. }) = self.verify(1, 1).await? else { return Ok(false) };
        let begin = 1 + uuid::Uuid::new_v4().as_fields().0 % of.max(1);
        let first = self.range(begin, u32::MAX, 0).await?;
        let second = self.range(1, begin - 1, of.max(1) - begin + 1).await?;
        let dir = self.data_dir.clone();
        let rest = self.read("log.db and files without checksums", move || {
            integrity::check_log(&dir)?;
            match integrity::without_checksums(&dir)?.contains(&"chat.db") {
                true => integrity::check_state(&dir),
                false => Ok(()),
            }
        });
        Ok(rest.await?.is_some() && first && second)
    }

    /// Reads the pages from `next` to `last`, or to the end. `done` pages of the pass were read before. Returns false
    /// if some could not be read.
    async fn range(&self, mut next: u32, last: u32, mut done: u32) -> Result<bool, Ended> {
        let (mut most, mut attempts, mut all_read) = (PAGES_MIN, 0, true);
        while next <= last {
            match self.verify(next, most.min(last - next + 1)).await? {
                Some(VerifiedPages { count: 0, .. }) => break,
                Some(VerifiedPages { count, of }) => {
                    (attempts, next, done) = (0, next + count, done + count);
                    most = share(of, self.interval);
                    self.metrics.storage.scrubbed_pages.inc_by(count.into());
                    self.metrics.storage.scrub_progress_ratio.set((f64::from(done) / f64::from(of)).min(1.0));
                }
                None if attempts < ATTEMPTS => attempts += 1,
                None => (attempts, next, all_read) = (0, next.saturating_add(most), false),
            }
            sleep(STEP).await;
        }
        Ok(all_read)
    }

    async fn verify(&self, first: u32, most: u32) -> Result<Option<VerifiedPages>, Ended> {
        let state = self.state.clone();
        self.read("chat.db", move || state.verify_pages(first, most)).await
    }

    /// The result of a read; `None` if it failed for another reason than damage.
    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<Option<T>, Ended> {
        match blocking::run(work).await {
            Ok(Ok(read)) => Ok(Some(read)),
            Ok(Err(error)) if error.is_corruption() => {
                tracing::error!(%error, "Damage was found in {what}");
                self.failure.note("", &error);
                self.state.fail(&error);
                Err(Ended)
            }
            Ok(Err(StorageError::Stopped(_))) => Err(Ended),
            Ok(Err(error)) => {
                tracing::warn!(%error, "Not all of {what} could be verified");
                Ok(None)
            }
            // The runtime is shutting down.
            Err(_) => Err(Ended),
        }
    }
}

/// Pages to read in a step, so that a file of `pages` is read within the interval.
fn share(pages: u32, interval: Duration) -> u32 {
    let steps = (interval.as_secs() / STEP.as_secs()).max(1);
    u32::try_from(u64::from(pages).div_ceil(steps)).unwrap_or(PAGES_MAX).clamp(PAGES_MIN, PAGES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_reads_its_share_within_limits() {
        let day = Duration::from_secs(86_400);
        // 10 GB a day would be 31 a second, and 400 GB are 1158.
        assert_eq!(share(2_621_440, day), PAGES_MIN);
        assert_eq!(share(100_000_000, day), 1158);
        assert_eq!(share(100_000_000, Duration::from_secs(1)), PAGES_MAX);
        assert_eq!(share(1, Duration::from_secs(1)), PAGES_MIN);
    }
}
