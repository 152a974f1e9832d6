//! Replication streams that no longer get answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use openraft::{base::BoxStream, raft::StreamAppendResult};
use tokio::time::timeout;
use tonic::Status;

use super::{RpcError, malformed, rpc_error};
use crate::{transport::convert, types::TypeConfig};
use proto::raft::v1 as wire;

/// A replication stream on which requests have waited this long for an answer is closed and opened again. Longer than
/// any fsync from which the follower may still recover.
pub(super) const STREAM_SILENCE_MAX: Duration = Duration::from_secs(5);

/// Ends the stream with an error when requests wait for an answer and none arrives. Otherwise a half-open connection
/// would block this follower for ever, and with it the purge of the leader's log.
pub(super) fn watch_for_silence(
    responses: tonic::Streaming<wire::AppendResponse>,
    outstanding: Arc<AtomicU64>,
) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, RpcError>> {
    Box::pin(stream::unfold(Some(responses), move |open| {
        let outstanding = Arc::clone(&outstanding);
        async move {
            let mut responses = open?;
            loop {
                match timeout(STREAM_SILENCE_MAX, responses.next()).await {
                    Ok(None) if outstanding.load(Ordering::Relaxed) == 0 => return None,
                    // Otherwise openraft would wait for the answers and keep the log for them.
                    Ok(None) => {
                        let status = Status::unavailable("the follower ended the replication stream");
                        return Some((Err(rpc_error(status)), None));
                    }
                    Ok(Some(Ok(response))) => {
                        outstanding.fetch_sub(1, Ordering::Relaxed);
                        return match convert::stream_result(response) {
                            Ok(result) => Some((Ok(result), Some(responses))),
                            Err(error) => Some((Err(malformed(error)), None)),
                        };
                    }
                    Ok(Some(Err(status))) => return Some((Err(rpc_error(status)), None)),
                    Err(_) if outstanding.load(Ordering::Relaxed) == 0 => {}
                    Err(_) => {
                        let status = Status::unavailable("the follower does not answer on the replication stream");
                        return Some((Err(rpc_error(status)), None));
                    }
                }
            }
        }
    }))
}
