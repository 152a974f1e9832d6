//! How much memory a node's caches of its data take.

/// A transaction that changes more pages than the writer keeps writes some of them early, while others wait for it.
const WRITER_MIN: usize = 4 << 20;

/// The memory of all caches, and its parts.
///
/// Every command uses the applier's rows. The newest entries of the log are read by the replication to each follower,
/// and are applied; a follower that is behind them costs reads of `log.db`. A page that is missing is read from the
/// kernel's cache in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Bytes for rows that the applier keeps.
    pub(super) rows: usize,
    /// Bytes for the newest entries of the log.
    pub(super) log: usize,
    /// Bytes for pages of the writer of `chat.db`.
    pub(super) writer: usize,
    /// Bytes for pages of all its readers.
    pub(super) readers: usize,
}

impl CacheSize {
    /// The parts of this many bytes.
    pub fn of(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self { rows: bytes / 2, writer: (bytes / 4).max(WRITER_MIN), readers: bytes / 8, log: bytes / 8 }
    }
}

/// 64 MiB.
impl Default for CacheSize {
    fn default() -> Self {
        Self::of(64 << 20)
    }
}
