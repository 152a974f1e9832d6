//! Backups for the operator: created on a blocking thread, sent in parts.
//!
//! Invariants: a node makes one backup at a time, and no other service waits for it. The call ends when the receiver
//! disconnects or accepts nothing for [`STALL_MAX`], or when the node drains.

use std::{io::Read as _, pin::Pin, time::Duration};

use futures_util::Stream;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{ChatApi, auth, call::Call, status};
use crate::delivery::Hub;
use proto::chat::{v1 as pb, v1::backup_response::Part};
use storage::BackupFile;
use trace::blocking;

/// Bytes in one part.
const PART_BYTES: usize = 256 << 10;
/// Parts in the send queue.
const PARTS_MAX: usize = 4;
/// Keepalive interval while the backup is created.
const SIGN_EVERY: Duration = Duration::from_secs(1);
/// Time after which a receiver that accepts nothing is disconnected.
const STALL_MAX: Duration = Duration::from_secs(30);

/// The answer of `Backup`.
pub(super) type BackupStream = Pin<Box<dyn Stream<Item = Result<pb::BackupResponse, Status>> + Send>>;

impl ChatApi {
    pub(super) async fn backup(&self, call: &Call, request: pb::BackupRequest) -> Result<BackupStream, Status> {
        let slot = self.inner.database.backup_slot()?;
        if !request.local {
            self.barrier(call.deadline).await?;
        }
        let (sender, receiver) = mpsc::channel(PARTS_MAX);
        tokio::spawn(trace::within(call.trace, run(self.clone(), sender, slot)));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// The stream to the receiver.
struct Receiver {
    sender: mpsc::Sender<Result<pb::BackupResponse, Status>>,
    hub: Hub,
}

/// The reason why nothing more is sent: the status for the receiver, or none if it has disconnected.
struct End(Option<Status>);

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self(Some(status))
    }
}

impl Receiver {
    async fn take(&self, part: Part) -> Result<(), End> {
        if self.hub.is_stopping() {
            return Err(status::stopping().into());
        }
        match timeout(STALL_MAX, self.sender.send(Ok(pb::BackupResponse { part: Some(part) }))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End(None)),
            Err(_) => Err(status::receiver_stalled().into()),
        }
    }
}

async fn run(api: ChatApi, sender: mpsc::Sender<Result<pb::BackupResponse, Status>>, slot: OwnedSemaphorePermit) {
    let receiver = Receiver { sender, hub: api.inner.hub.clone() };
    if let Err(End(Some(status))) = make_and_send(&api, &receiver, slot).await {
        // Best effort: a receiver with a full queue does not get the status.
        let _ = receiver.sender.try_send(Err(status::traced(status, trace::current())));
    }
}

async fn make_and_send(api: &ChatApi, receiver: &Receiver, slot: OwnedSemaphorePermit) -> Result<(), End> {
    let database = api.inner.database.clone();
    let cluster_id = api.inner.node.status().cluster_id;
    let name = api.inner.settings.node_name.clone();
    let now = auth::now(&receiver.hub);
    // Runs in a task of its own that holds the slot, because it cannot be cancelled half-way.
    let mut making = tokio::spawn(async move { (database.back_up(cluster_id, name, now).await, slot) });
    let mut signs = interval(SIGN_EVERY);
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (made, _slot) = loop {
        tokio::select! {
            made = &mut making => {
                break made.map_err(|error| status::internal("a backup did not finish", &error))?;
            }
            _ = signs.tick() => receiver.take(Part::Data(Vec::new())).await?,
        }
    };
    let BackupFile { file, bytes, meta } = made?;
    let mut source = Source { file, hash: Sha256::new() };
    loop {
        let (next, part) = source.next().await?;
        source = next;
        if part.is_empty() {
            break;
        }
        receiver.take(Part::Data(part)).await?;
    }
    let summary = pb::BackupSummary {
        revision: meta.revision.0,
        log_index: meta.log_index,
        bytes,
        sha256: source.hash.finalize().to_vec(),
        time_ms: meta.made.0,
        cluster_id: meta.cluster_id,
        node: meta.node,
        digest: meta.digest.0.to_vec(),
    };
    receiver.take(Part::Summary(summary)).await?;
    api.inner.observer.backed_up();
    Ok(())
}

/// The file, and the checksum of the bytes that were read.
struct Source {
    file: std::fs::File,
    hash: Sha256,
}

impl Source {
    /// The next bytes; empty at the end.
    async fn next(mut self) -> Result<(Self, Vec<u8>), Status> {
        let read = blocking::io(move || {
            let mut part = Vec::with_capacity(PART_BYTES);
            self.file.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
            self.hash.update(&part);
            Ok((self, part))
        });
        read.await.map_err(|error| status::internal("a backup could not be read", &error))
    }
}
