//! Transfers leadership to another voter: on request, before a planned stop, and when this node makes a bad leader.
//!
//! Invariant: a leader that has offered leadership accepts no more commands (openraft enforces that), so every offer
//! ends its term, if necessary through the election that the leader's silence causes.
//!
//! Does not cover: how declined offers are counted (`transfer`), and deciding that a leader is a bad one
//! (`tasks::lease`, `tasks::slow_disk`, `tasks::disk_space`).

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;

use super::Node;
use crate::{
    error::TransferError,
    transfer::OFFER_AGAIN,
    transport::{
        leader_client::{CallError, Client},
        peers::Lane,
    },
    view::{self, View},
};
use proto::raft::v1 as wire;

/// Number of offers to a successor before the next one is asked as well.
const OFFERS: u32 = 3;
/// Pause before a new leader checks again whether the target of a transfer has answered it.
const HEARD_POLL: Duration = Duration::from_millis(25);

/// Result of an offer.
enum Offer {
    /// The successor leads.
    Taken,
    /// Another node leads.
    Elsewhere,
    /// The successor cannot or will not lead.
    Declined,
    /// Too many voters are gone: no election can succeed.
    NoMajority,
    /// There is no result yet.
    Late,
}

/// An offer of leadership.
#[derive(Clone, Copy)]
struct Offered {
    /// The node that makes the offer, in this term or a later one.
    leader: u64,
    term: u64,
    to: u64,
}

impl Node {
    /// Transfers leadership to `to`, or to the voter that is furthest ahead, and waits until it leads. Another node
    /// forwards the request to the leader.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leadership(&self, to: Option<u64>, deadline: Instant) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let leader = view.leader().ok_or(TransferError::NoLeader)?;
        let late = || TransferError::Unknown("the leader does not answer".into());
        let target = if view.is_leader() {
            timeout_at(deadline, self.transfer_on_request(to)).await.map_err(|_| late())??
        } else {
            let request = wire::TransferLeadershipRequest { to: to.unwrap_or(0) };
            let call = async |mut client: Client, request| client.transfer_leadership(request).await;
            match self.inner.leader.call(leader, Lane::Control, Some(deadline), request, call).await {
                Ok(response) => response.to,
                Err(CallError::Failed(status)) if status.code() == Code::NotFound => {
                    return Err(TransferError::NotAVoter);
                }
                Err(CallError::Failed(status)) if status.code() == Code::Aborted => return Err(TransferError::Silent),
                Err(CallError::Failed(_) | CallError::NotSent) => return Err(TransferError::NoLeader),
                Err(CallError::Late) => return Err(late()),
            }
        };
        let offer = Offered { leader: leader.node_id, term: view.term, to: target };
        match self.taken(offer, deadline).await? {
            Offer::Taken => Ok(target),
            Offer::Elsewhere => Err(TransferError::NotTaken("another node leads".into())),
            Offer::Declined => Err(TransferError::NotTaken("it cannot be reached, or stops".into())),
            Offer::NoMajority => Err(TransferError::Unknown("most of the nodes are gone".into())),
            Offer::Late => Err(TransferError::Unknown("the target did not take over in time".into())),
        }
    }

    /// Waits for the result of an offer, and repeats it while this node leads.
    async fn taken(&self, offer: Offered, deadline: Instant) -> Result<Offer, TransferError> {
        let declined = self.inner.transfers.declined();
        let before = declined.count(offer.to);
        let is_over = |view: &View| {
            let is_another = |id| id == offer.to || id != offer.leader || view.term > offer.term;
            view.leader.is_some_and(is_another)
        };
        loop {
            let pause = deadline.min(Instant::now() + OFFER_AGAIN);
            let change = view::wait(&self.inner.view, pause, is_over);
            let looked = async {
                if change.await {
                    return None;
                }
                let view = self.inner.view.borrow().clone();
                Some((timeout_at(deadline, self.is_majority_gone(&view)).await.unwrap_or_default(), view))
            };
            let looked = tokio::select! {
                biased;
                looked = looked => looked,
                () = declined.once_more(offer.to, before) => return Ok(Offer::Declined),
            };
            match looked {
                None => {
                    let leader = self.inner.view.borrow().leader;
                    return Ok(if leader == Some(offer.to) { Offer::Taken } else { Offer::Elsewhere });
                }
                Some((true, _)) => return Ok(Offer::NoMajority),
                _ if Instant::now() >= deadline => return Ok(Offer::Late),
                // Raft has stopped.
                _ if self.inner.view.has_changed().is_err() => return Err(TransferError::NoLeader),
                Some((false, view)) if view.is_leader() => self.offer(offer.to).await?,
                Some((false, _)) => {}
            }
        }
    }

    /// Starts a transfer that an operator asks for. A target that has been silent for long is rejected before anything
    /// changes.
    pub(crate) async fn transfer_on_request(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let is_other_voter =
            |id: &u64| *id != self.inner.identity.node_id && view.member(*id).is_some_and(|peer| peer.voter);
        if let Some(id) = to.filter(is_other_voter)
            && view.is_leader()
        {
            // No voter has answered a new leader yet.
            let until = Instant::now() + self.inner.election_max;
            while self.silence(id).is_none() && Instant::now() < until {
                sleep(HEARD_POLL).await;
            }
            if self.silence(id).is_none_or(|silence| silence > self.inner.election_max * 2) {
                return Err(TransferError::Silent);
            }
        }
        self.transfer_here(to).await
    }

    /// Time since `id` last answered this leader; `None` if it has not answered since this node leads.
    fn silence(&self, id: u64) -> Option<Duration> {
        self.cluster_health_here().peers.iter().find(|peer| peer.node_id == id).and_then(|peer| peer.silent)
    }

    /// Starts a transfer on the leader.
    pub(crate) async fn transfer_here(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let _one = self.inner.transfers.exclusive().await;
        let view = self.inner.view.borrow().clone();
        if !view.is_leader() {
            return Err(TransferError::NoLeader);
        }
        let target = match to {
            Some(id) => {
                view.member(id).filter(|peer| peer.voter).ok_or(TransferError::NotAVoter)?;
                id
            }
            None => self.best_successor(&view, self.inner.election_max, |_| true).ok_or(TransferError::NotAVoter)?,
        };
        if target != self.inner.identity.node_id {
            self.offer(target).await?;
        }
        Ok(target)
    }

    async fn offer(&self, target: u64) -> Result<(), TransferError> {
        let offered = self.inner.raft.trigger().transfer_leader(target).await;
        offered.map_err(|fatal| TransferError::Unknown(fatal.to_string()))
    }

    /// The voter with the most log, among those that answered within `silence_max` and that `may` lead.
    fn best_successor(&self, view: &View, silence_max: Duration, may: impl Fn(u64) -> bool) -> Option<u64> {
        let cluster_health = self.cluster_health_here();
        let is_voter = |id: u64| view.member(id).is_some_and(|peer| peer.voter);
        cluster_health
            .peers
            .iter()
            .filter(|peer| peer.node_id != self.inner.identity.node_id && is_voter(peer.node_id) && may(peer.node_id))
            .filter(|peer| peer.silent.is_some_and(|silent| silent <= silence_max))
            .min_by_key(|peer| peer.lag_entries.unwrap_or(u64::MAX))
            .map(|peer| peer.node_id)
    }

    /// Transfers leadership to the one of `nodes` that answers and has the most log.
    pub(crate) async fn transfer_to_one_of(&self, nodes: &[u64]) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let successor = self.best_successor(&view, self.inner.election_max, |id| nodes.contains(&id));
        let successor = successor.ok_or(TransferError::NotAVoter)?;
        self.transfer_here(Some(successor)).await
    }

    /// Transfers leadership to the voter with the most log among those that answered within `silence_max`.
    pub(crate) async fn transfer_to_a_voter(&self, silence_max: Duration) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let successor = self.best_successor(&view, silence_max, |_| true).ok_or(TransferError::NotAVoter)?;
        self.transfer_here(Some(successor)).await
    }

    fn any_successor(&self, view: &View, may: impl Fn(u64) -> bool) -> Option<u64> {
        let own = self.inner.identity.node_id;
        view.members.iter().find(|peer| peer.voter && peer.node_id != own && may(peer.node_id)).map(|peer| peer.node_id)
    }

    /// Transfers leadership, if this node has it, so that the other voters need no election. If a successor declines or
    /// is slow, the next best is asked. Gives up at `deadline`, or once no election can succeed. After this call the
    /// node no longer stands for election. Returns whether there may be another leader.
    pub async fn transfer_before_stop(&self, deadline: Instant) -> bool {
        self.inner.transfers.stop();
        self.inner.raft.runtime_config().elect(false);
        let own = self.inner.identity.node_id;
        let (mut asked, mut last) = (BTreeSet::new(), None);
        loop {
            let view = self.inner.view.borrow().clone();
            if !view.is_leader() || view.members.iter().filter(|peer| peer.voter).count() < 2 {
                return true;
            }
            // A new leader has no answers from other voters yet. Any of them is asked then, and one that is gone
            // declines at once.
            let next = self
                .best_successor(&view, self.inner.election_max, |id| !asked.contains(&id))
                .or_else(|| self.any_successor(&view, |id| !asked.contains(&id)));
            let (successor, timeout) = match (next, last.take()) {
                (Some(next), _) => (next, deadline.min(Instant::now() + OFFER_AGAIN * OFFERS)),
                // All voters have been asked. The last one gets the rest of the time.
                (None, Some(last)) => (last, deadline),
                (None, None) => {
                    tracing::info!(
                        asked = asked.len(),
                        "No node takes over leadership; the remaining nodes elect a leader"
                    );
                    return false;
                }
            };
            asked.insert(successor);
            let offered = match timeout_at(deadline, self.transfer_here(Some(successor))).await {
                Ok(Ok(_)) => {
                    let offer = Offered { leader: own, term: view.term, to: successor };
                    self.taken(offer, timeout).await
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Ok(Offer::Late),
            };
            match &offered {
                Ok(Offer::Declined) => continue,
                Ok(Offer::Late) if Instant::now() < deadline => {
                    last = Some(successor);
                    continue;
                }
                Ok(Offer::NoMajority) => tracing::info!("No node takes over leadership, because a majority is gone"),
                Ok(Offer::Taken) => tracing::info!(to = successor, "Transferred leadership"),
                // This node no longer leads.
                Ok(Offer::Elsewhere) | Err(TransferError::NoLeader) => {}
                Ok(Offer::Late) => {
                    tracing::warn!(
                        to = successor,
                        "The successor did not take over leadership in time; the other nodes elect a leader"
                    )
                }
                Err(error) => {
                    tracing::warn!(%error, "Leadership could not be transferred; the other nodes elect a leader")
                }
            }
            return !matches!(offered, Ok(Offer::NoMajority));
        }
    }

    /// Whether this node is stopping. From then on it declines leadership.
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.transfers.is_stopping()
    }

    /// How often each voter has declined leadership.
    #[cfg(test)]
    pub(crate) fn declined(&self) -> &crate::transfer::Declined {
        self.inner.transfers.declined()
    }
}
