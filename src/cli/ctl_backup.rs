//! `chatctl backup`: receives a backup through a node's admin socket, and renames it when it is complete.
//!
//! Invariant: the requested name refers to the previous file, if any, or to a backup that is complete, on disk and
//! verified. The backup is received under another name in the same directory.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::{Code, Streaming};
use uuid::Uuid;

use super::{
    ctl::{Context, Failure},
    ctl_admin::{admin_error, connect, request},
    output,
};
use crate::{
    client::ClientError,
    proto::chat::v1::{BackupRequest, BackupResponse, BackupSummary, backup_response::Part},
    server::offline,
};

/// The destination and the options of a backup.
pub(super) struct Target {
    pub(super) file: PathBuf,
    pub(super) force: bool,
    pub(super) local: bool,
}

/// A file that is removed on drop, unless it is kept.
struct Unfinished {
    path: PathBuf,
    kept: bool,
}

impl Unfinished {
    /// Creates the file next to `file`, readable for its owner only, because a backup contains everyone's messages.
    fn beside(file: &Path) -> Result<(Self, File), Failure> {
        let named = file.file_name().ok_or_else(|| Failure::Usage(format!("{} is no file name", file.display())))?;
        let name = format!(".{}.{}", named.to_string_lossy(), Uuid::new_v4());
        let path = file.with_file_name(name);
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let opened = opened.map_err(|error| local(&path, &error))?;
        Ok((Self { path, kept: false }, opened))
    }

    fn keep_as(mut self, file: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, file).map_err(|error| local(file, &error))?;
        self.kept = true;
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| local(directory, &error))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            // If this fails, the file's name shows what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

pub(super) async fn backup(context: &mut Context, socket: &Path, target: &Target) -> Result<(), Failure> {
    let file = &target.file;
    let refuse_existing = || match file.symlink_metadata() {
        Ok(found) if found.is_dir() => Err(Failure::Usage(format!("{} is a directory", file.display()))),
        Ok(_) if !target.force => {
            Err(Failure::Usage(format!("{} is there already: --force replaces it", file.display())))
        }
        _ => Ok(()),
    };
    refuse_existing()?;
    let mut client = connect(context, socket).await?;
    let message = BackupRequest { local: target.local };
    let parts = client.backup(request(context, message)).await.map_err(admin_error)?.into_inner();
    let (unfinished, mut to) = Unfinished::beside(file)?;
    let summary = receive(context, parts, &unfinished.path, &mut to).await?;
    to.sync_all().map_err(|error| local(&unfinished.path, &error))?;
    let found = offline::verify_backup(&unfinished.path).map_err(|error| damaged(error.to_string()))?;
    if (found.revision, &found.cluster_id) != (summary.revision, &summary.cluster_id) {
        return Err(damaged("it is another one than the node has sent".to_owned()));
    }
    refuse_existing()?;
    unfinished.keep_as(file)?;
    let sha256 = hex(&summary.sha256);
    context.output.print(
        || {
            json!({
                "file": file.display().to_string(),
                "revision": summary.revision,
                "log_index": summary.log_index,
                "bytes": summary.bytes,
                "sha256": sha256,
                "digest": hex(&summary.digest),
                "time_ms": summary.time_ms,
                "cluster_id": summary.cluster_id,
                "node": summary.node,
            })
        },
        || {
            format!(
                "{}: revision {} of {}, {} bytes, verified\nSHA-256 {sha256}\nstate's digest {}\ncluster {}, made by {}",
                file.display(),
                summary.revision,
                output::time(summary.time_ms),
                summary.bytes,
                hex(&summary.digest),
                summary.cluster_id,
                summary.node
            )
        },
    )?;
    Ok(())
}

/// Writes the received data, and compares it with the size and hash that the node reports.
async fn receive(
    context: &Context,
    mut parts: Streaming<BackupResponse>,
    path: &Path,
    to: &mut File,
) -> Result<BackupSummary, Failure> {
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let summary = loop {
        // The node sends a keepalive every second.
        let next = timeout(context.global.timeout, parts.message()).await;
        let silent = || ClientError::local(Code::Unavailable, "the node has fallen silent");
        match next.map_err(|_| silent())?.map_err(ClientError::from)?.and_then(|response| response.part) {
            Some(Part::Data(data)) => {
                // Blocking is fine: there is no other work meanwhile.
                to.write_all(&data).map_err(|error| local(path, &error))?;
                hash.update(&data);
                bytes += data.len() as u64;
            }
            Some(Part::Summary(summary)) => break summary,
            None => return Err(damaged("it ended before its end".to_owned())),
        }
    };
    if (bytes, hash.finalize().as_slice()) != (summary.bytes, summary.sha256.as_slice()) {
        return Err(damaged("it was not received as it was sent".to_owned()));
    }
    Ok(summary)
}

fn damaged(what: String) -> Failure {
    Failure::Client(ClientError::local(Code::DataLoss, format!("the backup is of no use: {what}")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
