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

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::{Code, Streaming};
use uuid::Uuid;

use crate::{
    commands::operator::{admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use client::ClientError;
use proto::chat::v1::{BackupRequest, BackupResponse, BackupSummary, backup_response::Part};
use storage::verify_backup;
use terminal::time;

/// Back up the whole state to a verified file, while the cluster serves
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File for the backup; it appears once the backup is complete and verified
    file: PathBuf,
    /// The admin socket of any node
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Back up the node's local state, even without a majority, instead of everything acknowledged
    #[arg(long)]
    local: bool,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { file, socket, force, local } = arguments;
    refuse_existing(&file, force)?;
    let mut client = admin(context, &socket).await?;
    let parts = client.backup(request(context, BackupRequest { local })).await.map_err(admin_error)?.into_inner();
    let (unfinished, mut to) = Unfinished::create_for(&file)?;
    let summary = receive(context, parts, &unfinished.path, &mut to).await?;
    to.sync_all().map_err(|error| io_failure(&unfinished.path, &error))?;
    let found = verify_backup(&unfinished.path).map_err(|error| damaged(error.of_backup(&unfinished.path)))?;
    if (found.revision.0, &found.cluster_id) != (summary.revision, &summary.cluster_id) {
        return Err(damaged("it is another one than the node has sent".to_owned()));
    }
    refuse_existing(&file, force)?;
    unfinished.keep_as(&file)?;
    print(context, &file, &summary)
}

fn refuse_existing(file: &Path, force: bool) -> Result<(), Failure> {
    match file.symlink_metadata() {
        Ok(found) if found.is_dir() => Err(Failure::Usage(format!("{} is a directory", file.display()))),
        Ok(_) if !force => Err(Failure::Usage(format!("{} is there already: --force replaces it", file.display()))),
        _ => Ok(()),
    }
}

/// A file that is removed on drop, unless it is kept.
struct Unfinished {
    path: PathBuf,
    kept: bool,
}

impl Unfinished {
    /// Creates the file in the directory of `file`, readable for its owner only, because a backup contains everyone's
    /// messages.
    fn create_for(file: &Path) -> Result<(Self, File), Failure> {
        let named = file.file_name().ok_or_else(|| Failure::Usage(format!("{} is no file name", file.display())))?;
        let name = format!(".{}.{}", named.to_string_lossy(), Uuid::new_v4());
        let path = file.with_file_name(name);
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let opened = opened.map_err(|error| io_failure(&path, &error))?;
        Ok((Self { path, kept: false }, opened))
    }

    /// Renames the file to `file`. Returns when that is on disk.
    fn keep_as(mut self, file: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, file).map_err(|error| io_failure(file, &error))?;
        self.kept = true;
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| io_failure(directory, &error))
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
                to.write_all(&data).map_err(|error| io_failure(path, &error))?;
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

fn print(context: &mut Context, file: &Path, summary: &BackupSummary) -> Result<(), Failure> {
    let BackupSummary { revision, log_index, bytes, time_ms, cluster_id, node, .. } = summary;
    let (file, sha256, digest) = (file.display(), hex::encode(&summary.sha256), hex::encode(&summary.digest));
    context.output.print(
        || {
            json!({ "file": file.to_string(), "revision": revision, "log_index": log_index, "bytes": bytes,
                    "sha256": sha256, "digest": digest, "time_ms": time_ms, "cluster_id": cluster_id, "node": node })
        },
        || {
            format!(
                "{file}: revision {revision} of {}, {bytes} bytes, verified\nSHA-256 {sha256}\n\
                 state's digest {digest}\ncluster {cluster_id}, made by {node}",
                time(*time_ms)
            )
        },
    )?;
    Ok(())
}

fn io_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn damaged(why: String) -> Failure {
    Failure::Client(ClientError::local(Code::DataLoss, format!("the backup is of no use: {why}")))
}
