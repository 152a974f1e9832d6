//! `chatctl status`: shows the nodes, their health, and the digests of their state.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::{
    commands::{
        node::{node_json, role},
        operator::{admin_error, channel, request},
    },
    context::Context,
    failure::Failure,
    output::table,
};
use client::NodeList;
use proto::chat::v1::{ListNodesRequest, cluster_service_client::ClusterServiceClient};

/// Show the nodes and their health; the cluster id, digests and peer addresses require a session or a socket
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Admin socket of the node to ask
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) async fn run(context: &mut Context, Arguments { socket }: Arguments) -> Result<(), Failure> {
    let answer = match socket {
        Some(socket) => {
            let mut client = ClusterServiceClient::new(channel(context, &socket).await?);
            let answer = client.list_nodes(request(context, ListNodesRequest {})).await;
            answer.map_err(admin_error)?.into_inner().into()
        }
        None => context.connect_to_cluster().await?.nodes().await?,
    };
    context.output.print(|| status_json(&answer), || status_text(&answer))?;
    Ok(())
}

fn status_json(answer: &NodeList) -> Value {
    let compared = answer.compared.map(|at| json!({ "log_index": at.log_index, "revision": at.revision }));
    json!({ "nodes": answer.nodes.iter().map(node_json).collect::<Vec<_>>(), "cluster_id": answer.cluster_id,
            "term": answer.term, "revision": answer.revision, "answered_by": answer.answered_by,
            "failures_tolerated": answer.failures_tolerated, "digest": hex::encode(&answer.digest),
            "restricted": answer.restricted, "compared": compared })
}

fn status_text(answer: &NodeList) -> String {
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
             cluster id, digests and peer addresses are for sessions (chatctl login NAME) and operators \
             (--socket PATH)",
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

/// Formats the start of a digest, long enough to compare by eye.
fn hex_start(bytes: &[u8]) -> String {
    hex::encode(&bytes[..bytes.len().min(8)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::{DigestComparison, NodeInfo, NodeRole};

    #[test]
    fn the_status_shows_what_is_not_known_as_such() {
        let nodes = vec![
            NodeInfo {
                node_id: 1,
                name: "a".to_owned(),
                client_address: "127.0.0.1:50051".to_owned(),
                role: NodeRole::Leader,
                healthy: Some(true),
                lag_entries: Some(0),
                digest: Some((1..=32).collect()),
                ..NodeInfo::default()
            },
            NodeInfo { node_id: 2, name: "b".to_owned(), role: NodeRole::Follower, ..NodeInfo::default() },
        ];
        let answer = NodeList {
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
        let answer = NodeList { nodes, restricted: true, compared: None, ..answer };
        assert_eq!(status_text(&answer), expected);
    }
}
