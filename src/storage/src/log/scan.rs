//! Walks through the stored entries: their checksums, and their sizes.
//!
//! Does not cover: the entries that replication and apply read (`LogDb::read`).

use std::ops::Range;

use super::{LogDb, lock, schema};
use crate::StorageError;

/// Entries per read of [`LogDb::verify`].
const VERIFY_STRETCH: usize = 256;
/// Entries whose sizes [`LogDb::start_of_newest`] reads at once.
pub(super) const SIZES_STRETCH: u64 = 4096;

impl LogDb {
    /// Index of the first of those newest entries in `range` that have at most `bytes` together; the end of the range
    /// if the last one alone has more. Reads no entry, only how long it is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn start_of_newest(&self, range: Range<u64>, bytes: u64) -> Result<u64, StorageError> {
        let (mut start, mut room) = (range.end, bytes);
        while start > range.start {
            let stretch = range.start.max(start.saturating_sub(SIZES_STRETCH))..start;
            // The lock is released in between, so that replication need not wait for all of it.
            for (index, length) in schema::sizes(&lock(&self.shared.reader), stretch.clone())? {
                let Some(rest) = room.checked_sub(length) else { return Ok(start) };
                (start, room) = (index, rest);
            }
            // Entries that are not there take no space.
            start = stretch.start;
        }
        Ok(start)
    }

    /// Reads every entry and verifies its checksum.
    ///
    /// # Errors
    /// An entry is damaged, or the file cannot be read.
    pub fn verify(&self) -> Result<(), StorageError> {
        let first = self.state().first;
        let last = self.bounds().1;
        let end = last.map_or(first, |id| id.index + 1);
        let reader = lock(&self.shared.reader);
        for from in (first..end).step_by(VERIFY_STRETCH) {
            schema::read(&reader, from..end.min(from + VERIFY_STRETCH as u64), usize::MAX)?;
        }
        Ok(())
    }
}
