//! The directory that a target works in: one for each process, emptied for each input.

use std::{fs, path::Path};

use tempfile::TempDir;

/// Removed when the process ends in order; `fuzz/run` puts it into memory where it can.
pub struct Scratch(TempDir);

impl Default for Scratch {
    fn default() -> Self {
        Self(TempDir::with_prefix("quorum-chat-fuzz-").expect("a directory for temporary files"))
    }
}

impl Scratch {
    /// The directory, without anything in it.
    pub fn emptied(&self) -> &Path {
        for item in fs::read_dir(self.0.path()).expect("it is there") {
            let path = item.expect("it can be listed").path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("what is in it can be removed");
        }
        self.0.path()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
