//! The durable end of the log, noted in a second file next to the log.
//!
//! SQLite treats a frame of the write-ahead log with a wrong checksum as an interrupted write and drops it with all
//! frames that follow. A single flipped bit thus loses acknowledged entries silently. Therefore the end of the log and
//! the vote are noted in a second file, `log.db-end`, before entries or a vote are reported as durable. A start that
//! finds less than that in the log detects that the log is damaged. The note is written without an fsync: it survives a
//! crash of the process, and the write takes microseconds. (TigerBeetle, with two rings of headers, and Alagappan et
//! al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, also write data in two places to distinguish
//! damage from a crash.)
//!
//! Invariants:
//!
//! - Everything noted is durable in `log.db`. A note follows the commit, and it is durably lowered before entries are
//!   removed.
//! - One of two slots is intact at any moment. They are written alternately and lie in different sectors.
//!
//! Does not cover: damage combined with a power failure. The most recent notes may not have reached the disk; those
//! from before the last start have.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::tail::end;
use crate::{StorageError, db, private};
use proto::log::v1 as pb;

/// Name of the file, next to `log.db`.
const NAME: &str = "log.db-end";
/// Distance between the slots. They share neither a memory page nor a disk sector.
const SLOT_BYTES: u64 = 4096;
/// Used bytes of a slot.
const RECORD_BYTES: usize = 8 * WORDS + 4;
const WORDS: usize = 7;

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Note {
    /// Sequence number of the note. The note with the higher number is newer.
    number: u64,
    /// Position up to which entries are durable or were purged.
    last: Option<pb::LogId>,
    /// The vote. Term 0 means that there is none.
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

    /// Returns `None` if the record does not match its checksum.
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

/// The file and its current note.
pub(super) struct End {
    path: PathBuf,
    file: File,
    noted: Note,
}

impl End {
    /// Opens the note of the log in `dir` and compares it with `found`. Creates the file if it is missing, because an
    /// earlier version wrote none.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: the log holds less than was durable, or the note is damaged. Otherwise, the file
    /// cannot be read or written.
    pub(super) fn open(dir: &Path, found: &Recovered) -> Result<Self, StorageError> {
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

    /// Notes that entries up to `last` are durable, unless the note already reaches that far, and that `vote` is
    /// durable, if given.
    pub(super) fn raise(&mut self, last: Option<pb::LogId>, vote: Option<pb::Vote>) -> Result<(), StorageError> {
        let last = if end(last) > end(self.noted.last) { last } else { self.noted.last };
        let vote = vote.unwrap_or(self.noted.vote);
        if (last, vote) == (self.noted.last, self.noted.vote) || failpoints::is_active(failpoints::END_NOT_NOTED) {
            return Ok(());
        }
        self.write(Note { number: self.noted.number + 1, last, vote })
    }

    /// Notes that entries after `last` are about to be removed. The note is durable when this returns: the entries may
    /// be durably removed before the next note is durable.
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

    /// Makes the note durable.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(StorageError::io("flush", &self.path))
    }
}

/// The content of the log at a start.
pub(super) struct Recovered<'a> {
    /// Position of the last entry, or else of the last purged one.
    pub last: Option<pb::LogId>,
    pub vote: Option<pb::Vote>,
    /// Looks up the position of the entry at an index; `None` if it was purged.
    pub at: &'a dyn Fn(u64) -> Result<Option<pb::LogId>, StorageError>,
}

impl Recovered<'_> {
    /// Checks that the log contains everything noted. An entry with the same index and term is the same entry, and so
    /// are all entries before it.
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

/// Reads both slots and returns the newer note. A crash damages neither.
fn read(file: &File) -> io::Result<Result<Note, StorageError>> {
    let mut newest = Note::default();
    for at in [0, SLOT_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let note = match file.read_exact_at(&mut record, at) {
            Ok(()) => Note::decode(&record),
            // The process ended while it created the file.
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
mod tests;
