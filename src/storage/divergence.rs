//! What a node knows when its state turned out to be another one than that of the other nodes.
//!
//! It is kept in a file beside `chat.db`: without it the next start would serve the same wrong state until the next
//! comparison. While the file exists [`super::StateMachine::open`] refuses; it goes with the `chat.db` that it is about,
//! when a snapshot is installed in its place. Snapshots that this node built itself since the last comparison that
//! agreed are not to be trusted either.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::json;

use super::error::StorageError;
use super::{db, private};
use crate::chat::{Revision, StateDigest, TimeMs};

/// Its name in the data directory.
pub(super) const FILE: &str = "chat.db-diverged";
const UNFINISHED: &str = "chat.db-diverged.tmp";

/// A comparison that this node lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Log index of the mark at which the digests were compared.
    pub mark: u64,
    /// This node's revision there.
    pub revision: Revision,
    /// This node's digest there.
    pub own: StateDigest,
    /// What a majority of the voters has reported.
    pub theirs: StateDigest,
    /// The last mark at which this node agreed with a majority, since it started.
    pub agreed: Option<u64>,
    /// When it was found out, on the replicated clock.
    pub time: TimeMs,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, revision, own, theirs, .. } = self;
        write!(f, "at log index {mark}, revision {revision}, its digest is {own}, that of a majority {theirs}")
    }
}

impl Divergence {
    /// Notes it in a data directory, durably.
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

/// Refuses a data directory whose state is known to be wrong.
pub(super) fn refuse(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io("read", &path)(error)),
    };
    // Whatever it says: that it is there is enough.
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let details = value.get("details").and_then(|details| details.as_str()).unwrap_or("no details are known");
    let details = format!("{details} (noted in {FILE})");
    Err(StorageError::Diverged { path: dir.to_owned(), details })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StateMachine;

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
        let snapshot = StateMachine::build_snapshot(dir.path()).expect("built");
        divergence().write(dir.path()).expect("written");
        let error = StateMachine::open(dir.path()).err().expect("refused");
        assert!(error.is_corruption());
        let text = error.to_string();
        let (own, theirs) = ("01".repeat(32), "02".repeat(32));
        for part in ["log index 40", "revision 9", &own, &theirs, FILE] {
            assert!(text.contains(part), "{part} in {text}");
        }

        // As an installation leaves it that was interrupted before the new file got its name.
        fs::copy(snapshot.path, dir.path().join("chat.db-install")).expect("copied");
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
