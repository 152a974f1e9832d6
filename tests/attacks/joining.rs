//! An unexpected node asks to join: it needs a token from the operator, which is valid for one node.

use std::process::Command;

use net::tls::{Secrets, Tls};
use proto::raft::v1 as wire;
use raft::peers::{Credentials, Lane, Peers};
use tonic::{Code, Status};

use support::{Cluster, PEER_SECRET, eventually};

/// Runs `chatctl members token` at a node's socket.
fn token(cluster: &Cluster, node: usize) -> String {
    let output = Command::new(support::chatctl())
        .args(["--timeout", "20", "members", "token", "--socket"])
        .arg(cluster[node].data_dir().join("admin.sock"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Asks a member, or the leader that it names, to admit a node that has the secret.
async fn ask(cluster: &Cluster, node: usize, name: &str, token: &str, admission: u64) -> Result<u64, Status> {
    let tls = Tls::shared(Secrets::parse(PEER_SECRET).unwrap(), None).unwrap();
    let peers = Peers::new(tls.connector().unwrap().into());
    // An address without a listener.
    let address = "127.0.0.1:9";
    let request = wire::JoinRequest {
        name: name.into(),
        peer_address: address.into(),
        client_address: address.into(),
        web_address: address.into(),
        admission,
        token: token.into(),
    };
    let credentials = Credentials::new("", 0, name, address).unwrap();
    let join = async |address: &str| {
        let mut client = peers.client(address, Lane::Control).unwrap();
        client.join(credentials.present(request.clone())).await.map(tonic::Response::into_inner)
    };
    match join(&cluster[node].peer.to_string()).await? {
        wire::JoinResponse { node_id: 0, leader, .. } => Ok(join(&leader).await?.node_id),
        wire::JoinResponse { node_id, .. } => Ok(node_id),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_expects_joins_with_a_token_of_its_own() {
    let mut cluster = Cluster::prepared(4);
    let initial: Vec<String> = (0..3).map(|node| format!("{}={}", cluster[node].name, cluster[node].peer)).collect();
    let members: Vec<String> = (0..3).map(|node| cluster[node].peer.to_string()).collect();
    for node in 0..3 {
        cluster[node].set("CHAT_INITIAL_NODES", initial.join(",")).set("CHAT_EXPECTED_NODES", "spare-*").start();
    }
    for node in 0..3 {
        cluster[node].ready().await;
    }
    cluster[3].set("CHAT_INITIAL_NODES", "").set("CHAT_JOIN", members.join(","));

    // The secret alone is not enough, and neither is an invented token.
    cluster[3].start();
    eventually("it reports what it needs", async || {
        let log = cluster[3].log();
        log.contains("chatctl members token").then_some(()).ok_or(log)
    })
    .await;
    cluster[3].kill();
    for made_up in ["", "no token", &"0".repeat(64)] {
        let status = ask(&cluster, 0, "n9", made_up, 9).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }

    let token = token(&cluster, cluster.follower().await);
    assert_eq!(token.len(), 64);
    cluster[3].set("CHAT_JOIN_TOKEN", &token).start();
    cluster[3].ready().await;
    assert!(!cluster[3].log().contains(&token));
    // The token is used up: it is invalid for another node, under a new name or with another admission number.
    for name in ["n9", "n8"] {
        let status = ask(&cluster, 1, name, &token, 9).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("not valid"), "{status:?}");
    }

    // An expected name needs no token. A repeated request, as after a lost answer, refers to the same node.
    let joined = eventually("a change is possible", async || {
        ask(&cluster, 0, "spare-1", "", 7).await.map_err(|status| status.to_string())
    })
    .await;
    let again = eventually("a change is possible", async || {
        ask(&cluster, 1, "spare-1", "", 7).await.map_err(|status| status.to_string())
    })
    .await;
    assert_eq!(joined, again);
}
