//! How commands show a node of the cluster.

use serde_json::{Value, json};

use client::{NodeInfo, NodeRole};

pub(super) fn role(node: &NodeInfo) -> &'static str {
    match node.role {
        NodeRole::Leader => "leader",
        NodeRole::Follower => "follower",
        NodeRole::Learner => "learner",
        NodeRole::Candidate => "candidate",
        _ => "unknown",
    }
}

pub(super) fn node_json(node: &NodeInfo) -> Value {
    json!({ "node_id": node.node_id, "name": node.name, "role": role(node), "voter": node.voter,
            "client_address": node.client_address, "peer_address": node.peer_address,
            "web_address": node.web_address, "healthy": node.healthy, "lag_entries": node.lag_entries,
            "digest": node.digest.as_deref().map(hex::encode) })
}
