//! Why a node did not start, or had to stop, and the exit code that says so.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

use crate::{raft::StartError, storage::StorageError};

/// Why [`super::run`] ended.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The data directory cannot be made or locked.
    #[error("CHAT_DATA_DIR {}: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses the data directory.
    #[error("CHAT_DATA_DIR {}: another process uses it", .0.display())]
    DataDirInUse(PathBuf),
    /// A port cannot be listened on.
    #[error("{key} {address}: {source}")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be opened, or storage failed while the node ran.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data directory belongs to a node of another name.
    #[error("CHAT_NAME is {configured:?}, but CHAT_DATA_DIR belongs to the node {stored:?}")]
    WrongName {
        /// The name in the configuration.
        configured: String,
        /// The name in the data directory.
        stored: String,
    },
    /// The data directory belongs to a node of another cluster.
    #[error(
        "CHAT_DATA_DIR {} belongs to another cluster ({own}) than most of CHAT_INITIAL_NODES ({theirs})",
        path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster's id in the data directory.
        own: String,
        /// The cluster's id as the others know it.
        theirs: String,
    },
    /// The peer secret cannot be sent.
    #[error("CHAT_PEER_SECRET: only visible ASCII characters can be sent")]
    Secret,
    /// Raft did not start, or failed.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// A server task ended by itself.
    #[error("{0}")]
    Task(String),
}

impl ServerError {
    /// The process's exit code, after `sysexits.h`: 64 settings, 71 ports, 73 data directory, 74 storage, 70 all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::WrongName { .. } | Self::Secret => 64,
            Self::Listen { .. } => 71,
            Self::DataDir { .. } | Self::DataDirInUse(_) | Self::OtherCluster { .. } => 73,
            Self::Storage(_) | Self::Raft(StartError::Storage(_) | StartError::Snapshots(_) | StartError::Fatal(_)) => {
                74
            }
            Self::Raft(StartError::Config(_)) => 64,
            Self::Task(_) => 70,
        }
    }
}
