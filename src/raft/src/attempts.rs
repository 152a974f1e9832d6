//! Login and registration attempts: what is counted, and the limiter that counts.
//!
//! The layer above decides which attempts are allowed ([`AttemptLimiter`]). The leader counts for the whole cluster
//! (`node::attempts`).
//!
//! Does not cover: which attempts are remembered, and what happens to them when another node
//! becomes leader.

use std::{net::IpAddr, time::Duration};

use chat::{AccountId, TokenHash};
use proto::raft::v1 as wire;

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

impl AttemptKey {
    /// The request to count this attempt, or to take it back with `refund`.
    pub(crate) fn to_request(self, refund: bool) -> wire::CountAttemptRequest {
        let address = match self.address {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
        };
        wire::CountAttemptRequest {
            account_id: self.account.map_or(0, |account| account.0),
            device: self.device.map(|hash| hash.0.to_vec()).unwrap_or_default(),
            address,
            registration: self.registration,
            refund,
        }
    }

    /// The attempt that a request is about.
    pub(crate) fn of_request(request: &wire::CountAttemptRequest) -> Self {
        let octets = request.address.as_slice();
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
        Self {
            account: Some(AccountId(request.account_id)).filter(|account| account.0 != 0),
            device: request.device.as_slice().try_into().ok().map(TokenHash),
            address: v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok()),
            registration: request.registration,
        }
    }
}
