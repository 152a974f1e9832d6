//! Record of a divergence: the state of this node differs from that of the other nodes.
//!
//! It is stored in a file next to `chat.db`. Without it, the next start would serve the same wrong state until the next
//! comparison. While the file exists, [`super::StateMachine::open`] fails. The file is removed together with its
//! `chat.db` when a snapshot is installed.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::json;

use super::error::StorageError;
use super::{db, private};
use chat::{Revision, StateDigest, TimeMs};

/// Name of the file in the data directory.
pub(super) const FILE: &str = "chat.db-diverged";
const UNFINISHED: &str = "chat.db-diverged.tmp";

/// A comparison in which this node's digest differed from that of a majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Log index of the mark at which the digests were compared.
    pub mark: u64,
    /// This node's revision there.
    pub revision: Revision,
    /// This node's digest there.
    pub own: StateDigest,
    /// The digest that a majority of the voters has reported.
    pub theirs: StateDigest,
    /// The last mark since its start at which this node agreed with a majority.
    pub agreed: Option<u64>,
    /// Time of the detection, on the replicated clock.
    pub time: TimeMs,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, revision, own, theirs, .. } = self;
        write!(f, "at log index {mark}, revision {revision}, its digest is {own}, that of a majority {theirs}")
    }
}

impl Divergence {
    /// Records it in a data directory, durably.
    pub(super) fn write(&self, dir: &Path) -> Result<(), StorageError> {
        let text = json!({
            "details": self.to_string(),
            "mark_index": self.mark,
            "revision": self.revision.0,
            "digest": self.own.to_string(),
            "digest_of_majority": self.theirs.to_string(),
            "agreed_mark_index": self.agreed,
            "time_ms": self.time.0,
        });
        let (unfinished, path) = (dir.join(UNFINISHED), dir.join(FILE));
        let written = || -> io::Result<()> {
            let mut file = private::create_file(&unfinished)?;
            writeln!(file, "{text:#}")?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        written().map_err(StorageError::io("write", &path))?;
        db::sync_directory(dir)
    }
}

/// Fails for a data directory whose state is known to be wrong.
pub(super) fn refuse(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io("read", &path)(error)),
    };
    // The existence of the file is sufficient, whatever its content.
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let details = value.get("details").and_then(|details| details.as_str()).unwrap_or("no details are known");
    let details = format!("{details} (noted in {FILE})");
    Err(StorageError::Diverged { path: dir.to_owned(), details })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StateMachine, snapshot::copy_state};

    fn divergence() -> Divergence {
        Divergence {
            mark: 40,
            revision: Revision(9),
            own: StateDigest([1; 32]),
            theirs: StateDigest([2; 32]),
            agreed: Some(12),
            time: TimeMs(1000),
        }
    }

    #[test]
    fn a_state_that_differs_is_not_opened_until_another_one_takes_its_place() {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(StateMachine::open(dir.path()).expect("open"));
        let other = tempfile::tempdir().expect("tempdir");
        let path = other.path().join("state");
        copy_state(dir.path(), &path).expect("copied");
        divergence().write(dir.path()).expect("written");
        let error = StateMachine::open(dir.path()).err().expect("refused");
        assert!(error.is_corruption());
        let text = error.to_string();
        let (own, theirs) = ("01".repeat(32), "02".repeat(32));
        for part in ["log index 40", "revision 9", &own, &theirs, FILE] {
            assert!(text.contains(part), "{part} in {text}");
        }

        // As an installation leaves the directory if it was interrupted before the new file got its name.
        fs::copy(path, dir.path().join("chat.db-install")).expect("copied");
        StateMachine::open(dir.path()).expect("another file is in its place");
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_file_that_makes_no_sense_counts_too() {
        let dir = tempfile::tempdir().expect("tempdir");
        for content in ["", "{", "{\"details\": 3}"] {
            fs::write(dir.path().join(FILE), content).expect("written");
            let error = StateMachine::open(dir.path()).err().expect("refused");
            assert!(matches!(error, StorageError::Diverged { .. }), "{error}");
        }
    }
}
