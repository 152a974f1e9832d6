//! An election as soon as the leader's process has ended, rather than after the election timeout.
//!
//! The kernel closes the connections of a process that ends, at once. So a voter keeps a call open at the leader, and
//! probes the leader when that call breaks: on a new connection, it asks whether the leader still leads. If that fails,
//! it asks the other voters, each of which probes for itself. If a majority of the voters has lost the leader, the one
//! with the most up-to-date log among them stands for election at once, as after an offer of leadership.
//!
//! Invariant: no guarantee depends on any of this. A voter still grants its vote only to a log that has all of its own,
//! and once per term. A wrong conclusion costs a term, as an election without need does; the simulation checks that a
//! leader whose connections break keeps its term.
//!
//! A leader whose machine vanishes closes nothing, and is replaced after the election timeout. So is one whose
//! successor fails here.
//!
//! Does not cover: when to watch and to try again (`tasks::failover`), and transfers of leadership (`node::transfer`).

use std::{
    sync::{Mutex as StdMutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use openraft::{RaftState, raft::TransferLeaderRequest};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::Node;
use crate::{
    transport::{convert, peers::Lane},
    types::{LogId, TypeConfig, Vote},
    view::{Peer, View},
};
use proto::raft::v1 as wire;

/// The part of the shortest election timeout that a probe of the leader may take on a network without delay. A
/// connection to a process that has ended is refused within a millisecond, unless its address is gone, too.
pub(crate) const PROBE_SHARE: u32 = 6;
/// Round trips of a new connection with TLS and the call on it, and the longest round trip that is allowed for.
const PROBE_ROUND_TRIPS: u32 = 4;
const ROUND_TRIP_MAX: Duration = Duration::from_millis(100);
/// Limit of the wait for an answer, beyond the time of a probe: for the leader to let itself be watched, and for
/// another voter, which may probe the leader first.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// Extra wait for the remaining answers once a majority has answered. The better of two candidates then stands alone.
const GRACE: Duration = Duration::from_millis(10);
/// How long the result of a probe is valid. The other voters ask at the same moment.
const LOST_MAX: Duration = Duration::from_millis(200);
const FOUND_MAX: Duration = Duration::from_millis(20);
/// Age of an unfinished write from which on a voter stands for no election.
const SLOW_WRITE: Duration = Duration::from_millis(100);

/// What a node knows of its leader's process.
pub(crate) struct Failover {
    /// The leader at which a call is open.
    watched: watch::Sender<Option<Vote>>,
    /// The leader whose append arrived last, and when.
    heard: StdMutex<Option<(Vote, Instant)>>,
    /// The last probe. Held during a probe, so that all who ask meanwhile get its result.
    probed: Mutex<Option<Probed>>,
    /// Another voter has lost the leader, and so has this node.
    asked: Notify,
    /// Longest probe on a network without delay.
    probe_max: Duration,
}

struct Probed {
    leader: Vote,
    is_lost: bool,
    at: Instant,
}

impl Failover {
    /// The state of a node that watches no leader yet.
    pub(crate) fn new(probe_max: Duration) -> Self {
        let watched = watch::Sender::new(None);
        Self { watched, heard: StdMutex::default(), probed: Mutex::default(), asked: Notify::new(), probe_max }
    }

    /// Records that an append of `leader` arrived.
    pub(super) fn hear(&self, leader: &Vote) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some((*leader, Instant::now()));
    }

    fn heard_since(&self, leader: &Vote, moment: Instant) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|(vote, at)| vote == *leader && at > moment)
    }
}

/// A leader that is being watched, until this is dropped.
struct Watched<'a>(&'a Failover);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.watched.send_replace(None);
    }
}

/// How a watch ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// The call broke after it had been open.
    Broken,
    /// The other node does not lead any more.
    Over,
    /// The other node could not be watched.
    Failed,
}

/// A vote and the end of the log, as Raft has them.
struct Position {
    vote: Vote,
    last_log_id: Option<LogId>,
}

impl Node {
    /// Whether this node leads by this vote. It does not if Raft has stopped.
    pub(crate) fn leads_by(&self, vote: &Vote) -> bool {
        self.inner.view.has_changed().is_ok() && is_leader_by(&self.inner.view.borrow(), vote)
    }

    /// Waits until this node no longer leads by this vote, or Raft has stopped.
    pub(crate) async fn no_longer_leads(&self, vote: &Vote) {
        // An error means that Raft has stopped.
        let _ = self.view().wait_for(|view| !is_leader_by(view, vote)).await;
    }

    /// Waits until another voter has lost the leader and this node has lost it, too.
    pub(crate) async fn lost_elsewhere(&self) {
        self.inner.failover.asked.notified().await;
    }

    /// The leaders that this node watches, one at a time.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> watch::Receiver<Option<Vote>> {
        self.inner.failover.watched.subscribe()
    }

    /// Watches the leader's process.
    pub(crate) async fn watch_leader(&self, leader: &Peer) -> Watch {
        let Some(own) = self.position().await else { return Watch::Failed };
        // Before its first append, this node has the leader's vote as that of a candidate.
        if own.vote.leader_id.node_id != leader.node_id || !own.vote.committed {
            return Watch::Failed;
        }
        let Ok(mut client) = self.inner.peers.member(leader.node_id, &leader.peer_address, Lane::Control) else {
            return Watch::Failed;
        };
        let request = wire::WatchLeaderRequest { leader: Some(convert::vote_pb(&own.vote)) };
        let call = client.watch_leader(self.inner.credentials.sign(leader.node_id, request));
        let mut stream = match timeout(ANSWER_MAX, call).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                self.inner.peers.note_error(&status, leader.node_id, &leader.peer_address);
                return Watch::Failed;
            }
            Err(_) => return Watch::Failed,
        };
        self.inner.failover.watched.send_replace(Some(own.vote));
        let _watched = Watched(&self.inner.failover);
        match stream.message().await {
            Ok(_) => Watch::Over,
            Err(_) => Watch::Broken,
        }
    }

    /// Answers a voter that asks whether this node has lost the leader, or the leader whether it still leads.
    pub(crate) async fn has_lost(&self, leader: &Vote) -> wire::LeaderLostResponse {
        if leader.leader_id.node_id == self.inner.identity.node_id {
            // After a restart, a leader does not resume its term.
            return wire::LeaderLostResponse { is_lost: !self.leads_by(leader), ..Default::default() };
        }
        let is_voter = is_voter(&self.inner.view.borrow(), self.inner.identity.node_id);
        let Some(own) = self.position().await.filter(|_| is_voter) else { return Default::default() };
        let is_lost = self.is_lost(leader, &own).await;
        let stands = self.may_stand();
        if is_lost && stands {
            // The others may wait for this node.
            self.inner.failover.asked.notify_one();
        }
        wire::LeaderLostResponse { is_lost, last_log_id: own.last_log_id.as_ref().map(convert::log_id_pb), stands }
    }

    /// Stands for election if a majority has lost `leader`, and this node has the most up-to-date log of that majority.
    /// Returns without a result: a new leader shows in the view.
    pub(crate) async fn fail_over(&self, leader: &Peer) {
        let view = self.inner.view.borrow().clone();
        let Some(own) = self.position().await else { return };
        let follows = own.vote.committed && own.vote.leader_id.node_id == leader.node_id;
        let is_noticed = !failpoints::is_active(failpoints::DEAD_LEADER_NOT_NOTICED);
        if !follows || !is_noticed || !self.may_stand() || !self.is_lost(&own.vote, &own).await {
            return;
        }
        let began = Instant::now();
        let is_better =
            |other: &Answer| other.stands && other.position > (own.last_log_id, self.inner.identity.node_id);
        match self.lost_by_majority(&view, &own.vote).await {
            Some(others) if others.iter().any(is_better) => {
                tracing::debug!(leader = leader.name, "The leader's process has ended; another node succeeds it")
            }
            Some(_) if self.inner.failover.heard_since(&own.vote, began) => {
                tracing::debug!(leader = leader.name, "The leader could not be found, and is heard")
            }
            Some(_) => self.stand(leader, own).await,
            None => tracing::debug!(leader = leader.name, "This node has lost the leader, and no majority has"),
        }
    }

    async fn stand(&self, leader: &Peer, own: Position) {
        if !self.may_stand() {
            return;
        }
        tracing::info!(leader = leader.name, "The leader's process has ended; standing for election");
        // Raft declines if it has seen another vote since.
        let offer = TransferLeaderRequest::new(own.vote, self.inner.identity.node_id, own.last_log_id);
        if let Ok(Err(declined)) = self.inner.raft.handle_transfer_leader(offer).await {
            tracing::debug!(%declined, "This node does not succeed the leader");
        }
    }

    /// What Raft has now. `None`: it has stopped.
    async fn position(&self) -> Option<Position> {
        let read = |state: &RaftState<TypeConfig>| Position {
            vote: *state.vote_ref(),
            last_log_id: state.log_ids.last().copied(),
        };
        self.inner.raft.with_raft_state(read).await.ok()
    }

    /// Whether this node is a voter that would win an election without delay.
    fn may_stand(&self) -> bool {
        let is_slow = self.inner.disk.stalled().is_some_and(|(_, age)| age > SLOW_WRITE);
        !self.is_stopping() && !is_slow && is_voter(&self.inner.view.borrow(), self.inner.identity.node_id)
    }

    /// Whether the leader with this vote, another node, is gone as far as this node can tell.
    async fn is_lost(&self, leader: &Vote, own: &Position) -> bool {
        let is_watched = || *self.inner.failover.watched.borrow() == Some(*leader);
        if own.vote != *leader || is_watched() {
            return false;
        }
        let mut probed = self.inner.failover.probed.lock().await;
        if let Some(last) = &*probed {
            let valid = if last.is_lost { LOST_MAX } else { FOUND_MAX };
            if last.leader == *leader && last.at.elapsed() < valid {
                return last.is_lost;
            }
        }
        let began = Instant::now();
        let is_lost = failpoints::is_active(failpoints::LEADER_NOT_PROBED)
            || !(self.finds(leader).await || self.inner.failover.heard_since(leader, began) || is_watched());
        *probed = Some(Probed { leader: *leader, is_lost, at: Instant::now() });
        is_lost
    }

    /// Probes a leader on a new connection. False if there is no process, or it does not lead.
    async fn finds(&self, leader: &Vote) -> bool {
        let leader_id = leader.leader_id.node_id;
        let Some((_, address)) = self.record_of(leader_id) else { return true };
        let Ok((mut client, round_trip)) = self.inner.peers.connect_anew(leader_id, &address) else { return true };
        let request = wire::LeaderLostRequest { leader: Some(convert::vote_pb(leader)) };
        let call = client.leader_lost(self.inner.credentials.sign(leader_id, request));
        let limit = self.inner.failover.probe_max + round_trip.min(ROUND_TRIP_MAX) * PROBE_ROUND_TRIPS;
        match timeout(limit, call).await {
            Ok(Ok(response)) => !response.into_inner().is_lost,
            // There is no connection, it broke, or the process is starting. Anything else is the answer of a process.
            Ok(Err(status)) => {
                !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
            }
            Err(_) => false,
        }
    }

    /// Asks the other voters. Returns the answers of those that have lost the leader, if they are a majority together
    /// with this node.
    async fn lost_by_majority(&self, view: &View, leader: &Vote) -> Option<Vec<Answer>> {
        let voters: Vec<&Peer> = view.members.iter().filter(|peer| peer.voter).collect();
        let not_asked = [self.inner.identity.node_id, leader.leader_id.node_id];
        let others = voters.iter().filter(|peer| !not_asked.contains(&peer.node_id));
        let mut answers: FuturesUnordered<_> = others.map(|peer| self.ask(peer, leader)).collect();
        let mut lost = Vec::new();
        let has_majority = |lost: &Vec<_>| lost.len() + 1 > voters.len() / 2;
        let mut end: Option<Instant> = None;
        loop {
            let next = answers.next();
            let answer = match end {
                Some(end) => timeout_at(end, next).await.unwrap_or(None),
                None => next.await,
            };
            let Some(answer) = answer else { break };
            lost.extend(answer);
            if has_majority(&lost) {
                end.get_or_insert_with(|| Instant::now() + GRACE);
            }
        }
        has_majority(&lost).then_some(lost)
    }

    /// Asks a voter. `None`: it still has the leader, or does not answer.
    async fn ask(&self, peer: &Peer, leader: &Vote) -> Option<Answer> {
        let mut client = self.inner.peers.member(peer.node_id, &peer.peer_address, Lane::Control).ok()?;
        let request = wire::LeaderLostRequest { leader: Some(convert::vote_pb(leader)) };
        let call = client.leader_lost(self.inner.credentials.sign(peer.node_id, request));
        let limit = self.inner.failover.probe_max + ROUND_TRIP_MAX * PROBE_ROUND_TRIPS + ANSWER_MAX;
        let response = timeout(limit, call).await.ok()?;
        let note = |status: &Status| self.inner.peers.note_error(status, peer.node_id, &peer.peer_address);
        let response = response.inspect_err(note).ok()?.into_inner();
        let position = (response.last_log_id.map(convert::log_id), peer.node_id);
        response.is_lost.then_some(Answer { position, stands: response.stands })
    }
}

fn is_leader_by(view: &View, vote: &Vote) -> bool {
    view.is_leader() && (view.term, view.leader) == (vote.leader_id.term, Some(vote.leader_id.node_id))
}

fn is_voter(view: &View, node_id: u64) -> bool {
    view.member(node_id).is_some_and(|peer| peer.voter)
}

/// The answer of a voter that has lost the leader.
struct Answer {
    /// End of its log, and its node id, which decides between equals.
    position: (Option<LogId>, u64),
    /// Whether it would stand for election.
    stands: bool,
}
