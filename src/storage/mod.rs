//! SQLite: the state that the commands make, in `chat.db`.
//!
//! Owns the file's format, the meaning of every command, the questions that can be asked of the state, and the
//! snapshots of it. Blocking and standard library only (beside SQLite and the generated messages): who calls from
//! asynchronous code does so on a blocking thread.
//!
//! - [`StateMachine`]: the single writer. Applies entries of the log.
//! - [`Background`]: where the log's writer and the state's committer run.
//! - [`SharedState`]: the state machine of a running node. Commits when somebody reads, or soon.
//! - [`Readers`]: a pool of read-only connections; [`Query`] is one read transaction on one of them.
//! - [`codec`]: commands and outcomes as they are on disk and between nodes.
//! - [`intake`]: what may enter a log, and what is done with entries that are no commands.
//! - [`Chain`]: the digest of what was applied; [`Divergence`]: that it is another one than that of the other nodes.
//! - [`private`]: files that only the node's own user may read.
//! - [`trust`]: whether the files may be used at all.
//! - [`BackupFile`]: a copy of the state for the operator; [`new_cluster`]: how a copy becomes the start of another cluster.
//! - Snapshots: whole database files, made, verified and installed by functions of [`StateMachine`].
//!
//! Invariants: the rows, the id of the last applied entry, the membership, the revision, the clock and the digest commit
//! together; the same entries make the same rows, outcomes and events on every node and in any batching; nothing of a
//! failed transaction stays.
//!
//! Left out: who may call what (`api` checks passwords and limits of values before it proposes), and durability of
//! the last transactions: `chat.db` may lose them in a power cut, and the log brings them again.

mod absent;
mod apply;
mod background;
mod backup;
pub mod codec;
mod db;
mod digest;
mod divergence;
mod error;
mod failure;
mod history;
pub mod intake;
mod log;
pub mod new_cluster;
pub mod private;
mod query;
mod schema;
mod shared;
mod snapshot;
pub mod trust;
mod underway;

pub use apply::{Applied, AppliedEntry, AppliedPayload, AppliedState, MalformedCommand, NotedDigest, StateMachine};
pub use background::{Background, Threads, Turn, Work, Worker};
pub use backup::{BackupFile, BackupMeta, verify_backup};
pub use digest::Chain;
pub use divergence::Divergence;
pub use error::StorageError;
pub use failure::{Failure, FirstFailure};
pub use log::{Done, GroupCommit, Identity, LogDb};
pub use query::{
    AccountRow, ConversationPage, ConversationSummary, InvitationRow, MemberRow, MessageProgress, MessageRow,
    OpenSession, Query, Readers, SessionRow,
};
pub use shared::{CommitObserver, SharedState};
pub use snapshot::{SnapshotFile, SnapshotMeta};

#[cfg(test)]
pub(crate) use log::lock_log;
