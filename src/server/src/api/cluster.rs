//! Information about the cluster for clients.
//!
//! Names, client and web addresses, roles and health are public, because clients use them to find the leader before
//! they have a session. Peer addresses, the cluster id and digests are only for callers with a session and for
//! operators. Others have no use for them, and they would show an attacker the targets. A caller whose token is invalid
//! gets the public part.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Status};

use super::{ChatApi, call::Call, status};
use proto::chat::v1 as pb;
use raft::{ClusterHealth, DigestStatus, NodeStatus, Peer, Role};

/// Time limit for the leader's answer about the health of the others, and thus for this part of the list of nodes.
const OVERVIEW_MAX: Duration = Duration::from_secs(1);

/// Marks the requests of the operator's socket, as an extension.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator;

/// The audience of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Anybody who reaches the port.
    Everybody,
    /// A caller with a session, or an operator.
    Known,
}

impl ChatApi {
    /// The audience of the answer to `request`.
    pub(super) async fn audience<T>(&self, call: &Call, request: &Request<T>) -> Audience {
        if request.extensions().get::<Operator>().is_some() {
            return Audience::Known;
        }
        if !request.metadata().contains_key("authorization") {
            return Audience::Everybody;
        }
        // An unknown token costs a request to the leader, which may not answer.
        let deadline = call.deadline.min(Instant::now() + OVERVIEW_MAX);
        match self.authenticate(request.metadata(), deadline).await {
            Ok(_) => Audience::Known,
            Err(_) => Audience::Everybody,
        }
    }

    pub(super) fn get_leader(&self, audience: Audience) -> Result<pb::GetLeaderResponse, Status> {
        let node = self.inner.node.status();
        let leader = node.leader.as_ref().ok_or_else(status::no_leader)?;
        let mut leader = describe(leader, &node);
        if audience == Audience::Everybody {
            restrict(&mut leader);
        }
        Ok(pb::GetLeaderResponse { leader: Some(leader), term: node.term })
    }

    pub(super) async fn list_nodes(&self, call: &Call, audience: Audience) -> pb::ListNodesResponse {
        let until = call.deadline.min(Instant::now() + OVERVIEW_MAX);
        let cluster_health = self.inner.node.cluster_health(until).await.ok();
        let node = self.inner.node.status();
        let timeout = self.inner.settings.election_timeout;
        let mut answer = list(&node, cluster_health.as_ref(), timeout, &self.inner.node.digests());
        if audience == Audience::Everybody {
            restrict_list(&mut answer);
        }
        answer
    }
}

fn restrict(info: &mut pb::NodeInfo) {
    info.peer_address.clear();
    info.digest = None;
}

/// Removes the parts that are not public, and marks the answer as restricted.
fn restrict_list(answer: &mut pb::ListNodesResponse) {
    answer.nodes.iter_mut().for_each(restrict);
    answer.cluster_id.clear();
    answer.digest.clear();
    answer.compared = None;
    answer.restricted = true;
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
        digest: None,
    }
}

fn list(
    node: &NodeStatus,
    cluster_health: Option<&ClusterHealth>,
    timeout: Duration,
    digests: &DigestStatus,
) -> pb::ListNodesResponse {
    let mut nodes: Vec<_> = node.members.iter().map(|peer| describe(peer, node)).collect();
    if let Some(cluster_health) = cluster_health {
        for info in &mut nodes {
            let health = cluster_health.peers.iter().find(|health| health.node_id == info.node_id);
            // The leader has just answered, whether or not it lists itself.
            let leads = info.role == i32::from(pb::NodeRole::Leader);
            let heard = health.and_then(|health| health.silent).is_some_and(|silent| silent <= timeout);
            info.healthy = Some(leads || heard);
            info.lag_entries = health.and_then(|health| health.lag_entries);
        }
    }
    if let Some(comparison) = &digests.comparison {
        for info in &mut nodes {
            info.digest = comparison.reports.get(&info.node_id).map(|digest| digest.0.to_vec());
        }
    }
    let failures_tolerated =
        cluster_health.map(|cluster_health| cluster_health.failures_tolerated(&node.members, timeout));
    pb::ListNodesResponse {
        nodes,
        cluster_id: node.cluster_id.clone(),
        term: cluster_health.map_or(node.term, |cluster_health| cluster_health.term.max(node.term)),
        revision: digests.revision.0,
        answered_by: node.name.clone(),
        failures_tolerated,
        digest: digests.digest.0.to_vec(),
        compared: digests
            .comparison
            .as_ref()
            .map(|comparison| pb::DigestComparison { log_index: comparison.mark, revision: comparison.revision.0 }),
        restricted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat::{Revision, StateDigest};
    use raft::{Comparison, PeerHealth};

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

    fn digests() -> DigestStatus {
        let reports = [(1, StateDigest([7; 32])), (2, StateDigest([8; 32]))].into();
        let comparison = Some(Comparison { mark: 31, revision: Revision(5), reports });
        DigestStatus { revision: Revision(9), digest: StateDigest([9; 32]), comparison }
    }

    fn tolerated(down: &[u64]) -> Option<u32> {
        let health = |node_id| {
            let silent = if down.contains(&node_id) { None } else { Some(Duration::from_millis(50)) };
            PeerHealth { node_id, silent, lag_entries: Some(0) }
        };
        let cluster_health = ClusterHealth { term: 7, peers: (1..=6).map(health).collect() };
        list(&node(), Some(&cluster_health), Duration::from_millis(600), &digests()).failures_tolerated
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
        let cluster_health = ClusterHealth {
            term: 8,
            peers: vec![PeerHealth { node_id: 3, silent: Some(Duration::from_secs(2)), lag_entries: Some(40) }],
        };
        let response = list(&node(), Some(&cluster_health), Duration::from_millis(600), &digests());
        let roles: Vec<_> = response.nodes.iter().map(pb::NodeInfo::role).collect();
        use pb::NodeRole::{Follower, Leader, Learner};
        assert_eq!(roles, [Leader, Follower, Follower, Follower, Follower, Learner]);
        assert_eq!(response.nodes[0].healthy, Some(true));
        assert_eq!((response.nodes[2].healthy, response.nodes[2].lag_entries), (Some(false), Some(40)));
        assert_eq!((response.term, response.revision), (8, 9));
    }

    #[test]
    fn digests_are_shown_at_one_place_for_all() {
        let response = list(&node(), None, Duration::from_millis(600), &digests());
        assert_eq!((response.revision, response.digest), (9, vec![9; 32]));
        assert_eq!(response.compared, Some(pb::DigestComparison { log_index: 31, revision: 5 }));
        let digests: Vec<_> = response.nodes.iter().map(|info| info.digest.clone()).collect();
        assert_eq!(digests[..3], [Some(vec![7; 32]), Some(vec![8; 32]), None]);
    }

    #[test]
    fn strangers_are_told_what_it_takes_to_follow_the_leader() {
        let mut answer = list(&node(), None, Duration::from_millis(600), &digests());
        for info in &mut answer.nodes {
            (info.peer_address, info.client_address) = ("peer:2".into(), "client:1".into());
        }
        restrict_list(&mut answer);
        assert!(answer.restricted && answer.cluster_id.is_empty() && answer.digest.is_empty());
        assert_eq!((answer.compared, answer.revision, answer.term), (None, 9, 7));
        let info = &answer.nodes[0];
        assert_eq!((info.name.as_str(), info.client_address.as_str()), ("n1", "client:1"));
        assert!(answer.nodes.iter().all(|info| info.peer_address.is_empty() && info.digest.is_none()));
    }

    #[test]
    fn without_a_leader_health_is_not_known() {
        let response = list(&node(), None, Duration::from_millis(600), &digests());
        assert_eq!(response.failures_tolerated, None);
        assert!(response.nodes.iter().all(|info| info.healthy.is_none() && info.lag_entries.is_none()));
    }
}
