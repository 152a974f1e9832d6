//! Disaster recovery: a new cluster from a backup, or from the last surviving node.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use client::{Client, ClientError, Consistency};
use serde_json::Value;
use storage::new_cluster;
use tonic::Code;
use uuid::Uuid;

use super::digest::listed;
use support::{Cluster, Direct, PASSWORD, eventually, history};

/// Runs `chatctl backup` at a node's socket. Returns its exit code and output.
fn back_up(cluster: &Cluster, at: usize, file: &Path, more: &[&str]) -> (i32, String) {
    let output = Command::new(support::chatctl())
        .args(["--output", "json", "--timeout", "5", "backup"])
        .arg(file)
        .arg("--socket")
        .arg(cluster[at].data_dir().join("admin.sock"))
        .args(more)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Waits until a node lists exactly these members, all with a vote. Returns the cluster's id and the members' ids.
async fn settled(cluster: &Cluster, asked: usize, expected: &[&str]) -> (String, BTreeSet<u64>) {
    eventually(&format!("the voters {expected:?}"), async || {
        let answer = listed(cluster, asked).await?;
        let names: BTreeSet<&str> = answer.nodes.iter().map(|member| member.name.as_str()).collect();
        let all = names == expected.iter().copied().collect() && answer.nodes.iter().all(|member| member.voter);
        let ids = answer.nodes.iter().map(|member| member.node_id).collect();
        all.then_some((answer.cluster_id.clone(), ids)).ok_or_else(|| format!("{answer:?}"))
    })
    .await
}

/// A message that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Acknowledged {
    client_id: Uuid,
    message_id: u64,
    seq: u64,
}

async fn send(client: &Client, body: &str) -> Acknowledged {
    let client_id = Uuid::now_v7();
    let sent = client.send_message_with_id(client_id, "alice", body).await.unwrap();
    Acknowledged { client_id, message_id: sent.message_id, seq: sent.seq }
}

/// The stored messages, oldest first.
async fn stored(client: &Client) -> Vec<Acknowledged> {
    let messages = history(client, "alice").await.into_iter();
    messages
        .map(|message| Acknowledged {
            client_id: message.client_message_id.unwrap(),
            message_id: message.message_id,
            seq: message.seq,
        })
        .collect()
}

/// Waits until all running nodes have the same state. Returns its revision.
async fn level_and_equal(cluster: &Cluster, token: &str, revision: u64) -> u64 {
    let revision = cluster.level(token, revision).await;
    let mut digests = BTreeSet::new();
    for node in cluster.up() {
        let answer = listed(cluster, node).await.unwrap();
        assert_eq!(answer.revision, revision);
        digests.insert(answer.digest);
    }
    assert_eq!(digests.len(), 1, "{digests:?}");
    revision
}

async fn first_event(client: &Client, after: u64) -> Result<u64, ClientError> {
    let mut events = client.events(Some(after));
    events.next().await.expect("an event or an error").map(|event| event.revision)
}

/// Checks that cursors in the lost part of the history, and cursors in the future, are rejected with different reasons.
async fn lost_cursors_are_refused(client: &Client, direct: &Direct, lost: u64, newest: u64) {
    for refused in [
        direct.undelivered(Consistency::AtLeast(lost)).await.unwrap_err(),
        first_event(client, lost).await.unwrap_err(),
        client.read_conversation("alice", 0, 10, Consistency::AtLeast(lost)).await.unwrap_err(),
    ] {
        assert!(refused.code == Code::OutOfRange && refused.has_reason("REVISION_LOST"), "{refused:?}");
    }
    let future = first_event(client, newest + 1000).await.unwrap_err();
    assert!(future.code == Code::OutOfRange && future.has_reason("REVISION_IN_FUTURE"), "{future:?}");
}

const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_becomes_another_cluster_of_five_and_nothing_runs_backwards() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let (old_cluster, old_ids) = settled(&cluster, 0, &NAMES).await;
    let mut sent = vec![send(&alice, "first").await];

    // The backup is made while messages are being sent.
    let stop = Arc::new(AtomicBool::new(false));
    let sender = tokio::spawn({
        let (alice, stop) = (alice.clone(), stop.clone());
        async move {
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                sent.push(send(&alice, "meanwhile").await);
            }
            sent
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let before = sent[0].message_id;
    let follower = cluster.follower().await;
    let (code, text) = back_up(&cluster, follower, &file, &[]);
    assert_eq!(code, 0, "{text}");
    let made: Value = serde_json::from_str(&text).unwrap();
    let revision = made["revision"].as_u64().unwrap();
    assert!(revision >= before && made["cluster_id"] == old_cluster.as_str(), "{made}");
    assert_eq!(made["bytes"].as_u64().unwrap(), fs::metadata(&file).unwrap().len());
    let bytes = fs::read(&file).unwrap();
    let (code, text) = back_up(&cluster, follower, &file, &[]);
    assert!(code == 2 && text.contains("--force"), "{text}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
    stop.store(true, Ordering::Relaxed);
    sent.extend(sender.await.unwrap());
    // At least these are acknowledged after the backup.
    for _ in 0..3 {
        sent.push(send(&alice, "to be lost").await);
    }
    let lost = sent.last().unwrap().clone();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");

    for node in 0..5 {
        cluster[node].terminate();
    }
    for node in 0..5 {
        assert_eq!(cluster[node].exit_code().await, 0);
    }
    let path = file.to_str().unwrap();
    let (code, text) = cluster[0].chatd(&["restore", path]);
    assert!(code == 73 && text.contains("is not empty"), "{text}");
    let old_data = cluster[4].data_dir();
    for node in 0..5 {
        let new = cluster[node].data_dir().with_extension("new").display().to_string();
        cluster[node].set("CHAT_DATA_DIR", new);
    }
    let damaged = dir.path().join("damaged");
    fs::write(&damaged, &bytes[..bytes.len() - 4096]).unwrap();
    for (file, expected, why) in [("damaged", 65, "it is damaged or incomplete"), ("absent", 66, "")] {
        let (code, text) = cluster[0].chatd(&["restore", dir.path().join(file).to_str().unwrap()]);
        assert!(code == expected && text.contains(&format!("cannot be restored: {why}")), "{code}: {text}");
    }
    let (code, text) = cluster[0].chatd(&["restore", path]);
    assert!(code == 0 && text.contains("the only member"), "{text}");

    // All nodes start at the same moment.
    cluster.start_all().await;
    let (new_cluster, new_ids) = settled(&cluster, 3, &NAMES).await;
    assert_ne!(new_cluster, old_cluster);
    assert!(new_ids.is_disjoint(&old_ids), "{new_ids:?}");
    let kept: Vec<Acknowledged> = sent.iter().filter(|sent| sent.message_id <= revision).cloned().collect();
    // With the session of the old cluster.
    let alice = cluster.client().await.with_token(&token).unwrap();
    assert_eq!(stored(&alice).await, kept);

    // Retries of a message that was kept, and of one that was lost.
    let again = alice.send_message_with_id(kept[0].client_id, "alice", "first").await.unwrap();
    assert!(again.repeated && again.message_id == kept[0].message_id, "{again:?}");
    let anew = alice.send_message_with_id(lost.client_id, "alice", "to be lost").await.unwrap();
    assert!(!anew.repeated && anew.revision > lost.message_id, "{anew:?}");
    assert_eq!(anew.seq, kept.last().unwrap().seq + 1);
    let newest = level_and_equal(&cluster, &token, anew.revision).await;

    assert_eq!(first_event(&alice, revision).await.unwrap(), anew.revision);
    lost_cursors_are_refused(&alice, &cluster.direct(0, &token), lost.message_id, newest).await;

    // A node of the old cluster, with its old data, in the place of a new node.
    cluster[4].kill();
    let new_data = cluster[4].data_dir();
    cluster[4].set("CHAT_DATA_DIR", old_data.display().to_string()).start();
    assert_eq!(cluster[4].exit_code().await, 73);
    let errors = cluster[4].errors();
    let last = errors.last().unwrap();
    assert!(last.contains("another cluster") && last.contains(&new_cluster), "{errors:?}");
    cluster[4].set("CHAT_DATA_DIR", new_data.display().to_string());
    cluster.restart(4).await;
    assert_eq!(settled(&cluster, 4, &NAMES).await, (new_cluster, new_ids));
    level_and_equal(&cluster, &token, send(&alice, "and on").await.message_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_can_be_restored_without_its_sessions() {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let sent = vec![send(&alice, "first").await];
    let device = cluster.client().await.login("alice", PASSWORD).await.unwrap().device_token;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let (code, text) = back_up(&cluster, 0, &file, &[]);
    assert_eq!(code, 0, "{text}");
    cluster[0].terminate();
    assert_eq!(cluster[0].exit_code().await, 0);
    let new = cluster[0].data_dir().with_extension("new").display().to_string();
    cluster[0].set("CHAT_DATA_DIR", new);
    let (code, text) = cluster[0].chatd(&["restore", "--end-sessions", file.to_str().unwrap()]);
    assert!(code == 0 && text.contains("All sessions of the backup have ended"), "{text}");
    cluster.start_all().await;

    // The old session can neither read, nor change anything, nor subscribe.
    let old = cluster.client().await.with_token(&token).unwrap();
    for refused in [
        old.read_conversation("alice", 0, 10, Consistency::Local).await.unwrap_err(),
        old.send_message("alice", "from the past").await.unwrap_err(),
        first_event(&old, 0).await.unwrap_err(),
    ] {
        assert!(refused.code == Code::Unauthenticated && refused.has_reason("TOKEN_INVALID"), "{refused:?}");
    }
    let client = cluster.client().await;
    client.keep_device("alice", &device);
    // Strangers are throttled; the device token from the backup is accepted.
    let stranger = cluster.client().await;
    let mut refusals = Vec::new();
    while !refusals.last().is_some_and(|error: &ClientError| error.has_reason("LOGIN_THROTTLED")) {
        assert!(refusals.len() < 40, "{refusals:?}");
        refusals.push(stranger.login("alice", "a wrong password").await.unwrap_err());
    }
    client.login("alice", PASSWORD).await.unwrap();
    assert_eq!(client.sessions().await.unwrap().len(), 1, "only the one that was opened now");
    assert_eq!(stored(&client).await, sent);
    send(&client, "and on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_becomes_a_cluster_and_the_others_join_it() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let mut sent = Vec::new();
    for _ in 0..30 {
        sent.push(send(&alice, "acknowledged").await);
    }
    let (old_cluster, old_ids) = settled(&cluster, 4, &NAMES).await;
    cluster.level(&token, sent.last().unwrap().message_id).await;
    let recover = ["recover", "--force-new-cluster", "--yes"];
    cluster[4].kill();
    let (code, text) = cluster[4].chatd(&recover);
    assert!(code == 73 && text.contains("n1, n2, n3, n4 answer"), "{text}");
    cluster.restart(4).await;
    cluster.level(&token, 0).await;
    for node in 0..3 {
        cluster[node].kill();
        fs::remove_dir_all(cluster[node].data_dir()).unwrap();
    }

    // Without a majority, the newest acknowledged state is unknown. The node's own state can be saved anyway.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    eventually("no backup without a majority", async || {
        let (code, text) = back_up(&cluster, 4, &file, &["--force"]);
        (code == 3 && text.contains("NO_LEADER")).then_some(()).ok_or(text)
    })
    .await;
    let (code, text) = back_up(&cluster, 4, &file, &["--local", "--force"]);
    assert_eq!(code, 0, "{text}");

    let (code, text) = cluster[4].chatd(&recover);
    assert!(code == 73 && text.contains("another process uses it"), "{text}");
    cluster[4].kill();
    let (code, text) = cluster[4].chatd(&recover[..2]);
    assert!(code == 64 && text.contains("STILL THERE, with data of the old cluster: n4."), "{text}");
    cluster[3].kill();
    let (code, text) = cluster[4].chatd(&recover[..2]);
    assert!(code == 64 && text.contains("LOST") && text.contains("nothing was changed"), "{text}");
    // A shell without the service's settings must not change the node's address.
    let address = cluster[4].grpc.to_string();
    cluster[4].set("CHAT_ADVERTISE", "elsewhere.invalid:1");
    let (code, text) = cluster[4].chatd(&recover);
    assert!(code == 0 && text.contains("the only member"), "{text}");
    let survey = new_cluster::survey(&cluster[4].data_dir()).unwrap();
    let recorded: Vec<_> = survey.membership.nodes.iter().map(|node| &node.client_address).collect();
    assert_eq!(recorded, [&address]);
    cluster[4].set("CHAT_ADVERTISE", address);
    let aside: Vec<_> = fs::read_dir(cluster[4].data_dir().join("aside")).unwrap().collect();
    assert!(aside[0].as_ref().unwrap().path().join("log.db").exists() && aside.len() == 1);

    // The first initial node is one of the empty ones. It must not bootstrap another cluster.
    for node in [0, 1, 2, 4] {
        cluster[node].start();
    }
    for node in [0, 1, 2, 4] {
        cluster[node].ready().await;
    }
    let (new_cluster, new_ids) = settled(&cluster, 0, &["n1", "n2", "n3", "n5"]).await;
    assert_ne!(new_cluster, old_cluster);
    assert!(new_ids.is_disjoint(&old_ids), "{new_ids:?}");
    let alice = cluster.client().await.with_token(&token).unwrap();
    assert_eq!(stored(&alice).await, sent);
    let again = alice.send_message_with_id(sent[7].client_id, "alice", "acknowledged").await.unwrap();
    assert!(again.repeated && again.message_id == sent[7].message_id, "{again:?}");
    let next = send(&alice, "and on").await;
    assert!(next.message_id > sent[29].message_id && next.seq == sent[29].seq + 1, "{next:?}");

    // The other node that kept its disk belongs to the old cluster, until it starts with an empty one.
    cluster[3].start();
    assert_eq!(cluster[3].exit_code().await, 73);
    fs::remove_dir_all(cluster[3].data_dir()).unwrap();
    cluster.restart(3).await;
    settled(&cluster, 3, &NAMES).await;
    level_and_equal(&cluster, &token, next.message_id).await;
}
