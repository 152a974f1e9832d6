//! The reasons why a node does not start or stops, with their exit codes.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use thiserror::Error;

use net::tls::TlsError;
use raft::StartError;
use storage::StorageError;

/// Why [`super::run`] ended.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The data directory cannot be created or locked.
    #[error("CHAT_DATA_DIR {}: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another process uses the data directory.
    #[error("CHAT_DATA_DIR {}: another process uses it", .0.display())]
    DataDirInUse(PathBuf),
    /// The limit on open files is too low.
    #[error(
        "this process may open only {limit} files, and needs {needed}: raise the limit (ulimit -n, LimitNOFILE, \
         --ulimit nofile)"
    )]
    TooFewFiles {
        /// The current limit.
        limit: usize,
        /// The lowest limit that a node runs with.
        needed: usize,
    },
    /// A port cannot be bound.
    #[error("{key} {address}: {source}")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// No space is left in the data directory.
    #[error("CHAT_DATA_DIR {}: no space is left on the volume: {reason}", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// The operation that failed.
        reason: String,
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
        /// The cluster's id according to the other nodes.
        theirs: String,
    },
    /// The node is no longer a member of its cluster.
    #[error(
        "the node {name:?} (id {node_id}) was removed from the cluster, or replaced: it stops. \
         To take part again, start it with an empty data directory"
    )]
    Removed {
        /// Its name.
        name: String,
        /// Its former id.
        node_id: u64,
    },
    /// A file is no backup that can be restored.
    #[error("{}", source.of_backup(path))]
    Backup {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: StorageError,
    },
    /// The node's name or address contains characters that cannot be sent.
    #[error("CHAT_NAME and CHAT_PEER_ADVERTISE: only visible ASCII characters can be sent")]
    Credentials,
    /// Other nodes are members, and nothing protects the peer port.
    #[error("CHAT_PEER_SECRET: this node has other members, and needs {}", crate::config::PROTECT_PEERS)]
    Unprotected,
    /// The certificates or the secret cannot be used for calls to other nodes.
    #[error("the certificate for peers: {0}")]
    Tls(#[from] TlsError),
    /// Raft did not start, or failed.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// A server task ended unexpectedly.
    #[error("{0}")]
    Task(String),
}

impl ServerError {
    /// The exit code of the process, as in `sysexits.h`: 64 settings, 65 a backup that is damaged, of another program
    /// or of a later version, 66 an unreadable backup, 71 ports and the limit on open files, 73 data directory, 74
    /// storage, 75 no space left (a restart succeeds once there is space), 77 removed from the cluster, 70 everything
    /// else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::WrongName { .. } | Self::Credentials | Self::Unprotected | Self::Tls(_) => 64,
            Self::Listen { .. } | Self::TooFewFiles { .. } => 71,
            Self::DataDir { .. } | Self::DataDirInUse(_) | Self::OtherCluster { .. } => 73,
            Self::Backup { source: StorageError::Io { .. }, .. } => 66,
            Self::Backup { .. } => 65,
            Self::Storage(
                StorageError::NotEmpty { .. }
                | StorageError::NotRecoverable { .. }
                | StorageError::Exposed { .. }
                | StorageError::Locked { .. },
            ) => 73,
            Self::Storage(_) | Self::Raft(StartError::Storage(_) | StartError::Fatal(_)) => 74,
            Self::Raft(StartError::Config(_)) => 64,
            Self::Removed { .. } => 77,
            Self::Full { .. } => 75,
            Self::Task(_) => 70,
        }
    }

    /// Converts the error to [`Self::Full`] if the volume is full. SQLite does not always report that: a failure to
    /// create a file on a full volume is an I/O error.
    pub(super) fn or_full(self, dir: &Path) -> Self {
        let full = match &self {
            Self::Storage(error) | Self::Raft(StartError::Storage(error)) => {
                error.is_full() || !error.is_corruption() && is_full(dir)
            }
            Self::DataDir { .. } | Self::Raft(StartError::Fatal(_)) => is_full(dir),
            _ => false,
        };
        if full { Self::Full { path: dir.to_owned(), reason: self.to_string() } } else { self }
    }
}

/// Whether the volume of a directory has no usable space left.
fn is_full(dir: &Path) -> bool {
    const LEAST_BYTES: u64 = 64 * 1024;
    rustix::fs::statvfs(dir).is_ok_and(|volume| volume.f_bavail.saturating_mul(volume.f_frsize) < LEAST_BYTES)
}
