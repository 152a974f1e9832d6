//! Errors of proposals, reads, leadership transfers, membership changes and the start.
//!
//! Does not cover: the refusal of one command ([`Refusal`]), and the status that a peer gets for an error (`node`).

use thiserror::Error;

use crate::admission::Refusal;

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
    /// The command may not be proposed. Nothing was applied.
    #[error("the command is refused: {0}")]
    Unfit(String),
    /// The node is stopping. Nothing was applied.
    #[error("this node is stopping: nothing was applied")]
    Stopped,
}

/// Why a read could not be made linearizable, or the leader could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadError {
    /// There is no leader with a quorum.
    #[error("there is no leader")]
    NoLeader,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopped,
}

/// Why leadership was not transferred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransferError {
    /// There is no leader that could transfer leadership.
    #[error("there is no leader")]
    NoLeader,
    /// The target has no vote, or is not a member.
    #[error("the target is not a voter")]
    NotAVoter,
    /// The target did not answer the leader for a long time. Nothing was changed.
    #[error("the target does not answer the leader")]
    Silent,
    /// The target did not take over: it declined, or another node was faster. This leader's term has ended, or ends.
    #[error("the target did not take over: {0}")]
    NotTaken(String),
    /// The target did not take over in time, but it may still do so.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemberError {
    /// There is no leader to make the change.
    #[error("there is no leader")]
    NoLeader,
    /// No member has that name.
    #[error("no member has that name")]
    NodeUnknown,
    /// The change is not possible now, or not in this form. Nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// The change may have been made.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Why Raft could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// openraft rejected a setting.
    #[error("Raft settings: {0}")]
    Config(String),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
    /// Raft stopped.
    #[error("Raft stopped: {0}")]
    Fatal(String),
}
