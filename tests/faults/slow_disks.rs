//! Disks whose flushes take seconds: a slow follower delays no other node, a slow leader only until it transfers
//! leadership.

use std::time::{Duration, Instant};

use support::{Cluster, Workload, eventually};

/// Duration of a flush.
const SLOW_MS: u64 = 4000;
/// Limit for a send while one node's flushes are slow: less than one flush.
const LIMIT: Duration = Duration::from_millis(2500);
/// Number of messages of each sender that are measured.
const MESSAGES: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn slow_flushes_of_two_followers_hold_up_nobody() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 3, false).await;
    workload.advance(MESSAGES).await;
    let (leader, usual) = (cluster.leader().await, workload.longest());
    let term = cluster[leader].metric("chat_raft_term").await;
    let slow: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).take(2).collect();
    for node in &slow {
        faults[*node].set(&[&format!("delay log.db {SLOW_MS}")]);
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(SLOW_MS) {
        workload.advance(MESSAGES).await;
    }
    let longest = workload.longest();
    println!("the slowest send took {longest:?}, before {usual:?}");
    assert!(longest < LIMIT, "the slowest send took {longest:?}, before {usual:?}");
    assert_eq!(cluster[leader].metric("chat_raft_term").await, term, "there was an election");
    eventually("the node reports that its disk is slow", async || {
        let log = cluster[slow[0]].log();
        if log.contains("has taken") { Ok(()) } else { Err("not a word".to_owned()) }
    })
    .await;
    for node in slow {
        faults[node].heal();
    }
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    let sent = alice.send_message("alice", "after").await.unwrap();
    cluster.level(&token, sent.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_slow_flushes_hands_over_and_may_lead_again() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 3, true).await;
    workload.advance(MESSAGES).await;
    let (slow, usual) = (cluster.leader().await, workload.longest());
    faults[slow].set(&[&format!("delay log.db {}", SLOW_MS * 10)]);
    let started = Instant::now();
    let other = cluster.direct((slow + 1) % cluster.len(), "");
    let name = cluster[slow].name.clone();
    eventually("another leader", async || match other.leader().await {
        Ok((leader, _)) if leader != name => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    println!("another leader after {:?}", started.elapsed());
    workload.advance(MESSAGES).await;
    let longest = workload.longest();
    println!("the slowest send took {longest:?}, before {usual:?}");
    assert!(longest < LIMIT, "the slowest send took {longest:?}, before {usual:?}");
    assert!(cluster[slow].metric("chat_slow_disk_transfers_total").await >= 1.0);
    assert!(cluster[slow].metric("chat_disk_stalled_seconds").await >= 0.5);
    cluster[slow].logged("transferring leadership").await;
    faults[slow].heal();
    workload.advance(MESSAGES).await;
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    // The node may become leader again.
    let sent = alice.send_message("alice", "after").await.unwrap();
    cluster.level(&token, sent.revision).await;
    eventually("the slow one leads again", async || {
        cluster[slow].transfer_to_itself().await?;
        match other.leader().await {
            Ok((leader, _)) if leader == name => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    alice.send_message("alice", "at the old leader").await.unwrap();
}
