//! The status of this node, and the health of its cluster.
//!
//! Nothing here waits, except for [`Node::cluster_health`], which asks the leader.
//!
//! Does not cover: how the status of the disk, the volume and the state is determined (`disk`, `space`, `audit`).

use std::{sync::atomic::Ordering, time::Duration};

use openraft::{Instant as _, async_runtime::WatchReceiver as _};
use tokio::time::Instant;

use super::Node;
use crate::{
    audit::DigestStatus,
    disk::DiskStatus,
    error::ReadError,
    space::SpaceStatus,
    status::{ClusterHealth, Leading, NodeStatus, PeerHealth},
    transport::{
        leader_client::{Client, Leader},
        peers::Lane,
    },
    types::LogId,
};
use proto::raft::v1 as wire;

/// A leader without a quorum for this many election timeouts is no longer reported as leader. Long enough to ride out a
/// slow disk or an election.
const LEADERLESS_ELECTIONS: u32 = 5;

impl Node {
    /// Upper bound of the age of this node's state: the time since it was known to include every committed entry.
    /// `None` if that was never the case since the node started.
    pub fn age(&self) -> Option<Duration> {
        let now = Instant::now();
        if self.inner.view.borrow().is_leader()
            && let Some(age) = self.inner.quorum_age.get()
        {
            return Some(age);
        }
        self.inner.freshness.age(*self.inner.applied.borrow(), now)
    }

    /// Status of this node.
    pub fn status(&self) -> NodeStatus {
        let view = self.inner.view.borrow().clone();
        let metrics = self.inner.raft.data_metrics();
        let data = metrics.borrow_watched().clone();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        NodeStatus {
            node_id: self.inner.identity.node_id,
            name: self.inner.identity.name.clone(),
            cluster_id: self.inner.identity.cluster_id.clone(),
            term: view.term,
            role: view.role,
            leader: view.leader().filter(|_| self.is_led()).cloned(),
            members: view.members.to_vec(),
            last_log_index: index(data.last_log),
            committed_index: index(data.local_committed),
            applied_index: index(*self.inner.applied.borrow()),
        }
    }

    /// Whether the leader recently had a quorum. The leader is the node that this one follows, or this node itself.
    pub(crate) fn is_led(&self) -> bool {
        let own = self.inner.view.borrow().is_leader().then(|| self.inner.quorum_age.get()).flatten();
        let age = own.or_else(|| self.inner.freshness.leaderless(Instant::now()));
        age.is_some_and(|age| age <= self.majority_missed_max())
    }

    /// A leader without a quorum for longer than this is no longer reported as leader.
    pub(crate) fn majority_missed_max(&self) -> Duration {
        self.inner.election_max * LEADERLESS_ELECTIONS
    }

    /// Whether this node has a leader and a small apply lag.
    pub fn is_ready(&self) -> bool {
        const LAG_MAX: u64 = 1000;
        self.status().leader.is_some() && self.behind() <= LAG_MAX
    }

    /// Apply lag: entries that this node has learned to be committed and that are not applied yet.
    pub fn behind(&self) -> u64 {
        let status = self.status();
        let known = self.inner.freshness.committed().map_or(0, |id| id.index);
        status.committed_index.max(known).saturating_sub(status.applied_index)
    }

    /// The space on this node's volume.
    pub fn space(&self) -> SpaceStatus {
        self.inner.space.status(self.inner.view.borrow().is_leader())
    }

    /// Status of this node's disk.
    pub fn disk(&self) -> DiskStatus {
        let stalled = self.inner.disk.stalled().map_or(Duration::ZERO, |(_, age)| age);
        DiskStatus { stalled, slow_disk_transfers: self.inner.slow_disk_transfers.load(Ordering::Relaxed) }
    }

    /// Counts a leadership transfer because of a slow disk.
    pub(crate) fn count_slow_disk_transfer(&self) {
        self.inner.slow_disk_transfers.fetch_add(1, Ordering::Relaxed);
    }

    /// The digest of this node's state, and the newest comparison with the others.
    pub fn digests(&self) -> DigestStatus {
        self.inner.auditor.status()
    }

    /// State that exists only on a leader. `None` unless this node leads and recently had a quorum.
    pub fn leading(&self) -> Option<Leading> {
        if !self.inner.view.borrow().is_leader() || !self.is_led() {
            return None;
        }
        Some(Leading { quorum_age: self.inner.quorum_age.get()?, cluster_health: self.cluster_health_here() })
    }

    /// Health of all members, requested from the leader.
    ///
    /// # Errors
    /// There is no leader, or it does not answer before `deadline`.
    pub async fn cluster_health(&self, deadline: Instant) -> Result<ClusterHealth, ReadError> {
        let leader = self.inner.leader.find().ok_or(ReadError::NoLeader)?;
        if !self.is_led() {
            return Err(ReadError::NoLeader);
        }
        let leader = match leader {
            Leader::Here => return Ok(self.cluster_health_here()),
            Leader::There(leader) => leader,
        };
        let request = wire::ClusterHealthRequest {};
        let call = async |mut client: Client, request| client.cluster_health(request).await;
        let response = self.inner.leader.call(&leader, Lane::Control, Some(deadline), request, call).await?;
        let peers = response.peers.into_iter().map(|peer| PeerHealth {
            node_id: peer.node_id,
            silent: peer.silent_ms.map(Duration::from_millis),
            lag_entries: peer.lag_entries,
        });
        Ok(ClusterHealth { term: response.term, peers: peers.collect() })
    }

    /// The longest silence of a follower that still counts as healthy.
    pub fn healthy_silence_max(&self) -> Duration {
        self.inner.election_max
    }

    /// Health of all members as seen by this node. Meaningful only on the leader.
    pub(crate) fn cluster_health_here(&self) -> ClusterHealth {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let own = self.inner.identity.node_id;
        let last = metrics.last_log_index;
        let peers = metrics.membership_config.nodes().map(|(id, _)| {
            if *id == own {
                return PeerHealth { node_id: own, silent: Some(Duration::ZERO), lag_entries: Some(0) };
            }
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id)).and_then(|at| *at);
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id)).and_then(|id| *id);
            PeerHealth {
                node_id: *id,
                silent: heard.map(|at| at.elapsed()),
                lag_entries: matched.and_then(|matched| Some(last?.saturating_sub(matched.index))),
            }
        });
        ClusterHealth { term: metrics.current_term, peers: peers.collect() }
    }
}
