//! Appends bytes to the log without the checks of [`Node::propose`], like an untrusted leader.
//!
//! For tests that run nodes in their own process. No service calls it: a peer reaches the log only through
//! `transport::server`, which checks.
//!
//! Does not cover: forwarding to the leader. The entry is appended only on the leader.

use bytes::Bytes;

use super::Node;
use crate::types::Payload;
use chat::Outcome;

impl Node {
    /// Appends an entry with `payload` as its batch, whatever it contains. Returns the entry's outcomes once this node
    /// has applied it.
    ///
    /// # Errors
    /// This node is not the leader, stopped leading, or is stopping. The entry may be committed all the same.
    #[doc(hidden)]
    pub async fn append_unchecked(&self, payload: Bytes) -> Result<Vec<Outcome>, String> {
        let written = self.inner.raft.client_write(Payload(payload)).await;
        written.map(|written| written.data.0).map_err(|error| error.to_string())
    }
}
