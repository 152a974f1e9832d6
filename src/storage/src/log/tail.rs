//! The newest entries of the log, in memory.
//!
//! Its size is limited in bytes. Entries that are not durable yet always stay, because there is no other copy of them
//! to read.

use std::{collections::VecDeque, ops::Range};

use proto::log::v1 as pb;

pub(super) struct Tail {
    /// Contiguous entries, up to `last`, with their encoded size.
    entries: VecDeque<(pb::Entry, usize)>,
    bytes: usize,
    /// Maximum bytes of durable entries that are kept.
    bytes_max: usize,
    last: Option<pb::LogId>,
    /// Entries before this index are durable.
    durable_end: u64,
}

impl Tail {
    /// An empty tail of a log that ends at `last`.
    pub(super) fn new(last: Option<pb::LogId>, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max, last, durable_end: end(last) }
    }

    /// Changes how much is kept.
    pub(super) fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.evict();
    }

    pub(super) fn last(&self) -> Option<pb::LogId> {
        self.last
    }

    /// Index of the first entry held, or the index after the last entry if none is held.
    pub(super) fn first_index(&self) -> u64 {
        self.end_index() - self.entries.len() as u64
    }

    /// The index after the last entry; 0 when the log is empty.
    pub(super) fn end_index(&self) -> u64 {
        end(self.last)
    }

    pub(super) fn push(&mut self, entry: pb::Entry, size: usize) {
        let id = entry.log_id;
        // After the installation of a snapshot the log continues at a higher index. The entries still held are then
        // older than the purge point.
        if id.is_some_and(|id| id.index != self.end_index()) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.entries.push_back((entry, size));
        self.bytes += size;
        self.last = id;
        self.evict();
    }

    /// Marks entries before `end` as durable.
    pub(super) fn set_durable(&mut self, end: u64) {
        self.durable_end = self.durable_end.max(end);
        self.evict();
    }

    /// Marks entries from `end` on as not durable. They may not exist any more.
    pub(super) fn limit_durable(&mut self, end: u64) {
        self.durable_end = self.durable_end.min(end);
    }

    /// Drops everything after `last`.
    pub(super) fn truncate_after(&mut self, last: Option<pb::LogId>) {
        while self.entries.back().is_some_and(|(entry, _)| end(entry.log_id) > end(last)) {
            self.pop_back();
        }
        self.last = last;
        self.durable_end = self.durable_end.min(end(last));
    }

    /// Drops everything up to `index`.
    pub(super) fn purge(&mut self, index: u64) {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.is_some_and(|id| id.index <= index)) {
            self.pop_front();
        }
        if self.last.is_some_and(|last| last.index <= index) {
            self.last = None;
            self.durable_end = 0;
        }
    }

    /// The entries of `range`, which must lie within the entries held. Returns at most `max_bytes`, but at least one
    /// entry.
    pub(super) fn read(&self, range: Range<u64>, max_bytes: usize) -> Vec<pb::Entry> {
        let skip = (range.start - self.first_index()) as usize;
        let mut room = max_bytes;
        let mut found = Vec::with_capacity((range.end - range.start).min(1024) as usize);
        for (entry, size) in self.entries.iter().skip(skip).take((range.end - range.start) as usize) {
            if !found.is_empty() && *size > room {
                break;
            }
            room = room.saturating_sub(*size);
            found.push(entry.clone());
        }
        found
    }

    fn evict(&mut self) {
        let durable_end = self.durable_end;
        while self.bytes > self.bytes_max
            && self.entries.front().is_some_and(|(entry, _)| entry.log_id.is_some_and(|id| id.index < durable_end))
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, size)) = self.entries.pop_front() {
            self.bytes -= size;
        }
    }

    fn pop_back(&mut self) {
        if let Some((_, size)) = self.entries.pop_back() {
            self.bytes -= size;
        }
    }
}

/// The index after a position.
pub(super) fn end(last: Option<pb::LogId>) -> u64 {
    last.map_or(0, |id| id.index + 1)
}
