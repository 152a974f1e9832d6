//! Snapshots, as openraft passes them around: this node's state, or the state that another node has sent.
//!
//! This node's state is its own snapshot, without a copy of it. The state at the time of sending is sent.
//!
//! Invariant: the state is flushed up to a snapshot before openraft learns that it was built, because openraft cuts the
//! log behind it. `storage` makes the state durable that a start finds.
//!
//! Does not cover: sending and receiving a snapshot (`transport::client`, `transport::server`), and when the log is cut
//! (`tasks::snapshot`, `tasks::retention`).

use std::io;

use crate::{
    transport::convert,
    types::{SnapshotMeta, TypeConfig},
};
use storage::{AppliedState, Received, Retained, SharedState, StateImage, StorageError};

/// A snapshot, as openraft passes it around.
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Pages of an image in a message: 128 KiB, which stay in the processor's caches on their way.
const PAGES_PER_MESSAGE: u32 = 32;

/// The content of a snapshot.
pub enum SnapshotData {
    /// The state of this node, of at least the position of the snapshot.
    Own(SharedState),
    /// The state of another node, complete and verified.
    Received(Received),
}

/// An image of this node's state that is being read.
pub(crate) struct OwnImage {
    state: SharedState,
    image: StateImage,
}

impl OwnImage {
    /// Begins to read the state as it is now.
    pub(crate) fn open(state: SharedState) -> Result<Self, StorageError> {
        let image = state.image()?;
        Ok(Self { state, image })
    }

    pub(crate) fn meta(&self) -> io::Result<SnapshotMeta> {
        meta(self.image.meta())
    }

    /// Size of the whole file in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    /// Reads the next pages. Empty: there are no more. Damage ends the use of the state.
    pub(crate) fn read(&mut self) -> Result<Vec<u8>, StorageError> {
        self.image.read(PAGES_PER_MESSAGE).inspect_err(|error| {
            if error.is_corruption() {
                self.state.fail(error);
            }
        })
    }

    /// CRC-32 of everything that was read.
    pub(crate) fn checksum(&self) -> u32 {
        self.image.checksum()
    }

    /// What the image costs while it is open.
    pub(crate) fn retained(&self) -> Retained {
        self.image.retained()
    }

    /// Ends the read transaction, and gives the write-ahead log back what it has grown by. Otherwise a commit would
    /// move all of it at once, while applying waits.
    pub(crate) fn close(self) -> Result<(), StorageError> {
        let Self { state, image } = self;
        drop(image);
        state.checkpoint_beside()
    }
}

impl SnapshotData {
    /// The content as a file of this node.
    pub(crate) fn receive(self) -> Result<Received, StorageError> {
        match self {
            Self::Received(received) => Ok(received),
            Self::Own(state) => state.image()?.receive(state.directory()),
        }
    }
}

/// This node's state at `applied`.
pub(crate) fn own(state: SharedState, applied: AppliedState) -> io::Result<Snapshot> {
    let AppliedState { log_id, membership, revision, .. } = applied;
    let meta = meta(&storage::SnapshotMeta { log_id, membership, revision })?;
    Ok(Snapshot { meta, snapshot: SnapshotData::Own(state) })
}

/// A snapshot that was received.
pub(crate) fn received(received: Received) -> io::Result<Snapshot> {
    Ok(Snapshot { meta: meta(received.meta())?, snapshot: SnapshotData::Received(received) })
}

fn meta(meta: &storage::SnapshotMeta) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: meta.log_id.map(convert::log_id),
        last_membership: convert::stored_membership(meta.membership.clone()).map_err(io::Error::other)?,
    })
}
