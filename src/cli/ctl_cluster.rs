//! The cluster as clients see it: leader, status, health.

use std::{path::Path, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    ctl::{Context, Failure},
    ctl_admin,
    output::table,
};
use crate::{
    client::{
        ClientError,
        nodes::endpoint,
        types::{ListNodesResponse, NodeInfo, NodeRole},
    },
    net::dial::Patience,
    proto::{
        Channel,
        chat::v1::{ListNodesRequest, cluster_service_client::ClusterServiceClient},
    },
};

/// Time limit for the health answer of one node.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

fn role(node: &NodeInfo) -> &'static str {
    match node.role() {
        NodeRole::Unspecified => "unknown",
        NodeRole::Leader => "leader",
        NodeRole::Follower => "follower",
        NodeRole::Learner => "learner",
        NodeRole::Candidate => "candidate",
    }
}

fn node_json(node: &NodeInfo) -> Value {
    json!({ "node_id": node.node_id, "name": node.name, "role": role(node), "voter": node.voter,
            "client_address": node.client_address, "peer_address": node.peer_address,
            "web_address": node.web_address, "healthy": node.healthy, "lag_entries": node.lag_entries,
            "digest": node.digest.as_deref().map(hex) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Formats the start of a digest, long enough to compare by eye.
fn hex_start(bytes: &[u8]) -> String {
    hex(&bytes[..bytes.len().min(8)])
}

pub(super) async fn leader(context: &mut Context) -> Result<(), Failure> {
    let answer = context.connect_to_cluster().await?.leader().await?;
    let leader = answer.leader.unwrap_or_default();
    context.output.print(
        || json!({ "leader": node_json(&leader), "term": answer.term }),
        || format!("{} ({}), term {}", leader.name, leader.client_address, answer.term),
    )?;
    Ok(())
}

pub(super) async fn status(context: &mut Context, socket: Option<&Path>) -> Result<(), Failure> {
    let answer = match socket {
        Some(socket) => {
            let mut client = ClusterServiceClient::new(ctl_admin::channel(context, socket).await?);
            let answer = client.list_nodes(ctl_admin::request(context, ListNodesRequest {})).await;
            answer.map_err(ctl_admin::admin_error)?.into_inner()
        }
        None => context.connect_to_cluster().await?.nodes().await?,
    };
    context.output.print(
        || {
            json!({ "nodes": answer.nodes.iter().map(node_json).collect::<Vec<_>>(),
                    "cluster_id": answer.cluster_id, "term": answer.term, "revision": answer.revision,
                    "answered_by": answer.answered_by, "failures_tolerated": answer.failures_tolerated,
                    "digest": hex(&answer.digest), "restricted": answer.restricted,
                    "compared": answer.compared.map(|at| json!({ "log_index": at.log_index, "revision": at.revision })) })
        },
        || status_text(&answer),
    )?;
    Ok(())
}

fn status_text(answer: &ListNodesResponse) -> String {
    let mut rows = vec![["NODE", "ID", "ROLE", "ADDRESS", "HEALTHY", "LAG", "DIGEST"].map(str::to_owned).to_vec()];
    let unknown_digest = if answer.restricted { "-" } else { "unknown" };
    for node in &answer.nodes {
        let healthy = node.healthy.map_or("unknown", |healthy| if healthy { "yes" } else { "NO" });
        let lag = node.lag_entries.map_or("unknown".to_owned(), |lag| lag.to_string());
        rows.push(vec![
            node.name.clone(),
            node.node_id.to_string(),
            role(node).to_owned(),
            node.client_address.clone(),
            healthy.to_owned(),
            lag,
            node.digest.as_deref().map_or(unknown_digest.to_owned(), hex_start),
        ]);
    }
    let tolerated = match answer.failures_tolerated {
        Some(1) => "one more node may fail".to_owned(),
        Some(count) => format!("{count} more nodes may fail"),
        None => "no leader was reached: the health of the nodes is not known".to_owned(),
    };
    if answer.restricted {
        return format!(
            "{}\n{tolerated}\nterm {}, revision {} (on {})\n\
             cluster id, digests and peer addresses are for sessions (chatctl login NAME) and operators (--socket PATH)",
            table(&rows),
            answer.term,
            answer.revision,
            answer.answered_by
        );
    }
    let compared = match answer.compared {
        Some(at) => format!("digests of the nodes at revision {} (log index {})", at.revision, at.log_index),
        None => "the nodes have not compared their digests yet".to_owned(),
    };
    format!(
        "{}\n{tolerated}\n{compared}\ncluster {}, term {}, revision {}, digest {} (on {})",
        table(&rows),
        answer.cluster_id,
        answer.term,
        answer.revision,
        hex_start(&answer.digest),
        answer.answered_by
    )
}

pub(super) async fn health(context: &mut Context, one: Option<String>) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let addresses = one.map_or(nodes, |address| vec![address]);
    let limit = HEALTH_TIMEOUT.min(context.global.timeout);
    // There is one call per node, so it may use all of the time.
    let patience = Patience { call: limit, all: limit };
    let channels: Vec<Channel> = addresses
        .iter()
        .map(|address| Ok(options.dialer.line(endpoint(address.trim())?, patience).channel.into()))
        .collect::<Result<_, ClientError>>()?;
    let checks = channels.into_iter().map(|channel| async move {
        let mut client = HealthClient::new(channel);
        // The empty service name stands for the whole node.
        match timeout(limit, client.check(HealthCheckRequest { service: String::new() })).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => "serving".to_owned(),
            Ok(Ok(_)) => "not serving".to_owned(),
            Ok(Err(status)) => format!("unreachable: {}", ClientError::from(status)),
            Err(_) => format!("no answer within {} s", limit.as_secs_f32()),
        }
    });
    let states = join_all(checks).await;
    let json = |(address, state): (&String, &String)| json!({ "address": address, "serving": state == "serving", "status": state });
    context.output.print(
        || json!({ "nodes": addresses.iter().zip(&states).map(json).collect::<Vec<_>>() }),
        || {
            let row = |(address, state): (&String, &String)| vec![address.clone(), state.clone()];
            table(&addresses.iter().zip(&states).map(row).collect::<Vec<_>>())
        },
    )?;
    if states.iter().all(|state| state == "serving") { Ok(()) } else { Err(Failure::Unhealthy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::types::DigestComparison;

    #[test]
    fn the_status_shows_what_is_not_known_as_such() {
        let nodes = vec![
            NodeInfo {
                node_id: 1,
                name: "a".to_owned(),
                client_address: "127.0.0.1:50051".to_owned(),
                role: NodeRole::Leader.into(),
                healthy: Some(true),
                lag_entries: Some(0),
                digest: Some((1..=32).collect()),
                ..NodeInfo::default()
            },
            NodeInfo { node_id: 2, name: "b".to_owned(), role: NodeRole::Follower.into(), ..NodeInfo::default() },
        ];
        let answer = ListNodesResponse {
            nodes,
            cluster_id: "c1".to_owned(),
            term: 3,
            revision: 9,
            answered_by: "a".to_owned(),
            failures_tolerated: Some(1),
            digest: vec![0xab; 32],
            compared: Some(DigestComparison { log_index: 31, revision: 5 }),
            restricted: false,
        };
        let expected = "\
NODE  ID  ROLE      ADDRESS          HEALTHY  LAG      DIGEST
a     1   leader    127.0.0.1:50051  yes      0        0102030405060708
b     2   follower                   unknown  unknown  unknown
one more node may fail
digests of the nodes at revision 5 (log index 31)
cluster c1, term 3, revision 9, digest abababababababab (on a)";
        assert_eq!(status_text(&answer), expected);
        let nodes = answer.nodes.into_iter().map(|node| NodeInfo { digest: None, ..node }).collect();
        let expected = "\
NODE  ID  ROLE      ADDRESS          HEALTHY  LAG      DIGEST
a     1   leader    127.0.0.1:50051  yes      0        -
b     2   follower                   unknown  unknown  -
one more node may fail
term 3, revision 9 (on a)
cluster id, digests and peer addresses are for sessions (chatctl login NAME) and operators (--socket PATH)";
        let answer = ListNodesResponse { nodes, restricted: true, compared: None, ..answer };
        assert_eq!(status_text(&answer), expected);
    }
}
