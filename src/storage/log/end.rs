//! How far the log was durable when somebody was last told so, noted beside it.
//!
//! SQLite takes a frame of the write-ahead log that does not match its checksum for a write that was cut off, and drops it with
//! all that follow: one flipped bit takes acknowledged entries along without a trace. So before anybody is told that entries or
//! a vote are durable, the end of the log and the vote are noted in a second file, `log.db-end`. A start that finds less than that
//! in the log knows that the log is damaged. The note is written and not flushed: that outlives the process, and takes
//! microseconds. (To keep what was written in two places is how TigerBeetle, with two rings of headers, and Alagappan et al.,
//! "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, tell damage from a crash.)
//!
//! Invariants:
//!
//! - What is noted is durable in `log.db`: a note follows the commit, and is lowered, durably, before entries are taken away.
//! - One of two slots is whole at any moment: they are written in turn, and lie in different sectors.
//!
//! Not covered: damage that meets a power failure. The notes of the last moments may not have reached the disk; those before the
//! last start have.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::tail::end;
use crate::{
    planted,
    proto::log::v1 as pb,
    storage::{StorageError, db, private},
};

/// Beside `log.db`.
const NAME: &str = "log.db-end";
/// Between the beginnings of the slots: no two of them share a page of the system, nor a sector.
const SLOT_BYTES: u64 = 4096;
/// One slot, without what is unused.
const RECORD_BYTES: usize = 8 * WORDS + 4;
const WORDS: usize = 7;

/// What is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Note {
    /// Counts the notes of a file. The one with the higher number is newer.
    number: u64,
    /// Up to here entries are durable, or were purged.
    last: Option<pb::LogId>,
    /// The vote; of term 0: none.
    vote: pb::Vote,
}

impl Note {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let (last, vote) = (self.last.unwrap_or_default(), self.vote);
        let voted = [vote.term, vote.node_id, vote.committed.into()];
        let numbers = [self.number, end(self.last), last.term, last.node_id].into_iter().chain(voted);
        let mut record = [0; RECORD_BYTES];
        let (words, sum) = record.split_at_mut(RECORD_BYTES - 4);
        for (word, number) in words.chunks_exact_mut(8).zip(numbers) {
            word.copy_from_slice(&number.to_le_bytes());
        }
        sum.copy_from_slice(&crc32fast::hash(words).to_le_bytes());
        record
    }

    /// `None` when it is not what was written.
    fn decode(record: &[u8; RECORD_BYTES]) -> Option<Self> {
        if record.iter().all(|byte| *byte == 0) {
            return Some(Self::default());
        }
        let (words, sum) = record.split_at(RECORD_BYTES - 4);
        if crc32fast::hash(words).to_le_bytes() != sum {
            return None;
        }
        let mut numbers = [0; WORDS];
        for (number, word) in numbers.iter_mut().zip(words.chunks_exact(8)) {
            *number = u64::from_le_bytes(word.try_into().ok()?);
        }
        let [number, end, last_term, last_node, term, node_id, committed] = numbers;
        let last = end.checked_sub(1).map(|index| pb::LogId { term: last_term, node_id: last_node, index });
        Some(Self { number, last, vote: pb::Vote { term, node_id, committed: committed != 0 } })
    }
}

/// The file, and what it says.
pub(super) struct End {
    path: PathBuf,
    file: File,
    noted: Note,
}

impl End {
    /// Opens the note of the log in `dir`, in which `found` was found. Makes one if there is none: an earlier version wrote none.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: more was durable than was found, or the note is damaged. The file cannot be read or written.
    pub(super) fn open(dir: &Path, found: &Found) -> Result<Self, StorageError> {
        let path = dir.join(NAME);
        let is_new = !fs::exists(&path).map_err(StorageError::io("look for", &path))?;
        let file = private::open_or_create(&path).map_err(StorageError::io("open", &path))?;
        let noted = if is_new { Note::default() } else { read(&file).map_err(StorageError::io("read", &path))?? };
        found.check(&noted)?;
        let mut opened = Self { path, file, noted };
        if is_new {
            opened.write(Note { number: 1, ..Note::default() })?;
        }
        opened.write(Note {
            number: opened.noted.number + 1,
            last: found.last,
            vote: found.vote.unwrap_or_default(),
        })?;
        opened.flush()?;
        if is_new {
            db::sync_directory(dir)?;
        }
        Ok(opened)
    }

    /// Entries up to `last` are durable, if there are more than were noted; and so is `vote`, if there is one.
    pub(super) fn raise(&mut self, last: Option<pb::LogId>, vote: Option<pb::Vote>) -> Result<(), StorageError> {
        let last = if end(last) > end(self.noted.last) { last } else { self.noted.last };
        let vote = vote.unwrap_or(self.noted.vote);
        if (last, vote) == (self.noted.last, self.noted.vote) || planted::is(planted::END_NOT_NOTED) {
            return Ok(());
        }
        self.write(Note { number: self.noted.number + 1, last, vote })
    }

    /// Entries after `last` are about to be taken away. What is noted is durable when this returns: the entries may be gone,
    /// durably, before another note is.
    pub(super) fn lower(&mut self, last: Option<pb::LogId>) -> Result<(), StorageError> {
        if end(last) >= end(self.noted.last) {
            return Ok(());
        }
        self.write(Note { number: self.noted.number + 1, last, ..self.noted })?;
        self.flush()
    }

    fn write(&mut self, note: Note) -> Result<(), StorageError> {
        let at = note.number % 2 * SLOT_BYTES;
        self.file.write_all_at(&note.encode(), at).map_err(StorageError::io("write", &self.path))?;
        self.noted = note;
        Ok(())
    }

    /// Makes what is noted durable.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(StorageError::io("flush", &self.path))
    }
}

/// What a start found in the log.
pub(super) struct Found<'a> {
    /// The position of the last entry, or the last that was purged.
    pub last: Option<pb::LogId>,
    pub vote: Option<pb::Vote>,
    /// The position of the entry at an index, unless it was purged.
    pub at: &'a dyn Fn(u64) -> Result<Option<pb::LogId>, StorageError>,
}

impl Found<'_> {
    /// Whether all of what was noted is there. An entry of the same index and term is the same, and so are all before it.
    fn check(&self, noted: &Note) -> Result<(), StorageError> {
        let lost = |what: String| Err(StorageError::Corrupt(format!("log.db has lost its end: {what}")));
        if let Some(last) = noted.last {
            let there = if end(self.last) > last.index { (self.at)(last.index)? } else { None };
            let purged = self.last.is_some_and(|found| found.index >= last.index) && there.is_none();
            if !purged && there != Some(last) {
                return lost(format!("{last:?} was durable, and the log ends with {:?}", self.last));
            }
        }
        let vote = self.vote.unwrap_or_default();
        if (noted.vote.term, noted.vote.committed) > (vote.term, vote.committed) {
            return lost(format!("{:?} was durable, and there is {vote:?}", noted.vote));
        }
        Ok(())
    }
}

/// The newer one of the two slots. A crash damages neither.
fn read(file: &File) -> io::Result<Result<Note, StorageError>> {
    let mut newest = Note::default();
    for at in [0, SLOT_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let note = match file.read_exact_at(&mut record, at) {
            Ok(()) => Note::decode(&record),
            // The process ended while it made the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(Note::default()),
            Err(error) => return Err(error),
        };
        let Some(note) = note else {
            return Ok(Err(StorageError::Corrupt(format!("{NAME} does not match its checksum"))));
        };
        if note.number > newest.number {
            newest = note;
        }
    }
    Ok(Ok(newest))
}

#[cfg(test)]
#[path = "end_tests.rs"]
mod tests;
