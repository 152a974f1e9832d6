//! Which node may use a data directory, and which may be a member.

use client::Consistency;
use tonic::Code;
use uuid::Uuid;

use support::{Cluster, Node, eventually};

/// Starts a node that has to refuse. Returns its exit code, and the line with the reason.
async fn refusal(node: &mut Node) -> (i32, String) {
    node.start();
    let code = node.exit_code().await;
    let errors = node.errors();
    assert_eq!(errors.len(), 1, "{}", node.log());
    (code, errors[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_belongs_to_one_name_and_one_process() {
    let mut cluster = Cluster::prepared(3);
    let data = cluster[0].data_dir().display().to_string();
    for node in 0..cluster.len() {
        // Each node would be its own cluster.
        cluster[node].set("CHAT_INITIAL_NODES", "").set("CHAT_DATA_DIR", &data);
    }
    cluster.restart(0).await;

    let (code, line) = refusal(cluster[1].set("CHAT_NAME", "n1")).await;
    assert_eq!(code, 73, "{line}");
    assert!(line.contains(&data) && line.contains("another process uses it"), "{line}");

    cluster[0].kill();
    let (code, line) = refusal(&mut cluster[2]).await;
    assert_eq!(code, 64, "{line}");
    assert!(line.contains("CHAT_NAME") && line.contains("\"n3\"") && line.contains("\"n1\""), "{line}");

    // The attempts did no harm.
    cluster.restart(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_cluster_is_refused() {
    let mut cluster = Cluster::prepared(4);
    // The fourth node is its own cluster, and has the name of a node of the other cluster.
    cluster[3].set("CHAT_INITIAL_NODES", "").set("CHAT_NAME", "n1");
    let initial: Vec<String> = (0..3).map(|i| format!("{}={}", cluster[i].name, cluster[i].peer)).collect();
    for node in 0..3 {
        cluster[node].set("CHAT_INITIAL_NODES", initial.join(","));
    }
    cluster.start_all().await;
    cluster[3].kill();
    cluster[0].kill();

    let (own, foreign) = (cluster[0].data_dir(), cluster[3].data_dir().display().to_string());
    let (code, line) = refusal(cluster[0].set("CHAT_DATA_DIR", &foreign)).await;
    assert_eq!(code, 73, "{line}");
    assert!(line.contains(&foreign) && line.contains("another cluster"), "{line}");

    cluster[0].set("CHAT_DATA_DIR", own.display().to_string());
    cluster.restart(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_wrong_peer_secret_stays_outside_and_disturbs_nobody() {
    const SECRET: &str = "the-secret-of-the-peers";
    let mut cluster = Cluster::prepared(5);
    for node in 0..cluster.len() {
        cluster[node].set("CHAT_PEER_SECRET", SECRET);
    }
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let outsider = cluster.follower().await;
    // The node has to know the session that later calls use.
    cluster.level(&token, 0).await;
    cluster[outsider].kill();
    let before = alice.send_message("alice", "before").await.unwrap();
    let leadership = cluster.direct(cluster.leader().await, &token).leader().await.unwrap();

    cluster[outsider].set("CHAT_PEER_SECRET", "another-secret-than-theirs").start();
    let direct = cluster.direct(outsider, &token);
    eventually("the outsider answers at all", async || direct.local().await.map_err(|error| error.to_string())).await;
    // The outsider serves nothing. Each of these calls waits longer than an election takes.
    let refused = direct.send(Uuid::now_v7(), "alice", "note").await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    let refused = direct.read("alice", Consistency::Linearizable).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    let why = cluster[outsider].readiness().await.unwrap_err();
    assert!(why.contains("there is no leader"), "{why}");

    // The others continue under the same leader, and the outsider does not receive the message.
    let after = alice.send_message("alice", "after").await.unwrap();
    for node in (0..cluster.len()).filter(|node| *node != outsider) {
        let direct = cluster.direct(node, &token);
        assert_eq!(direct.leader().await.unwrap(), leadership);
        assert_eq!(direct.read("alice", Consistency::Linearizable).await.unwrap().last_seq, after.seq);
    }
    let page = direct.read("alice", Consistency::Local).await.unwrap();
    assert!(page.last_seq < before.seq || page.last_seq == 0, "{page:?}");

    cluster[outsider].kill();
    cluster[outsider].set("CHAT_PEER_SECRET", SECRET);
    cluster.restart(outsider).await;
    cluster.level(&token, after.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_lost_its_disk_founds_no_second_cluster_and_comes_back() {
    let mut cluster = Cluster::prepared(3);
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let before = alice.send_message("alice", "before").await.unwrap();
    // The first of the initial nodes founded the cluster.
    cluster[0].kill();
    std::fs::remove_dir_all(cluster[0].data_dir()).unwrap();
    cluster[0].start();
    eventually("the founder finds the cluster", async || {
        let log = cluster[0].log();
        log.contains("A cluster exists already").then_some(()).ok_or(log)
    })
    .await;
    cluster[0].ready().await;

    // The others continue without loss.
    let after = alice.send_message("alice", "after").await.unwrap();
    assert_eq!(after.seq, before.seq + 1);
    for node in 0..cluster.len() {
        let page = cluster.direct(node, &token).read("alice", Consistency::Linearizable).await.unwrap();
        assert_eq!(page.last_seq, after.seq);
    }
}
