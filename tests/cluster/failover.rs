//! Nodes die, hang and stop while people chat: nothing is lost, nothing stored twice, and it goes on soon.

use std::time::{Duration, Instant};

use quorum_chat::client::Consistency;
use uuid::Uuid;

use crate::support::{Cluster, Workload};

/// Messages of each sender between two faults.
const BETWEEN_FAULTS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn any_two_of_five_die_and_nothing_acknowledged_is_lost_or_stored_twice() {
    let mut cluster = Cluster::five().await;
    let (_, token) = cluster.register("witness").await;
    let workload = Workload::start(&cluster, 3, true).await;
    for leader_first in [true, false] {
        workload.advance(BETWEEN_FAULTS).await;
        let (leader, follower) = (cluster.leader().await, cluster.follower().await);
        let victims = if leader_first { [leader, follower] } else { [follower, leader] };
        for victim in victims {
            cluster[victim].kill();
            workload.advance(BETWEEN_FAULTS).await;
        }
        for victim in victims {
            cluster.restart(victim).await;
            serves(&cluster, victim, &token).await;
        }
    }
    // Both at the same moment.
    let victims = [cluster.leader().await, cluster.follower().await];
    victims.iter().for_each(|victim| cluster[*victim].kill());
    workload.advance(BETWEEN_FAULTS).await;
    for victim in victims {
        cluster.restart(victim).await;
    }
    let report = workload.finish().await;
    assert_eq!(report.failures, [], "the library hides all of it");
    cluster.level(&token, 0).await;
    for node in 0..cluster.len() {
        serves(&cluster, node, &token).await;
    }
    println!("{} messages acknowledged, the slowest after {:?}", report.acknowledged, report.longest);
}

/// A message can be sent through this node, and is read there.
async fn serves(cluster: &Cluster, node: usize, token: &str) {
    let direct = cluster.direct(node, token);
    let sent = direct.send(Uuid::now_v7(), "witness", "a note").await.unwrap();
    let page = direct.read("witness", Consistency::Linearizable).await.unwrap();
    assert_eq!(page.messages[0].message_id, sent.message_id);
    assert_eq!(page.header.unwrap().node, cluster[node].name);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_leader_was_killed_the_next_send_is_acknowledged_within_two_seconds() {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut cluster = Cluster::five_alone().await;
    let (alice, token) = cluster.register("alice").await;
    for round in 0..3 {
        // Everything is as usual, and the client is connected to the leader.
        let before = alice.send_message("alice", "before").await.unwrap();
        cluster.level(&token, before.revision).await;
        let leader = cluster.leader().await;
        alice.leader().await.unwrap();
        let killed = Instant::now();
        cluster[leader].kill();
        let after = alice.send_message("alice", "after").await.unwrap();
        let took = killed.elapsed();
        println!("round {round}: acknowledged {took:?} after the leader was killed");
        assert!(took <= LIMIT, "the next send took {took:?}");
        assert_eq!(after.seq, before.seq + 1);
        cluster.restart(leader).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_of_the_leader_fails_no_send_and_delays_none_for_long() {
    // The promise, and what unoptimized code can keep of it.
    const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 250 });
    let mut cluster = Cluster::five_alone().await;
    let workload = Workload::start(&cluster, 7, false).await;
    workload.advance(5 * BETWEEN_FAULTS).await;
    // On a busy machine a send takes long without any stop.
    let usual = workload.longest();
    for _ in 0..3 {
        workload.advance(5 * BETWEEN_FAULTS).await;
        let leader = cluster.leader().await;
        cluster[leader].terminate();
        let code = cluster[leader].exit_code().await;
        assert_eq!(code, 0, "a planned stop is no failure");
        workload.advance(5 * BETWEEN_FAULTS).await;
        cluster.restart(leader).await;
    }
    let report = workload.finish().await;
    println!("{} messages, the slowest took {:?}, before any stop {usual:?}", report.acknowledged, report.longest);
    assert_eq!(report.failures, [], "no send fails");
    assert!(report.longest <= LIMIT + usual, "the slowest send took {:?}, before any stop {usual:?}", report.longest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_and_goes_on_loses_nothing_and_reads_nothing_stale() {
    /// Longer than any election.
    const HANGS: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 3, true).await;
    workload.advance(BETWEEN_FAULTS).await;
    let old = cluster.leader().await;
    let direct = cluster.direct(old, &token);
    let before = alice.send_message("alice", "before").await.unwrap();
    assert_eq!(direct.read("alice", Consistency::Linearizable).await.unwrap().last_seq, before.seq);
    cluster[old].stop();
    let stopped = Instant::now();
    workload.advance(BETWEEN_FAULTS).await;
    let after = alice.send_message("alice", "after").await.unwrap();
    assert_eq!(after.seq, before.seq + 1);
    // Asked while it hangs, so that they are the first that it sees when it goes on, still believing that it leads.
    let reads: Vec<_> = (0..20)
        .map(|_| {
            let direct = direct.clone();
            tokio::spawn(async move { direct.read("alice", Consistency::Linearizable).await })
        })
        .collect();
    tokio::time::sleep(HANGS.saturating_sub(stopped.elapsed())).await;
    cluster[old].go_on();
    let mut answered = 0;
    for read in reads {
        match read.await.unwrap() {
            Ok(page) => {
                answered += 1;
                assert_eq!(page.last_seq, after.seq, "a linearizable read is stale");
            }
            Err(error) => assert!(error.is_unavailable(), "{error:?}"),
        }
    }
    println!("{answered} of 20 reads were answered, the others refused");
    workload.advance(BETWEEN_FAULTS).await;
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    cluster[old].ready().await;
    cluster.level(&token, after.revision).await;
}
