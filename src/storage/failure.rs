//! What ended the writing of a node, for whoever has to tell the operator.
//!
//! A failure travels up through layers that know errors as text only, and several threads meet its consequences. Noted
//! here where it happened, the first one keeps its kind.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use super::StorageError;

/// A failure of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which file, what was being done, what the system said.
    pub reason: String,
    /// No space is left on the volume.
    pub full: bool,
    /// A file is damaged.
    pub corrupt: bool,
}

/// The first failure of a node's storage. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FirstFailure(Arc<OnceLock<Failure>>);

impl FirstFailure {
    /// Remembers a failure unless there was one. `what` names the file, unless the error does.
    pub fn note(&self, what: &str, error: &StorageError) {
        self.0.get_or_init(|| Failure {
            reason: format!("{what}{error}"),
            full: error.is_full(),
            corrupt: error.is_corruption(),
        });
    }

    /// The same for an error that may have one of storage inside.
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
        // What others see of it later is a consequence, and of the same kind.
        first.clone().note("a file: ", &StorageError::Failed(Arc::new(full)));
        first.note("", &StorageError::Stopped("later".into()));
        let failure = first.get().expect("noted");
        assert!(
            failure.full && failure.reason.starts_with("a file: ") && failure.reason.contains("write x"),
            "{failure:?}"
        );
    }
}
