//! Waits for a leader, a majority or a revision, and their end when the node stops.
//!
//! Does not cover: the transfer of leadership before a stop (`node::transfer`).

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Code;

use super::Node;
use crate::{
    transfer::OFFER_AGAIN,
    transport::peers::Lane,
    view::{self, Peer, View},
};
use proto::raft::v1 as wire;

/// Longest pause between two attempts. A change of the view ends it early.
const RETRY_DELAY: Duration = Duration::from_millis(25);
/// Timeout of a probe.
const ANSWER_MAX: Duration = Duration::from_millis(250);

impl Node {
    /// Waits before another attempt. Returns false if Raft has stopped.
    pub(super) async fn pause_before_retry(&self) -> bool {
        view::wait_for_change(&self.inner.view, RETRY_DELAY).await
    }

    /// When a call that ends at `deadline` stops waiting for a leader.
    pub(super) fn leader_limit(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.inner.leader_wait)
    }

    /// Waits for a leader until `limit`, or until this node ends all waits because it is stopping.
    pub(super) async fn has_leader(&self, limit: Instant) -> bool {
        let has_leader = view::wait(&self.inner.view, limit, |view| view.leader.is_some());
        self.unless_waits_end(has_leader).await.unwrap_or(false)
    }

    /// The result of `wait`, which waits for a leader, a majority or a revision. `None` if this node ends all such
    /// waits first, because it is stopping; see [`Node::end_waits`].
    pub async fn unless_waits_end<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = wait => Some(done),
            () = self.inner.transfers.waits_end() => None,
        }
    }

    /// For a node that is stopping. Calls stop waiting for a leader, a majority or a revision after `grace`, or as soon
    /// as too many voters are gone for any of these.
    pub async fn end_waits(&self, grace: Duration) {
        let until = Instant::now() + grace;
        while Instant::now() < until {
            let view = self.inner.view.borrow().clone();
            if timeout_at(until, self.is_majority_gone(&view)).await.unwrap_or(true) {
                break;
            }
            sleep_until(until.min(Instant::now() + OFFER_AGAIN)).await;
        }
        self.inner.transfers.end_waits();
    }

    /// Whether so many voters are gone that no election can succeed.
    pub(super) async fn is_majority_gone(&self, view: &View) -> bool {
        let own = self.inner.identity.node_id;
        let voters: Vec<&Peer> = view.members.iter().filter(|peer| peer.voter).collect();
        let others = voters.iter().filter(|peer| peer.node_id != own).map(|peer| self.is_gone(peer));
        let gone = join_all(others).await.into_iter().filter(|is_gone| *is_gone).count();
        voters.len() - gone < voters.len() / 2 + 1
    }

    /// Whether the peer's address refuses connections. A peer that is merely slow is not gone.
    async fn is_gone(&self, peer: &Peer) -> bool {
        let Ok(mut client) = self.inner.peers.member(peer.node_id, &peer.peer_address, Lane::Control) else {
            return false;
        };
        let request = wire::ProbeRequest { name: self.inner.identity.name.clone() };
        let call = client.probe(self.inner.credentials.present(request));
        matches!(timeout(ANSWER_MAX, call).await, Ok(Err(status)) if status.code() == Code::Unavailable)
    }
}
