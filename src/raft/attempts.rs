//! Login and registration attempts, counted by the leader for the whole cluster.
//!
//! The layer above decides which attempts are allowed ([`AttemptLimiter`]), and this module asks the limiter of the
//! leader. Does not cover: which attempts are remembered, and what happens to them when another node becomes leader.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{error::ReadError, node::Node, peers::Lane};
use crate::{
    chat::{AccountId, TokenHash},
    proto::raft::v1 as wire,
};

/// Longest wait that is passed on to the caller.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The attempt that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptKey {
    /// Account whose password is tried; `None`: no existing account.
    pub account: Option<AccountId>,
    /// Proof that the account has logged in from this device before.
    pub device: Option<TokenHash>,
    /// Address of the caller.
    pub address: Option<IpAddr>,
    /// Whether this is a registration rather than a login.
    pub registration: bool,
}

/// Counts attempts. Called on the leader. Must not block.
pub trait AttemptLimiter: Send + Sync + 'static {
    /// Counts an attempt, or returns how long to wait for the next one.
    fn begin(&self, key: &AttemptKey) -> Result<(), Duration>;
    /// Takes back an attempt that has succeeded or was not made.
    fn refund(&self, key: &AttemptKey);
}

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
        let view = self.inner.view.borrow().clone();
        if !self.is_led() {
            return Err(ReadError::NoLeader);
        }
        if view.is_leader() {
            return self.count_attempt_here(&key, refund).ok_or(ReadError::NoLeader);
        }
        let leader = view.leader().ok_or(ReadError::NoLeader)?;
        let mut client = self
            .inner
            .peers
            .member(leader.node_id, &leader.peer_address, Lane::Control)
            .map_err(|_| ReadError::NoLeader)?;
        let address = match key.address {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
        };
        let message = wire::CountAttemptRequest {
            account_id: key.account.map_or(0, |account| account.0),
            device: key.device.map(|hash| hash.0.to_vec()).unwrap_or_default(),
            address,
            registration: key.registration,
            refund,
        };
        let request = self.inner.credentials.sign(leader.node_id, message);
        match timeout_at(deadline, client.count_attempt(request)).await {
            Ok(Ok(answer)) => Ok(match answer.into_inner().wait_ms {
                0 => Ok(()),
                wait => Err(Duration::from_millis(wait).min(WAIT_MAX)),
            }),
            Ok(Err(_)) => Err(ReadError::NoLeader),
            Err(_) => Err(ReadError::Deadline),
        }
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
    pub(super) fn answer_attempt(&self, request: &wire::CountAttemptRequest) -> Option<wire::CountAttemptResponse> {
        if !self.inner.view.borrow().is_leader() {
            return None;
        }
        let octets = request.address.as_slice();
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
        let key = AttemptKey {
            account: Some(AccountId(request.account_id)).filter(|account| account.0 != 0),
            device: request.device.as_slice().try_into().ok().map(TokenHash),
            address: v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok()),
            registration: request.registration,
        };
        let wait = self.count_attempt_here(&key, request.refund)?.err().unwrap_or_default();
        let wait_ms = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        Some(wire::CountAttemptResponse { wait_ms })
    }
}
