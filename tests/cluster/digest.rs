//! A node whose state differs from that of the others detects it, stops, and stays stopped; the others continue.

use std::{collections::BTreeSet, process::Command};

use client::{Client, Consistency};
use proto::chat::v1::{self as types, cluster_service_client::ClusterServiceClient};

use support::{Cluster, eventually};

/// Five nodes that compare digests every second.
async fn five() -> Cluster {
    let mut cluster = Cluster::prepared(5);
    for node in 0..cluster.len() {
        cluster[node].set("CHAT_DIGEST_INTERVAL_S", "1");
    }
    cluster.start_all().await;
    cluster
}

/// The list of nodes with their digests, as a node shows it to an operator.
pub async fn listed(cluster: &Cluster, node: usize) -> Result<types::ListNodesResponse, String> {
    let address = format!("unix:{}", cluster[node].data_dir().join("admin.sock").display());
    let mut client = ClusterServiceClient::connect(address).await.map_err(|error| error.to_string())?;
    let answer = client.list_nodes(types::ListNodesRequest {}).await;
    answer.map(|answer| answer.into_inner()).map_err(|status| status.to_string())
}

/// Waits until `node` knows of a comparison, at `revision` or later, in which `nodes` nodes took part and agreed.
async fn agreed(cluster: &Cluster, node: usize, nodes: usize, revision: u64) {
    eventually("all nodes have the same digest", async || {
        let answer = listed(cluster, node).await?;
        let at = answer.compared.ok_or("nothing was compared yet")?;
        let digests: Vec<_> = answer.nodes.iter().filter_map(|info| info.digest.clone()).collect();
        let one = digests.iter().collect::<BTreeSet<_>>().len() == 1;
        let done = one && digests.len() == nodes && at.revision >= revision;
        done.then_some(()).ok_or_else(|| format!("{at:?}, {digests:?}"))
    })
    .await;
}

fn change(cluster: &Cluster, node: usize, sql: &str) {
    let dir = cluster[node].data_dir();
    // Otherwise what is recent would replace what is changed.
    storage::StateMachine::open(&dir).and_then(|mut state| state.write_all_back()).unwrap();
    let conn = storage::open_file(&dir.join("chat.db")).unwrap();
    assert_eq!(conn.execute(sql, []).unwrap(), 1, "{sql}");
}

/// What a node logs as an error when states differ.
const ACCUSATIONS: [&str; 3] = ["This node's state differs", "The state of a node differs", "have different states"];

/// The errors of a node about different states.
fn accusations(cluster: &Cluster, node: usize) -> Vec<String> {
    let mut errors = cluster[node].errors();
    errors.retain(|line| ACCUSATIONS.iter().any(|text| line.contains(text)));
    errors
}

/// Stops a node, changes its state by `sql`, and starts it again. It detects nothing yet.
async fn restart_changed(cluster: &mut Cluster, node: usize, sql: &str) {
    cluster[node].terminate();
    assert_eq!(cluster[node].exit_code().await, 0);
    change(cluster, node, sql);
    cluster.restart(node).await;
}

/// Waits until the changed node stops for good, after an entry touched the changed data. No other node stops.
async fn convicted(cluster: &mut Cluster, wrong: usize, alice: &Client, token: &str) {
    assert_eq!(cluster[wrong].exit_code().await, 74, "{}", cluster[wrong].log());
    let errors = cluster[wrong].errors();
    let said = accusations(cluster, wrong);
    assert!(said.len() == 1 && said[0].contains("This node's state differs from that of a majority"), "{errors:?}");
    let path = cluster[wrong].data_dir().join("chat.db-diverged");
    let noted: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |key: &str| noted[key].as_str().unwrap().to_owned();
    assert_ne!(text("digest"), text("digest_of_majority"));
    for part in [text("digest"), text("digest_of_majority"), noted["mark_index"].to_string()] {
        assert!(said[0].contains(&part), "{part} in {said:?}");
    }

    let last = alice.send_message("bob", "after it").await.unwrap();
    let others = cluster.up().into_iter().filter(|node| *node != wrong).collect::<Vec<_>>();
    assert_eq!(others.len(), 4);
    for node in &others {
        agreed(cluster, *node, 4, last.revision).await;
        cluster[*node].ready().await;
        let page = cluster.direct(*node, token).read("bob", Consistency::Linearizable).await.unwrap();
        assert_eq!(page.last_seq, last.seq);
        let said = accusations(cluster, *node);
        assert!(said.iter().all(|line| line.contains("The state of a node differs")), "{said:?}");
    }

    // The next start does not use the files: the node takes its old place under another id.
    cluster.restart(wrong).await;
    let errors = cluster[wrong].errors();
    let moved =
        |line: &&String| line.contains("failed their integrity checks") && line.contains(&text("digest_of_majority"));
    assert_eq!(errors.iter().filter(moved).count(), 1, "{errors:?}");
    cluster.level(token, last.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_with_another_state_stops_and_nobody_else() {
    let mut cluster = five().await;
    let (alice, token) = cluster.register("alice").await;
    cluster.register("bob").await;
    let sent = alice.send_message("bob", "hello").await.unwrap();
    agreed(&cluster, cluster.leader().await, 5, sent.revision).await;
    let wrong = cluster.follower().await;
    restart_changed(&mut cluster, wrong, "UPDATE account SET username = 'malice' WHERE username = 'alice'").await;
    // Every node is compared after its start. The changed data was not touched since.
    agreed(&cluster, wrong, 5, 0).await;
    alice.send_message("bob", "touches it").await.unwrap();
    convicted(&mut cluster, wrong, &alice, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_another_state_stops_and_takes_nobody_along() {
    let mut cluster = five().await;
    let (alice, token) = cluster.register("alice").await;
    cluster.register("bob").await;
    alice.send_message("bob", "hello").await.unwrap();
    let wrong = cluster.follower().await;
    restart_changed(&mut cluster, wrong, "UPDATE conversation SET last_seq = last_seq + 1").await;
    let socket = cluster[wrong].data_dir().join("admin.sock");
    let name = cluster[wrong].name.clone();
    let done =
        Command::new(support::chatctl()).args(["members", "transfer", &name, "--socket"]).arg(socket).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(cluster.leader().await, wrong);
    alice.send_message("bob", "touches it").await.unwrap();
    convicted(&mut cluster, wrong, &alice, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_revisions_have_equal_digests_through_crashes() {
    let mut cluster = five().await;
    let (alice, token) = cluster.register("alice").await;
    cluster.register("bob").await;
    for round in 0..4 {
        let crashed = round % cluster.len();
        cluster[crashed].kill();
        for message in 0..20 {
            alice.send_message("bob", &format!("{round} {message}")).await.unwrap();
            // A command without effect does not change the digest of the revision either.
            alice.send_message("nobody", "?").await.unwrap_err();
        }
        cluster.restart(crashed).await;
    }
    let sent = alice.send_message("bob", "last").await.unwrap();
    cluster.level(&token, sent.revision).await;
    let mut seen = BTreeSet::new();
    for node in cluster.up() {
        let digest = eventually("the digest of the last revision", async || {
            let answer = listed(&cluster, node).await?;
            (answer.revision == sent.revision).then_some(answer.digest).ok_or_else(|| answer.revision.to_string())
        })
        .await;
        assert_eq!(digest.len(), 32);
        seen.insert(digest);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    for node in cluster.up() {
        agreed(&cluster, node, 5, sent.revision).await;
        assert_eq!(accusations(&cluster, node), Vec::<String>::new());
    }
}
