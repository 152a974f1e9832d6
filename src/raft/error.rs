//! Why a proposal or a read came to nothing.

use std::time::Duration;

use thiserror::Error;

use super::admission::Rate;

/// Why the leader did not append a command. Nothing was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The account does this more often than it may.
    #[error("the account exceeds its rate of {}: nothing was applied", .rate.name())]
    RateLimited {
        /// Which rate.
        rate: Rate,
        /// When another try may succeed.
        retry: Duration,
    },
    /// The volume of the leader, or those of too many voters, are low on space.
    #[error("the volumes are low on space: nothing was applied")]
    StorageLow,
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// There is no leader. Nothing was applied.
    #[error("there is no leader: nothing was applied")]
    NoLeader,
    /// The queue of proposals is full. Nothing was applied.
    #[error("too many proposals are waiting: nothing was applied")]
    Overloaded,
    /// A limit of the account or of the cluster. Nothing was applied.
    #[error(transparent)]
    Refused(Refusal),
    /// The command may or may not be applied, now or later.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The command is not one that may be proposed. Nothing was applied.
    #[error("the command is refused: {0}")]
    Unfit(String),
    /// The node is going down. Nothing was applied.
    #[error("this node is stopping: nothing was applied")]
    Stopped,
}

/// Why a read could not be made linearizable, or the leader could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadError {
    /// There is no leader that a majority follows.
    #[error("there is no leader")]
    NoLeader,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The node is going down.
    #[error("this node is stopping")]
    Stopped,
}

/// Why leadership was not moved.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransferError {
    /// There is no leader to hand over.
    #[error("there is no leader")]
    NoLeader,
    /// The target has no vote, or is not a member.
    #[error("the target is not a voter")]
    NotAVoter,
    /// The target did not take over in time; it may yet.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemberError {
    /// There is no leader to do it.
    #[error("there is no leader")]
    NoLeader,
    /// No member has that name.
    #[error("no member has that name")]
    NodeUnknown,
    /// It cannot be done now, or not like this. Nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// It may have been done.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Why Raft could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting that openraft refuses.
    #[error("Raft settings: {0}")]
    Config(String),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] crate::storage::StorageError),
    /// A file operation failed.
    #[error("snapshots: {0}")]
    Snapshots(std::io::Error),
    /// Raft stopped.
    #[error("Raft stopped: {0}")]
    Fatal(String),
}
