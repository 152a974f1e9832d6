//! Nodes that join, leave, lose their disks and return, while the cluster runs.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use client::Consistency;
use proto::chat::v1::{ListNodesResponse, NodeRole};
use serde_json::Value;

use support::{Cluster, Node, eventually};

/// Five running nodes, and `more` that are prepared to join later.
pub async fn five_and(more: usize) -> Cluster {
    let mut cluster = Cluster::prepared(5 + more);
    let initial: Vec<String> = (0..5).map(|i| format!("{}={}", cluster[i].name, cluster[i].peer)).collect();
    for node in 0..cluster.len() {
        let mine = if node < 5 { initial.join(",") } else { String::new() };
        cluster[node].set("CHAT_INITIAL_NODES", mine).set("CHAT_EXPECTED_NODES", "n6,n7");
    }
    for node in 0..5 {
        cluster[node].start();
    }
    for node in 0..5 {
        cluster[node].ready().await;
    }
    cluster
}

async fn nodes(cluster: &Cluster, asked: usize) -> Result<ListNodesResponse, String> {
    cluster.direct(asked, "").nodes().await.map_err(|error| error.to_string())
}

/// Waits until a node lists exactly these voters, and no learners. Returns their ids, in the same order.
pub async fn voters(cluster: &Cluster, asked: usize, expected: &[&str]) -> Vec<u64> {
    let members = eventually(&format!("the voters {expected:?}"), async || {
        let mut members = nodes(cluster, asked).await?.nodes;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let settled = members.iter().all(|member| member.voter && member.role() != NodeRole::Learner);
        (settled && names == expected).then_some(members.clone()).ok_or_else(|| format!("{members:?}"))
    })
    .await;
    members.into_iter().map(|member| member.node_id).collect()
}

/// Runs `chatctl members` at a node's socket. Returns its exit code and output.
fn members(cluster: &Cluster, at: usize, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(support::chatctl())
        .args(["--output", "json", "--timeout", "20", "members"])
        .args(arguments)
        .arg("--socket")
        .arg(cluster[at].data_dir().join("admin.sock"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Copies the files of a directory.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        if item.file_type().unwrap().is_file() {
            std::fs::copy(item.path(), to.join(item.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_by_itself_votes_and_is_removed_again() {
    let mut cluster = five_and(1).await;
    let (alice, token) = cluster.register("alice").await;
    let before = alice.send_message("alice", "before").await.unwrap();
    let asked = format!("{},{}", cluster[0].peer, cluster[1].peer);
    cluster[5].set("CHAT_JOIN", asked).start();
    let settled = voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5", "n6"]).await;
    assert!(settled[5] >= 16, "{settled:?}");
    cluster[5].ready().await;
    let page = cluster.direct(5, &token).read("alice", Consistency::Linearizable).await.unwrap();
    assert_eq!(page.last_seq, before.seq);

    let sent = cluster.direct(5, &token).send(uuid::Uuid::now_v7(), "alice", "through the new one").await.unwrap();
    assert_eq!(sent.seq, before.seq + 1);

    let (code, text) = members(&cluster, 2, &["remove", "n6"]);
    assert_eq!(code, 0, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["node_ids"][0], settled[5]);
    voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5"]).await;
    assert_eq!(cluster[5].exit_code().await, 77);
    let errors = cluster[5].errors();
    assert!(errors.iter().any(|line| line.contains("was removed from the cluster")), "{errors:?}");
    // Its directory cannot be used any more, and a node that is not a member cannot be removed.
    cluster[5].start();
    assert_eq!(cluster[5].exit_code().await, 77);
    let (code, text) = members(&cluster, 2, &["remove", "n6"]);
    assert!(code != 0 && text.contains("NODE_UNKNOWN"), "{text}");
    let after = alice.send_message("alice", "after").await.unwrap();
    assert_eq!(after.seq, sent.seq + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_whose_leader_dies_gets_its_vote_from_the_next() {
    const ATTEMPTS: usize = 5;
    const FIVE: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
    let mut cluster = five_and(1).await;
    let asked = format!("{},{}", cluster[0].peer, cluster[1].peer);
    cluster[5].set("CHAT_JOIN", asked);
    // Stopped as soon as it has an id, usually before it has caught up, and then it gets no vote.
    let mut is_learner = false;
    for _ in 0..ATTEMPTS {
        let seen = cluster[5].log().matches("is a member of its cluster").count();
        cluster[5].start();
        eventually("it has an id", async || {
            let now = cluster[5].log().matches("is a member of its cluster").count();
            (now > seen).then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        cluster[5].stop();
        let list = nodes(&cluster, 0).await.unwrap().nodes;
        is_learner = list.iter().any(|node| node.name == "n6" && !node.voter);
        if is_learner {
            break;
        }
        cluster[5].kill();
        let (code, text) = members(&cluster, 0, &["remove", "n6"]);
        assert_eq!(code, 0, "{text}");
        voters(&cluster, 0, &FIVE).await;
        std::fs::remove_dir_all(cluster[5].data_dir()).unwrap();
    }
    assert!(is_learner, "it got its vote {ATTEMPTS} times before it could be stopped");
    let leader = cluster.leader().await;
    cluster[leader].kill();
    cluster[5].go_on();
    let asked = (leader + 1) % 5;
    voters(&cluster, asked, &["n1", "n2", "n3", "n4", "n5", "n6"]).await;
    cluster.restart(leader).await;
    cluster[5].ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invited_node_is_added_and_the_leader_can_be_removed() {
    let mut cluster = five_and(1).await;
    let (alice, token) = cluster.register("alice").await;
    cluster[5].set("CHAT_JOIN", "invitation").start();
    let address = cluster[5].peer.to_string();
    eventually("the invited node is added", async || {
        let (code, text) = members(&cluster, 1, &["add", &address]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5", "n6"]).await;
    let (code, text) = members(&cluster, 1, &["add", &address]);
    assert!(code != 0 && text.contains("MEMBERSHIP_CONFLICT") && text.contains("is not empty"), "{text}");

    // The new member passes on what it is asked as soon as it knows the leader.
    voters(&cluster, 5, &["n1", "n2", "n3", "n4", "n5", "n6"]).await;
    let leader = cluster.leader().await;
    let name = cluster[leader].name.clone();
    let before = alice.send_message("alice", "before").await.unwrap();
    let (code, text) = members(&cluster, 5, &["remove", &name]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(cluster[leader].exit_code().await, 77);
    let left: Vec<&str> = ["n1", "n2", "n3", "n4", "n5", "n6"].into_iter().filter(|left| *left != name).collect();
    voters(&cluster, 5, &left).await;
    let after = alice.send_message("alice", "after").await.unwrap();
    assert_eq!(after.seq, before.seq + 1);
    cluster.level(&token, after.revision).await;

    // With two of five nodes down, no further voter may be removed.
    let up = cluster.up();
    cluster[up[0]].kill();
    cluster[up[1]].kill();
    cluster.leader().await;
    let victim = cluster[up[2]].name.clone();
    eventually("the removal is refused", async || {
        let (code, text) = members(&cluster, up[3], &["remove", &victim]);
        // Until the new leader has detected which nodes are down, and that it leads.
        (code != 0 && text.contains("MEMBERSHIP_CONFLICT") && text.contains("no majority")).then_some(()).ok_or(text)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_lose_their_disks_come_back_under_new_ids_and_old_copies_are_refused() {
    let mut cluster = five_and(0).await;
    let (alice, token) = cluster.register("alice").await;
    let mut sent = 0;
    for number in 0..20 {
        sent = alice.send_message("alice", &format!("message {number}")).await.unwrap().seq;
    }
    let names = ["n1", "n2", "n3", "n4", "n5"];
    let mut known = voters(&cluster, 1, &names).await;
    // One of them is the founder.
    for lost in [3, 0] {
        let data = cluster[lost].data_dir();
        let old = data.with_extension("old");
        cluster[lost].stop();
        copy(&data, &old);
        cluster[lost].go_on();
        // The copy lacks these messages, and the others remember that the node had them.
        for _ in 0..10 {
            alice.send_message("alice", "not in the copy").await.unwrap();
            sent += 1;
        }
        cluster.level(&token, 0).await;
        cluster[lost].kill();
        std::fs::remove_dir_all(&data).unwrap();
        cluster[lost].start();
        let other = (lost + 1) % 5;
        eventually("another id", async || {
            let members = nodes(&cluster, other).await?.nodes;
            let new = members.iter().find(|member| member.name == names[lost] && member.voter);
            let is_new = new.is_some_and(|new| new.node_id != known[lost]);
            (is_new && members.len() == 5).then_some(()).ok_or_else(|| format!("{members:?}"))
        })
        .await;
        let now = voters(&cluster, other, &names).await;
        assert!((0..5).all(|at| (now[at] == known[at]) == (at != lost)), "{known:?}, then {now:?}");
        known = now;
        cluster[lost].ready().await;
        sent += 1;
        assert_eq!(alice.send_message("alice", "and on").await.unwrap().seq, sent);
        cluster.level(&token, 0).await;
        let page = cluster.direct(lost, &token).read("alice", Consistency::Linearizable).await.unwrap();
        assert_eq!((page.last_seq, page.messages.len() as u64), (sent, sent));

        // The old volume returns, but its id has been replaced.
        cluster[lost].kill();
        std::fs::remove_dir_all(data.with_extension("new")).ok();
        std::fs::rename(&data, data.with_extension("new")).unwrap();
        copy(&old, &data);
        cluster[lost].start();
        assert_eq!(cluster[lost].exit_code().await, 77);
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(data.with_extension("new"), &data).unwrap();
        cluster.restart(lost).await;
    }
    assert_eq!(voters(&cluster, 2, &names).await, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namesake_of_a_living_node_is_kept_out() {
    let mut cluster = five_and(1).await;
    let before = voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5"]).await;
    let asked = cluster[0].peer.to_string();
    cluster[5].set("CHAT_NAME", "n2").set("CHAT_JOIN", asked).start();
    eventually("it reports the reason", async || {
        let log = cluster[5].log();
        log.contains("is alive").then_some(()).ok_or(log)
    })
    .await;
    assert_eq!(voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5"]).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_changes_at_once_are_made_one_after_the_other() {
    let mut cluster = five_and(2).await;
    let asked = format!("{},{}", cluster[0].peer, cluster[1].peer);
    for node in [5, 6] {
        cluster[node].set("CHAT_JOIN", &asked).start();
    }
    let settled = voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5", "n6", "n7"]).await;
    assert_ne!(settled[5], settled[6]);
    // Requested at different nodes, at the same moment.
    std::thread::scope(|scope| {
        let removals: Vec<_> = [(1, "n6"), (2, "n7")]
            .map(|(at, name)| {
                scope.spawn({
                    let cluster = &cluster;
                    move || members(cluster, at, &["remove", name])
                })
            })
            .into();
        for removal in removals {
            let (code, text) = removal.join().unwrap();
            assert_eq!(code, 0, "{text}");
        }
    });
    voters(&cluster, 0, &["n1", "n2", "n3", "n4", "n5"]).await;
    for node in [5, 6] {
        assert_eq!(cluster[node].exit_code().await, 77);
    }
}

/// The same port on another address of this machine.
fn elsewhere(address: SocketAddr) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), address.port()))
}

/// Makes a node listen on another address from its next start on.
fn move_away(node: &mut Node) {
    (node.grpc, node.peer, node.web) = (elsewhere(node.grpc), elsewhere(node.peer), elsewhere(node.web));
    let (grpc, peer, web) = (node.grpc.to_string(), node.peer.to_string(), node.web.to_string());
    node.set("CHAT_LISTEN", grpc).set("CHAT_PEER_LISTEN", peer).set("CHAT_WEB_LISTEN", web);
}

/// Waits until a node lists the current addresses of all nodes.
async fn recorded(cluster: &Cluster, asked: usize, token: &str) {
    eventually("all addresses are recorded", async || {
        let answer = cluster.direct(asked, token).nodes().await.map_err(|error| error.to_string())?;
        let is_recorded = |node: &Node| {
            answer.nodes.iter().any(|info| {
                info.name == node.name
                    && info.peer_address == node.peer.to_string()
                    && info.client_address == node.grpc.to_string()
                    && info.web_address == node.web.to_string()
            })
        };
        let all = (0..5).all(|number| is_recorded(&cluster[number]));
        all.then_some(()).ok_or_else(|| format!("{:?}", answer.nodes))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_move_to_other_addresses_at_once() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    alice.send_message("alice", "before").await.unwrap();
    for node in 0..5 {
        cluster[node].terminate();
    }
    for node in 0..5 {
        assert!(cluster[node].ended().await.success());
        move_away(&mut cluster[node]);
    }
    let initial: Vec<String> = (0..5).map(|node| format!("{}={}", cluster[node].name, cluster[node].peer)).collect();
    cluster.set_all("CHAT_INITIAL_NODES", &initial.join(","));
    cluster.start_all().await;
    recorded(&cluster, 0, &token).await;
    let alice = cluster.client().await.with_token(&token).unwrap();
    alice.send_message("alice", "after").await.unwrap();
    let page = cluster.direct(0, &token).read("alice", Consistency::Linearizable).await.unwrap();
    assert_eq!(page.last_seq, 2);
    // From now on the addresses are recorded: a list with one entry only contains the node's own address.
    for node in 0..5 {
        let own = format!("{}={}", cluster[node].name, cluster[node].peer);
        cluster[node].terminate();
        assert!(cluster[node].ended().await.success());
        cluster[node].set("CHAT_INITIAL_NODES", own);
    }
    cluster.start_all().await;
    alice.send_message("alice", "later").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_moves_by_itself() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    // The leader moves like any other node.
    for mover in [cluster.follower().await, cluster.leader().await] {
        cluster[mover].terminate();
        assert!(cluster[mover].ended().await.success());
        move_away(&mut cluster[mover]);
        let advertised = cluster[mover].peer.to_string();
        cluster[mover].set("CHAT_PEER_ADVERTISE", advertised).start();
        cluster[mover].ready().await;
        recorded(&cluster, mover, &token).await;
        cluster[mover].transfer_to_itself().await.unwrap();
        alice.send_message("alice", "moved").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_volume_does_not_take_the_place_of_its_node() {
    let mut cluster = Cluster::prepared(5);
    // Nothing is written after the cluster is up. Otherwise the copy would find its files too old, and exit.
    cluster.set_all("CHAT_DIGEST_INTERVAL_S", "3600");
    cluster.start_all().await;
    let original = cluster.follower().await;
    cluster[original].terminate();
    assert!(cluster[original].ended().await.success());
    let copied = cluster[original].data_dir().with_file_name("copied");
    copy(&cluster[original].data_dir(), &copied);
    cluster.restart(original).await;
    let mut clone = cluster.another_of(original, &copied);
    clone.start();
    clone.logged("another process with the identity").await;
    let errors = clone.errors();
    let (there, here) = (cluster[original].peer.to_string(), clone.peer.to_string());
    assert!(errors.iter().any(|line| line.contains(&there) && line.contains(&here)), "{errors:?}");
    let (_, token) = cluster.register("alice").await;
    recorded(&cluster, original, &token).await;
}
