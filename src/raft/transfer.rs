//! Transfers leadership to another voter: on request, before a planned stop, and when this node makes a bad leader.
//!
//! openraft asks the successor to stand for election, and only logs if that declines or cannot be reached. The network
//! records it in [`Declined`], so a leader moves on to the next candidate instead of waiting for one that is gone.
//!
//! Invariant: a leader that has offered leadership accepts no more commands (openraft enforces that), so every offer
//! ends its term, if necessary through the election that the leader's silence causes.
//!
//! Does not cover: deciding that a leader is a bad one (`lease`, `slow_disk`, `space`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tonic::Code;

use super::{
    error::TransferError,
    node::Node,
    peers::Lane,
    view::{self, Peer, View},
};
use crate::proto::raft::v1 as wire;

/// Pause before an unanswered offer is repeated and the other voters are probed, since any of them may have begun to
/// stop. About three times as long as a transfer takes.
const OFFER_AGAIN: Duration = Duration::from_millis(100);
/// Number of offers to a successor before the next one is asked as well.
const OFFERS: u32 = 3;
/// Pause before a new leader checks again whether the target of a transfer has answered it.
const HEARD_POLL: Duration = Duration::from_millis(25);
/// Timeout of a probe.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// How often each voter has declined leadership. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Declined(Arc<watch::Sender<BTreeMap<u64, u64>>>);

impl Declined {
    /// Records that `successor` does not stand for election, or cannot be asked to.
    pub(super) fn note(&self, successor: u64) {
        self.0.send_modify(|counts| *counts.entry(successor).or_default() += 1);
    }

    /// How often `successor` has declined so far.
    pub(super) fn count(&self, successor: u64) -> u64 {
        self.0.borrow().get(&successor).copied().unwrap_or_default()
    }

    /// Waits until `successor` has declined more often than `before`. Does not return when the node stops.
    async fn once_more(&self, successor: u64, before: u64) {
        // The sender is in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|counts| counts.get(&successor).is_some_and(|count| *count > before)).await;
    }
}

/// This node's leadership transfers. They are started one at a time.
#[derive(Default)]
pub(super) struct Transfers {
    one: Mutex<()>,
    declined: Declined,
    is_stopping: AtomicBool,
    /// Whether calls on this node no longer wait for anything.
    waits_are_over: watch::Sender<bool>,
}

impl Transfers {
    /// The counts in which the network records declined offers.
    pub(super) fn declined(&self) -> Declined {
        self.declined.clone()
    }

    /// Whether this node is stopping. From then on it declines leadership.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Whether calls no longer wait for a leader, a majority or a revision.
    pub(super) fn waits_are_over(&self) -> bool {
        *self.waits_are_over.borrow()
    }
}

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
            let mut client = self
                .inner
                .peers
                .member(leader.node_id, &leader.peer_address, Lane::Control)
                .map_err(|_| TransferError::NoLeader)?;
            let request =
                self.inner.credentials.sign(leader.node_id, wire::TransferLeadershipRequest { to: to.unwrap_or(0) });
            match timeout_at(deadline, client.transfer_leadership(request)).await {
                Ok(Ok(response)) => response.into_inner().to,
                Ok(Err(status)) if status.code() == Code::NotFound => return Err(TransferError::NotAVoter),
                Ok(Err(status)) if status.code() == Code::Aborted => return Err(TransferError::Silent),
                Ok(Err(_)) => return Err(TransferError::NoLeader),
                Err(_) => return Err(late()),
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
        let declined = &self.inner.transfers.declined;
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

    async fn is_majority_gone(&self, view: &View) -> bool {
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

    /// Starts a transfer that an operator asks for. A target that has been silent for long is rejected before anything
    /// changes.
    pub(super) async fn transfer_on_request(&self, to: Option<u64>) -> Result<u64, TransferError> {
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
    pub(super) async fn transfer_here(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let _one = self.inner.transfers.one.lock().await;
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
    pub(super) fn best_successor(&self, view: &View, silence_max: Duration, may: impl Fn(u64) -> bool) -> Option<u64> {
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

    fn any_successor(&self, view: &View, may: impl Fn(u64) -> bool) -> Option<u64> {
        let own = self.inner.identity.node_id;
        view.members.iter().find(|peer| peer.voter && peer.node_id != own && may(peer.node_id)).map(|peer| peer.node_id)
    }

    /// The result of `wait`, which waits for a leader, a majority or a revision. `None` if this node ends all such waits
    /// first, because it is stopping; see [`Node::end_waits`].
    pub async fn unless_waits_end<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut waits_are_over = self.inner.transfers.waits_are_over.subscribe();
        tokio::select! {
            biased;
            done = wait => Some(done),
            // The sender lives as long as the node.
            _ = waits_are_over.wait_for(|are_over| *are_over) => None,
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
        self.inner.transfers.waits_are_over.send_replace(true);
    }

    /// Transfers leadership, if this node has it, so that the other voters need no election. If a successor declines or
    /// is slow, the next best is asked. Gives up at `deadline`, or once no election can succeed. After this call the
    /// node no longer stands for election. Returns whether there may be another leader.
    pub async fn transfer_before_stop(&self, deadline: Instant) -> bool {
        self.inner.transfers.is_stopping.store(true, Ordering::Relaxed);
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
            let (successor, patience) = match (next, last.take()) {
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
                    self.taken(offer, patience).await
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
}
