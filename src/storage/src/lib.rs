//! SQLite storage: the Raft log in `log.db`, and the state that applying the log produces in `chat.db`.
//!
//! Owns the file formats, the semantics of every command, the queries on the state, and its snapshots. The API is
//! blocking and needs no asynchronous runtime. Asynchronous callers run it on a blocking thread.
//!
//! - [`StateMachine`]: the single writer of `chat.db`. Applies entries of the log.
//! - [`LogDb`]: the durable Raft log, vote and node identity.
//! - [`Background`]: runs the log's writer and the committer of the state.
//! - [`SharedState`]: the state machine of a running node. Commits when a reader needs it, or after a short delay.
//! - [`Readers`]: a pool of read-only connections. [`Query`] is one read transaction on one of them.
//! - [`codec`]: the encoding of commands and outcomes, on disk and between nodes.
//! - [`intake`]: the check that decides what may enter a log, and the handling of entries that are not valid commands.
//! - [`Chain`]: the digest of everything applied. [`Divergence`]: the record that it differs from the other nodes'
//!   digest.
//! - `recent`: rows that change with every message, and are written to their tables later.
//! - `pages`: checksums of the pages of all databases; `sealing` gives them to a file of an earlier version.
//!   [`lock_holder`]: the process that holds a lock on one.
//! - [`private`]: files that only the node's own user may read.
//! - [`integrity`]: the integrity checks of the data directory, and its quarantine.
//! - [`BackupFile`]: a copy of the state for the operator. [`new_cluster`]: starts a new cluster from such a copy.
//! - Snapshots: [`StateImage`] reads the state as a database file while it is in use, [`Incoming`] receives one, and
//!   [`StateMachine`] installs it; `installation` ends an installation that a crash has interrupted.
//!
//! Invariants: the rows, the id of the last applied entry, the membership, the revision, the clock and the digest
//! commit together. The same entries produce the same rows, outcomes and events on every node and in any batching. A
//! failed transaction leaves nothing behind.
//!
//! Does not cover: authorization (`api` checks passwords and limits of values before it proposes), and the durability
//! of the latest transactions in `chat.db`. A power failure may lose them, and replaying the log restores them.

mod absent;
mod apply;
mod background;
mod backup;
mod cache_size;
pub mod codec;
mod db;
mod digest;
mod divergence;
mod error;
mod failure;
mod history;
mod image;
mod in_flight;
mod installation;
pub mod intake;
pub mod integrity;
mod locks;
mod log;
pub mod new_cluster;
mod numbers;
mod pages;
pub mod private;
mod query;
mod recent;
mod schema;
mod sealing;
mod shared;
mod snapshot;

pub use apply::{Applied, AppliedEntry, AppliedPayload, AppliedState, MalformedCommand, NotedDigest, StateMachine};
pub use background::{Background, Threads, Turn, Work, Worker};
pub use backup::{BackupFile, BackupMeta, verify_backup};
pub use cache_size::CacheSize;
pub use digest::Chain;
pub use divergence::Divergence;
pub use error::StorageError;
pub use failure::{Failure, FirstFailure};
pub use image::{Retained, StateImage};
pub use locks::lock_holder;
pub use log::{Done, GroupCommit, Identity, LogDb};
pub use pages::{VerifiedPages, open_file, seal_pages};
pub use query::{
    AccountRow, ConversationPage, ConversationSummary, InvitationRow, MemberRow, MessageProgress, MessageRow,
    OpenSession, Query, Readers, SessionRow,
};
pub use shared::{CommitObserver, SharedState};
pub use snapshot::{Incoming, Received, SnapshotMeta, remove_earlier_copies};
