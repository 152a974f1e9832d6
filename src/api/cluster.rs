//! What a client may know about the cluster.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::{ChatApi, call::Call, status};
use crate::{
    proto::chat::v1 as pb,
    raft::{NodeStatus, Overview, Peer, Role},
};

/// The leader is asked for the others' health; whoever lists the nodes does not wait longer than this for it.
const OVERVIEW_MAX: Duration = Duration::from_secs(1);

impl ChatApi {
    pub(super) fn get_leader(&self) -> Result<pb::GetLeaderResponse, Status> {
        let node = self.inner.node.status();
        let leader = node.leader.as_ref().ok_or_else(status::no_leader)?;
        Ok(pb::GetLeaderResponse { leader: Some(describe(leader, &node)), term: node.term })
    }

    pub(super) async fn list_nodes(&self, call: &Call) -> pb::ListNodesResponse {
        let patience = call.deadline.min(Instant::now() + OVERVIEW_MAX);
        let overview = self.inner.node.overview(patience).await.ok();
        let node = self.inner.node.status();
        let revision = self.inner.hub.current().0;
        list(&node, overview.as_ref(), self.inner.settings.election_timeout, revision.0)
    }
}

fn describe(peer: &Peer, node: &NodeStatus) -> pb::NodeInfo {
    let leads = node.leader.as_ref().is_some_and(|leader| leader.node_id == peer.node_id);
    let role = if leads {
        pb::NodeRole::Leader
    } else if !peer.voter {
        pb::NodeRole::Learner
    } else if peer.node_id == node.node_id && node.role == Role::Candidate {
        pb::NodeRole::Candidate
    } else {
        pb::NodeRole::Follower
    };
    pb::NodeInfo {
        node_id: peer.node_id,
        name: peer.name.clone(),
        client_address: peer.client_address.clone(),
        peer_address: peer.peer_address.clone(),
        web_address: peer.web_address.clone(),
        role: role.into(),
        voter: peer.voter,
        healthy: None,
        lag_entries: None,
    }
}

fn list(node: &NodeStatus, overview: Option<&Overview>, timeout: Duration, revision: u64) -> pb::ListNodesResponse {
    let mut nodes: Vec<_> = node.members.iter().map(|peer| describe(peer, node)).collect();
    if let Some(overview) = overview {
        for info in &mut nodes {
            let health = overview.peers.iter().find(|health| health.node_id == info.node_id);
            // The leader has answered just now, whether or not it lists itself.
            let leads = info.role == i32::from(pb::NodeRole::Leader);
            let heard = health.and_then(|health| health.silent).is_some_and(|silent| silent <= timeout);
            info.healthy = Some(leads || heard);
            info.lag_entries = health.and_then(|health| health.lag_entries);
        }
    }
    let failures_tolerated = overview.map(|_| {
        let voters = nodes.iter().filter(|info| info.voter).count();
        let healthy = nodes.iter().filter(|info| info.voter && info.healthy == Some(true)).count();
        u32::try_from(healthy.saturating_sub(voters / 2 + 1)).unwrap_or(u32::MAX)
    });
    pb::ListNodesResponse {
        nodes,
        cluster_id: node.cluster_id.clone(),
        term: overview.map_or(node.term, |overview| overview.term.max(node.term)),
        revision,
        answered_by: node.name.clone(),
        failures_tolerated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::PeerHealth;

    fn peer(node_id: u64) -> Peer {
        Peer {
            node_id,
            name: format!("n{node_id}"),
            peer_address: String::new(),
            client_address: String::new(),
            web_address: String::new(),
            voter: node_id <= 5,
        }
    }

    fn node() -> NodeStatus {
        NodeStatus {
            node_id: 2,
            name: "n2".into(),
            cluster_id: "c".into(),
            term: 7,
            role: Role::Follower,
            leader: Some(peer(1)),
            members: (1..=6).map(peer).collect(),
            last_log_index: 0,
            committed_index: 0,
            applied_index: 0,
        }
    }

    fn tolerated(down: &[u64]) -> Option<u32> {
        let health = |node_id| {
            let silent = if down.contains(&node_id) { None } else { Some(Duration::from_millis(50)) };
            PeerHealth { node_id, silent, lag_entries: Some(0) }
        };
        let overview = Overview { term: 7, peers: (2..=6).map(health).collect() };
        list(&node(), Some(&overview), Duration::from_millis(600), 9).failures_tolerated
    }

    #[test]
    fn failures_tolerated_counts_healthy_voters() {
        assert_eq!(tolerated(&[]), Some(2));
        assert_eq!(tolerated(&[6]), Some(2), "a learner does not count");
        assert_eq!(tolerated(&[3]), Some(1));
        assert_eq!(tolerated(&[3, 4]), Some(0));
        assert_eq!(tolerated(&[3, 4, 5]), Some(0));
    }

    #[test]
    fn roles_and_health() {
        let overview = Overview {
            term: 8,
            peers: vec![PeerHealth { node_id: 3, silent: Some(Duration::from_secs(2)), lag_entries: Some(40) }],
        };
        let response = list(&node(), Some(&overview), Duration::from_millis(600), 9);
        let roles: Vec<_> = response.nodes.iter().map(pb::NodeInfo::role).collect();
        use pb::NodeRole::{Follower, Leader, Learner};
        assert_eq!(roles, [Leader, Follower, Follower, Follower, Follower, Learner]);
        assert_eq!(response.nodes[0].healthy, Some(true));
        assert_eq!((response.nodes[2].healthy, response.nodes[2].lag_entries), (Some(false), Some(40)));
        assert_eq!((response.term, response.revision), (8, 9));
    }

    #[test]
    fn without_a_leader_health_is_not_known() {
        let response = list(&node(), None, Duration::from_millis(600), 9);
        assert_eq!(response.failures_tolerated, None);
        assert!(response.nodes.iter().all(|info| info.healthy.is_none() && info.lag_entries.is_none()));
    }
}
