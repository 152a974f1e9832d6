//! SQLite: the state that the commands make, in `chat.db`.
//!
//! Owns the file's format, the meaning of every command, the questions that can be asked of the state, and the
//! snapshots of it. Blocking and standard library only (beside SQLite and the generated messages): who calls from
//! asynchronous code does so on a blocking thread.
//!
//! - [`StateMachine`]: the single writer. Applies entries of the log, one transaction for each call.
//! - [`Readers`]: a pool of read-only connections; [`Query`] is one read transaction on one of them.
//! - [`codec`]: commands and outcomes as they are on disk and between nodes.
//! - Snapshots: whole database files, made, verified and installed by functions of [`StateMachine`].
//!
//! Invariants: the rows, the id of the last applied entry, the membership, the revision and the clock commit
//! together; the same entries make the same rows, outcomes and events on every node and in any batching; nothing of a
//! failed call stays.
//!
//! Left out: who may call what (`api` checks passwords and limits of values before it proposes), and durability of
//! the last transactions: `chat.db` may lose them in a power cut, and the log brings them again.

mod apply;
pub mod codec;
mod db;
mod error;
mod log;
mod query;
mod schema;
mod snapshot;

pub use apply::{Applied, AppliedEntry, AppliedPayload, AppliedState, StateMachine};
pub use error::StorageError;
pub use log::{Done, GroupCommit, Identity, LogDb};
pub use query::{
    AccountRow, ConversationPage, ConversationSummary, MemberRow, MessageProgress, MessageRow, Query, Readers,
    SessionRow,
};
pub use snapshot::{SnapshotFile, SnapshotMeta};

#[cfg(test)]
pub(crate) use log::lock_log;
