//! An election as soon as the leader's process has ended, rather than after the election timeout.
//!
//! The kernel closes the connections of a process that ends, at once. So a voter keeps a call open at the leader, and
//! probes the leader when that call breaks: on a new connection, it asks whether the leader still leads. If that fails,
//! it asks the other voters, each of which probes for itself. If a majority of the voters has lost the leader, the one
//! with the most up-to-date log among them stands for election at once, as after an offer of leadership.
//!
//! Invariant: no guarantee depends on any of this. A voter still grants its vote only to a log that has all of its own,
//! and never to a lower term or node id than before. A wrong conclusion costs a term, as an election without need does;
//! the simulation checks that a leader whose connections break keeps its term.
//!
//! A probe without an answer proves less than one that is refused: the leader may hang, or be slow to accept. So it
//! counts only if the leader was heard shortly before its call broke, and only after an append would have arrived.
//!
//! A leader whose machine vanishes closes nothing, and is replaced after the election timeout. So is one whose
//! successor fails here.
//!
//! Does not cover: when to watch and to try again (`tasks::failover`), and transfers of leadership (`node::transfer`).

use std::{
    sync::{Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use openraft::{RaftState, raft::TransferLeaderRequest};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
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
/// A leader that hangs is not heard for this many heartbeats before the kernel gives up its connections.
const HEARD_HEARTBEATS: u32 = 3;
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
    /// When the last call at a leader broke.
    broke: StdMutex<Option<Instant>>,
    /// The leader whose append arrived last, and when.
    heard: StdMutex<Option<(Vote, Instant)>>,
    /// The last probe. Held during a probe, so that all who ask meanwhile get its result.
    probed: Mutex<Option<Probed>>,
    /// Another voter has lost this leader, and so has this node.
    asked: Notify,
    asked_about: StdMutex<Option<Vote>>,
    /// Longest probe on a network without delay.
    probe_max: Duration,
    /// Interval between heartbeats of the leader.
    heartbeat: Duration,
}

struct Probed {
    leader: Vote,
    verdict: Verdict,
    at: Instant,
}

/// What a node concludes of a leader at which it has no open call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its process has ended.
    Lost,
    /// It leads.
    Found,
    /// It did not answer, but an append of it arrived, which may have been on its way.
    Unclear,
}

/// The result of a probe.
enum Probe {
    /// The leader leads, or there is no way to tell.
    Answered,
    /// There is no process, or it does not lead.
    Refused,
    /// There was no answer.
    Silent,
}

impl Failover {
    /// The state of a node that watches no leader yet.
    pub(crate) fn new(probe_max: Duration, heartbeat: Duration) -> Self {
        Self {
            watched: watch::Sender::new(None),
            broke: StdMutex::default(),
            heard: StdMutex::default(),
            probed: Mutex::default(),
            asked: Notify::new(),
            asked_about: StdMutex::default(),
            probe_max,
            heartbeat,
        }
    }

    /// Records that an append of `leader` arrived.
    pub(super) fn hear(&self, leader: &Vote) {
        *lock(&self.heard) = Some((*leader, Instant::now()));
    }

    /// Records that another voter has lost a leader, and this node as well.
    fn ask(&self, leader: &Vote) {
        *lock(&self.asked_about) = Some(*leader);
        self.asked.notify_one();
    }

    /// Waits until that is so of the leader of a term.
    async fn asked(&self, term: u64, leader: u64) {
        loop {
            self.asked.notified().await;
            // It may be an earlier leader, which was replaced since.
            let about = lock(&self.asked_about).take();
            if about.is_some_and(|vote| (vote.leader_id.term, vote.leader_id.node_id) == (term, leader)) {
                return;
            }
        }
    }

    /// When an append of `leader` arrived last.
    fn last_heard(&self, leader: &Vote) -> Option<Instant> {
        lock(&self.heard).filter(|(vote, _)| vote == leader).map(|(_, at)| at)
    }

    fn heard_since(&self, leader: &Vote, moment: Instant) -> bool {
        self.last_heard(leader).is_some_and(|at| at > moment)
    }

    /// Whether the leader was heard shortly before its call broke. A process that ended was; one that hangs was not.
    fn was_well(&self, leader: &Vote) -> bool {
        let (broke, recently) = (lock(&self.broke).unwrap_or_else(Instant::now), self.heartbeat * HEARD_HEARTBEATS);
        self.last_heard(leader).is_some_and(|at| at + recently > broke)
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The other node was elected, and has not sent an append yet.
    Early,
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

    /// Waits until another voter has lost the leader of a term and this node has lost it, too.
    pub(crate) async fn lost_elsewhere(&self, term: u64, leader: u64) {
        self.inner.failover.asked(term, leader).await;
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
            return Watch::Early;
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
            Err(_) => {
                *lock(&self.inner.failover.broke) = Some(Instant::now());
                Watch::Broken
            }
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
        let is_lost = self.verdict_on(leader, &own).await == Verdict::Lost;
        let stands = self.may_stand();
        if is_lost && stands {
            // The others may wait for this node.
            self.inner.failover.ask(leader);
        }
        wire::LeaderLostResponse { is_lost, last_log_id: own.last_log_id.as_ref().map(convert::log_id_pb), stands }
    }

    /// Stands for election if a majority has lost `leader`, and this node has the most up-to-date log of that majority.
    /// Returns what this node concludes of the leader; a new one shows in the view.
    pub(crate) async fn fail_over(&self, leader: &Peer) -> Verdict {
        let view = self.inner.view.borrow().clone();
        let Some(own) = self.position().await else { return Verdict::Found };
        let follows = own.vote.committed && own.vote.leader_id.node_id == leader.node_id;
        let is_noticed = !failpoints::is_active(failpoints::DEAD_LEADER_NOT_NOTICED);
        if !follows || !is_noticed || !self.may_stand() {
            return Verdict::Found;
        }
        let verdict = self.verdict_on(&own.vote, &own).await;
        if verdict != Verdict::Lost {
            return verdict;
        }
        let began = Instant::now();
        let is_better =
            |other: &Answer| other.stands && other.position > (own.last_log_id, self.inner.identity.node_id);
        match self.lost_by_majority(&view, &own.vote).await {
            Some(others) if others.iter().any(is_better) => {
                tracing::debug!(leader = leader.name, "The leader's process has ended; another node succeeds it")
            }
            Some(_) if self.inner.failover.heard_since(&own.vote, began) => {
                tracing::debug!(leader = leader.name, "The leader could not be found, and is heard");
                return Verdict::Unclear;
            }
            Some(_) => self.stand(leader, own).await,
            None => tracing::debug!(leader = leader.name, "This node has lost the leader, and no majority has"),
        }
        Verdict::Lost
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

    /// Whether this node is a voter that would win an election without delay, and keep what it wins.
    fn may_stand(&self) -> bool {
        let is_slow = self.inner.disk.stalled().is_some_and(|(_, age)| age > SLOW_WRITE);
        let is_able = !self.is_stopping() && !is_slow && !self.inner.space.is_low();
        is_able && is_voter(&self.inner.view.borrow(), self.inner.identity.node_id)
    }

    /// Concludes whether the leader with this vote, another node, is gone.
    async fn verdict_on(&self, leader: &Vote, own: &Position) -> Verdict {
        let failover = &self.inner.failover;
        let is_watched = || *failover.watched.borrow() == Some(*leader);
        if own.vote != *leader || is_watched() {
            return Verdict::Found;
        }
        let mut probed = failover.probed.lock().await;
        if let Some(last) = probed.as_ref().filter(|last| last.leader == *leader) {
            let valid = if last.verdict == Verdict::Lost { LOST_MAX } else { FOUND_MAX };
            if last.at.elapsed() < valid && !failover.heard_since(leader, last.at) {
                return last.verdict;
            }
        }
        let began = Instant::now();
        let probe = match failpoints::is_active(failpoints::LEADER_NOT_PROBED) {
            true => Probe::Refused,
            false => self.probe_leader(leader).await,
        };
        if matches!(probe, Probe::Silent) {
            sleep_until(began + failover.heartbeat * 3 / 2).await;
        }
        let verdict = match probe {
            Probe::Answered => Verdict::Found,
            _ if failpoints::is_active(failpoints::LEADER_NOT_PROBED) => Verdict::Lost,
            _ if is_watched() => Verdict::Found,
            _ if failover.heard_since(leader, began) => Verdict::Unclear,
            Probe::Silent if !failover.was_well(leader) => Verdict::Found,
            Probe::Refused | Probe::Silent => Verdict::Lost,
        };
        *probed = Some(Probed { leader: *leader, verdict, at: Instant::now() });
        verdict
    }

    /// Asks a leader, on a new connection, whether it leads.
    async fn probe_leader(&self, leader: &Vote) -> Probe {
        let leader_id = leader.leader_id.node_id;
        let Some((_, address)) = self.record_of(leader_id) else { return Probe::Answered };
        let Ok((mut client, round_trip)) = self.inner.peers.connect_anew(leader_id, &address) else {
            return Probe::Answered;
        };
        let request = wire::LeaderLostRequest { leader: Some(convert::vote_pb(leader)) };
        let call = client.leader_lost(self.inner.credentials.sign(leader_id, request));
        let limit = self.inner.failover.probe_max + round_trip.min(ROUND_TRIP_MAX) * PROBE_ROUND_TRIPS;
        match timeout(limit, call).await {
            Ok(Ok(response)) if response.get_ref().is_lost => Probe::Refused,
            // There is no connection, it broke, or the process is starting. Anything else is the answer of a process.
            Ok(Err(status))
                if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) =>
            {
                Probe::Refused
            }
            Ok(_) => Probe::Answered,
            Err(_) => Probe::Silent,
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
        let Failover { probe_max, heartbeat, .. } = self.inner.failover;
        let limit = probe_max + heartbeat * 3 / 2 + ROUND_TRIP_MAX * PROBE_ROUND_TRIPS + ANSWER_MAX;
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(100);

    fn failover() -> Failover {
        Failover::new(HEARTBEAT, HEARTBEAT)
    }

    fn leader(term: u64, node_id: u64) -> Vote {
        Vote::new_committed(term, node_id)
    }

    #[tokio::test]
    async fn a_question_about_an_earlier_leader_wakes_nobody() {
        let failover = failover();
        failover.ask(&leader(1, 1));
        assert!(failover.asked(2, 2).now_or_never().is_none());
        failover.ask(&leader(2, 2));
        assert!(failover.asked(2, 2).now_or_never().is_some());
        assert!(failover.asked(2, 2).now_or_never().is_none(), "once for each question");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_silent_before_its_call_broke_hangs() {
        let failover = failover();
        let (hangs, ended) = (leader(1, 1), leader(2, 2));
        failover.hear(&hangs);
        tokio::time::advance(HEARTBEAT * 4).await;
        *lock(&failover.broke) = Some(Instant::now());
        assert!(!failover.was_well(&hangs));
        failover.hear(&ended);
        tokio::time::advance(HEARTBEAT).await;
        *lock(&failover.broke) = Some(Instant::now());
        // However long ago that is.
        tokio::time::advance(HEARTBEAT * 100).await;
        assert!(failover.was_well(&ended));
        assert!(!failover.was_well(&hangs), "another leader's appends say nothing");
    }
}
