//! The failure that stopped a node's writes, as shown to the operator.
//!
//! A failure passes through layers that carry errors only as text, and several threads fail as a consequence. The first
//! failure is recorded where it occurs, and so keeps its kind.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use super::StorageError;

/// A failure of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The file, the operation, and the error of the system.
    pub reason: String,
    /// Whether the volume has no space left.
    pub full: bool,
    /// Whether a file is damaged.
    pub corrupt: bool,
}

/// The first failure of a node's storage. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FirstFailure(Arc<OnceLock<Failure>>);

impl FirstFailure {
    /// Records a failure unless one was recorded before. `what` names the file if the error does not.
    pub fn note(&self, what: &str, error: &StorageError) {
        self.0.get_or_init(|| Failure {
            reason: format!("{what}{error}"),
            full: error.is_full(),
            corrupt: error.is_corruption(),
        });
    }

    /// Like [`Self::note`], for an error that may contain a storage error.
    pub fn note_io(&self, what: &str, error: &io::Error) {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<StorageError>()) {
            Some(inner) => self.note(what, inner),
            None => {
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                self.0.get_or_init(|| Failure { reason: format!("{what}{error}"), full, corrupt: false });
            }
        }
    }

    /// The first failure.
    pub fn get(&self) -> Option<&Failure> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays_and_keeps_its_kind() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = StorageError::io("write", std::path::Path::new("x"))(full);
        let first = FirstFailure::default();
        // Later failures in other threads are consequences, of the same kind.
        first.clone().note("a file: ", &StorageError::Failed(Arc::new(full)));
        first.note("", &StorageError::Stopped("later".into()));
        let failure = first.get().expect("noted");
        assert!(
            failure.full && failure.reason.starts_with("a file: ") && failure.reason.contains("write x"),
            "{failure:?}"
        );
    }
}
