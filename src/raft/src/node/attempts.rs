//! Login and registration attempts, which the leader counts for the whole cluster.
//!
//! Does not cover: which attempts are allowed, which the layer above decides ([`AttemptLimiter`]), and what is
//! remembered when another node becomes leader.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Node;
use crate::{
    attempts::{AttemptKey, AttemptLimiter},
    error::ReadError,
    transport::{
        leader_client::{Client, Leader},
        peers::Lane,
    },
};
use proto::raft::v1 as wire;

/// Longest wait that is passed on to the caller.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

impl Node {
    /// Sets the limiter of attempts while this node leads. Only the first call has an effect.
    pub fn limit_attempts(&self, limiter: Arc<dyn AttemptLimiter>) {
        if self.inner.attempts.set(limiter).is_err() {
            tracing::error!("The attempt limiter was set twice");
        }
    }

    /// Asks the leader to count an attempt. The inner error is the time to wait.
    ///
    /// # Errors
    /// There is no leader, or it did not answer before `deadline`.
    pub async fn begin_attempt(&self, key: AttemptKey, deadline: Instant) -> Result<Result<(), Duration>, ReadError> {
        self.count_attempt(key, false, deadline).await
    }

    /// Asks the leader to take an attempt back. If that fails, the attempt stays counted.
    pub async fn refund_attempt(&self, key: AttemptKey, deadline: Instant) {
        if let Err(error) = self.count_attempt(key, true, deadline).await {
            tracing::debug!(%error, "A successful attempt could not be removed from the count");
        }
    }

    async fn count_attempt(
        &self,
        key: AttemptKey,
        refund: bool,
        deadline: Instant,
    ) -> Result<Result<(), Duration>, ReadError> {
        let leader = self.inner.leader.find().ok_or(ReadError::NoLeader)?;
        if !self.is_led() {
            return Err(ReadError::NoLeader);
        }
        let leader = match leader {
            Leader::Here => return self.count_attempt_here(&key, refund).ok_or(ReadError::NoLeader),
            Leader::There(leader) => leader,
        };
        let request = key.to_request(refund);
        let call = async |mut client: Client, request| client.count_attempt(request).await;
        let answer = self.inner.leader.call(&leader, Lane::Control, Some(deadline), request, call).await?;
        Ok(match answer.wait_ms {
            0 => Ok(()),
            wait => Err(Duration::from_millis(wait).min(WAIT_MAX)),
        })
    }

    /// Counts an attempt on this node. `None`: this node serves no clients yet.
    fn count_attempt_here(&self, key: &AttemptKey, refund: bool) -> Option<Result<(), Duration>> {
        let limiter = self.inner.attempts.get()?;
        if refund {
            limiter.refund(key);
            return Some(Ok(()));
        }
        Some(limiter.begin(key))
    }

    /// Answers the request of another node. `None`: this node does not lead, or serves no clients yet.
    pub(crate) fn answer_attempt(&self, request: &wire::CountAttemptRequest) -> Option<wire::CountAttemptResponse> {
        if !self.inner.view.borrow().is_leader() {
            return None;
        }
        let key = AttemptKey::of_request(request);
        let wait = self.count_attempt_here(&key, request.refund)?.err().unwrap_or_default();
        let wait_ms = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        Some(wire::CountAttemptResponse { wait_ms })
    }
}
