//! Nodes that join the cluster: the request of a node, the admission by the leader.
//!
//! Does not cover: which changes are allowed (`membership::plan`), and making a change (`node::membership`).

use tokio::time::{Instant, timeout};

use super::Node;
use crate::{
    error::{MemberError, ProposeError},
    membership::{ANSWER_MAX, CHANGE_MAX, join_token_hash, plan::matches},
    transport::{leader_client::Leader, peers::Lane},
    types::NodeRecord,
};
use chat::{Command, Outcome};
use proto::raft::v1 as wire;
use storage::new_cluster::MEMBER_IDS_FROM;

/// An identity in this cluster.
pub(crate) struct Admission {
    pub cluster_id: String,
    pub node_id: u64,
}

impl Node {
    /// Admits an empty node that asks to join, or returns the address of the leader.
    pub(crate) async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinResponse, MemberError> {
        let leader = match self.inner.leader.find().ok_or(MemberError::NoLeader)? {
            Leader::Here => {
                self.permit(&request).await?;
                let Admission { cluster_id, node_id } = self.admit(request).await?;
                return Ok(wire::JoinResponse { cluster_id, node_id, leader: String::new() });
            }
            Leader::There(leader) => leader,
        };
        let leader = self.inner.peers.address_of(leader.node_id, &leader.peer_address);
        Ok(wire::JoinResponse { leader, ..wire::JoinResponse::default() })
    }

    /// On the leader: probes the node at an address, and adds it as a learner if it is empty.
    pub(crate) async fn add_here(&self, peer_address: &str) -> Result<u64, MemberError> {
        let conflict = |reason: String| MemberError::Conflict(format!("{peer_address}: {reason}"));
        let found = self.probe(peer_address).await.map_err(conflict)?;
        if !found.cluster_id.is_empty() || found.node_id != 0 {
            return Err(conflict(format!("the node {:?} there is not empty", found.name)));
        }
        let request = wire::JoinRequest {
            name: found.name.clone(),
            peer_address: peer_address.to_owned(),
            client_address: found.client_address,
            web_address: found.web_address,
            admission: found.admission,
            token: String::new(),
        };
        let Admission { cluster_id, node_id } = self.admit(request).await?;
        let client = self.inner.peers.client(peer_address, Lane::Control);
        let mut client = client.map_err(|status| conflict(status.message().to_owned()))?;
        let request = wire::BootstrapRequest { cluster_id, node_id, name: found.name };
        let request = self.inner.credentials.present(request);
        // If the node does not accept its identity, the learner remains unreachable. The next attempt removes it.
        match timeout(ANSWER_MAX, client.bootstrap(request)).await {
            Ok(Ok(_)) => Ok(node_id),
            Ok(Err(status)) => Err(conflict(status.message().to_owned())),
            Err(_) => Err(MemberError::Unknown("the node does not answer".into())),
        }
    }

    /// On the leader: checks that a node that asks to join is expected, or redeems its token.
    async fn permit(&self, joiner: &wire::JoinRequest) -> Result<(), MemberError> {
        let is_member = self.membership().membership().nodes().any(|(_, node)| node.name == joiner.name);
        if is_member || self.inner.expected_nodes.iter().any(|pattern| matches(pattern, &joiner.name)) {
            return Ok(());
        }
        if joiner.token.is_empty() {
            return Err(MemberError::Conflict(format!(
                "{:?} is the name of no member, and neither in CHAT_INITIAL_NODES nor in CHAT_EXPECTED_NODES of the \
                 leader: it needs a token of `chatctl members token` as CHAT_JOIN_TOKEN",
                joiner.name
            )));
        }
        let token_hash = join_token_hash(&joiner.token);
        let command = Command::RedeemJoinToken { token_hash, admission: joiner.admission };
        match self.propose(command, None, Instant::now() + CHANGE_MAX).await {
            Ok(Outcome::JoinTokenRedeemed) => Ok(()),
            Ok(_) => {
                tracing::warn!(
                    name = joiner.name,
                    address = joiner.peer_address,
                    "Rejected a join request with an invalid token"
                );
                Err(MemberError::Conflict(
                    "the join token is not valid: it has expired, was used by another node, or the node was started \
                     again since"
                        .into(),
                ))
            }
            Err(ProposeError::NoLeader) => Err(MemberError::NoLeader),
            Err(error) => Err(MemberError::Unknown(error.to_string())),
        }
    }

    /// On the leader: adds an empty node as a learner.
    async fn admit(&self, joiner: wire::JoinRequest) -> Result<Admission, MemberError> {
        if joiner.name.is_empty() || joiner.peer_address.is_empty() {
            return Err(MemberError::Conflict("a name and a peer address are needed".into()));
        }
        let _one = self.inner.membership.lock().await;
        let cluster_id = self.inner.identity.cluster_id.clone();
        if let Some(node_id) = self.admitted(&joiner).await? {
            return Ok(Admission { cluster_id, node_id });
        }
        self.refuse_a_namesake(&joiner).await?;
        let record = NodeRecord {
            name: joiner.name,
            peer_address: joiner.peer_address,
            client_address: joiner.client_address,
            web_address: joiner.web_address,
            admission: joiner.admission,
        };
        let text = record.to_string();
        let node_id = self
            .change(|base, membership_view| {
                let id = base + MEMBER_IDS_FROM;
                membership_view.admission(id, record).map(|change| (id, change))
            })
            .await?;
        tracing::info!(node_id, "{text} joins the cluster");
        Ok(Admission { cluster_id, node_id })
    }

    /// The id that an earlier request of the same node was given. Either that answer was lost, or this is an older
    /// request that took longer than a newer one. A new id would displace the one that the node may have accepted by
    /// now.
    async fn admitted(&self, joiner: &wire::JoinRequest) -> Result<Option<u64>, MemberError> {
        let is_same = |node: &NodeRecord| node.name == joiner.name && node.admission == joiner.admission;
        if joiner.admission == 0 || !self.membership().membership().nodes().any(|(_, node)| is_same(node)) {
            return Ok(None);
        }
        let settled = self.settled_membership().await?;
        Ok(settled.membership().nodes().find(|(_, node)| is_same(node)).map(|(id, _)| *id))
    }

    /// Rejects a joining node while a member of the same name is alive. That member keeps its place.
    async fn refuse_a_namesake(&self, joiner: &wire::JoinRequest) -> Result<(), MemberError> {
        let stored = self.membership();
        let cluster_health = self.cluster_health_here();
        let membership_view = self.membership_view(&stored, &cluster_health);
        for id in membership_view.ids_of(&joiner.name) {
            let in_use = || MemberError::Conflict(format!("the member {id}, called {:?}, is alive", joiner.name));
            let Some(node) = stored.membership().get_node(&id) else { continue };
            if membership_view.is_healthy(id) {
                return Err(in_use());
            }
            let alive = self
                .probe(&self.inner.peers.address_of(id, &node.peer_address))
                .await
                .is_ok_and(|found| found.node_id == id);
            if alive || id == self.inner.identity.node_id {
                return Err(in_use());
            }
        }
        Ok(())
    }
}
