//! Nodes die, hang and stop while people chat: nothing is lost or stored twice, and the service recovers quickly.

use std::time::{Duration, Instant};

use client::{ClientError, Consistency};
use uuid::Uuid;

use support::{Cluster, Workload, eventually};

/// Number of messages of each sender between two faults.
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
    // Both are killed at the same moment.
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

/// Asserts that a message can be sent and read through this node.
async fn serves(cluster: &Cluster, node: usize, token: &str) {
    let direct = cluster.direct(node, token);
    let sent = direct.send(Uuid::now_v7(), "witness", "a note").await.unwrap();
    let page = direct.read("witness", Consistency::Linearizable).await.unwrap();
    assert_eq!(page.messages[0].message_id, sent.message_id);
    assert_eq!(page.header.unwrap().node, cluster[node].name);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_leader_was_killed_the_next_send_is_acknowledged_before_any_timeout() {
    // The lease and the shortest election timeout. It takes about 30 ms, and longer on a busy machine.
    const LIMIT: Duration = Duration::from_millis(600 + 300);
    let mut cluster = Cluster::five_alone().await;
    let (alice, token) = cluster.register("alice").await;
    for round in 0..3 {
        // The initial state: no faults, and the client is connected to the leader.
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
    // The guaranteed limit, and what unoptimized code can achieve.
    const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 250 });
    let mut cluster = Cluster::five_alone().await;
    let workload = Workload::start(&cluster, 7, false).await;
    workload.advance(5 * BETWEEN_FAULTS).await;
    // On a busy machine a send takes long without any fault.
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

/// Stops all nodes at the same time. Returns the time until the last one has ended.
async fn stop_all(cluster: &mut Cluster) -> Duration {
    let began = Instant::now();
    (0..cluster.len()).for_each(|node| cluster[node].terminate());
    for node in 0..cluster.len() {
        assert_eq!(cluster[node].exit_code().await, 0);
    }
    began.elapsed()
}

/// Like Ctrl-C in the terminal of a local cluster: no node is left that could take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_stops_at_once_and_has_nothing_to_complain_of() {
    /// Less than the maximum wait for a successor.
    const LIMIT: Duration = Duration::from_millis(1_500);
    let mut cluster = Cluster::five_alone().await;
    let (alice, _) = cluster.register("alice").await;
    alice.send_message("alice", "before").await.unwrap();
    let seen: Vec<usize> = (0..cluster.len()).map(|node| cluster[node].log().lines().count()).collect();
    let took = stop_all(&mut cluster).await;
    assert!(took < LIMIT, "it took {took:?}");
    for (node, seen) in seen.into_iter().enumerate() {
        let log = cluster[node].log();
        // The disk of the test machine may be slow.
        let is_complaint = |line: &&str| !line.contains(" - INFO - ") && !line.contains("isk is slow");
        let complaints: Vec<&str> = log.lines().skip(seen).filter(is_complaint).collect();
        assert_eq!(complaints, Vec::<&str>::new(), "{log}");
    }
}

/// The limit is far below the ten seconds that calls may take to end.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_in_vain_hold_up_no_stop() {
    const LIMIT: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::five_alone().await;
    let (alice, token) = cluster.register("alice").await;
    // One waits for a revision that will never exist, the other for a majority that is about to be lost.
    let newest = alice.send_message("alice", "before").await.unwrap().revision;
    let waiting: Vec<_> = cluster
        .directs(&token)
        .into_iter()
        .map(|direct| {
            tokio::spawn(async move {
                let (read, ()) = tokio::join!(direct.read("alice", Consistency::AtLeast(newest + 1_000_000)), async {
                    while direct.send(Uuid::new_v4(), "alice", "again and again").await.is_ok() {}
                });
                read.unwrap_err()
            })
        })
        .collect();
    eventually("sends under way", async || {
        let page = alice.read_conversation("alice", 0, 1, Consistency::Linearizable).await.unwrap();
        if page.last_seq > 20 { Ok(()) } else { Err(page.last_seq.to_string()) }
    })
    .await;
    let took = stop_all(&mut cluster).await;
    println!("all five stopped within {took:?}");
    assert!(took < LIMIT, "it took {took:?}");
    for read in waiting {
        let error = read.await.unwrap();
        assert!(error.is_unavailable(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_stops_leave_no_outcome_unknown_through_any_node() {
    let rounds = std::env::var("STOP_ROUNDS").map_or(5, |rounds| rounds.parse().expect("a number"));
    let mut cluster = Cluster::five().await;
    let workload = Workload::start(&cluster, 2, true).await;
    for _ in 0..rounds {
        workload.advance(BETWEEN_FAULTS).await;
        let leader = cluster.leader().await;
        cluster[leader].terminate();
        assert_eq!(cluster[leader].exit_code().await, 0, "a planned stop is no failure");
        cluster.restart(leader).await;
    }
    let report = workload.finish().await;
    assert_eq!(report.failures, [], "the library hides all of it");
    // Nothing was applied, by the node's answer or because the call could not be forwarded.
    let refused = |error: &&ClientError| match &error.reason {
        Some(reason) => ["NODE_STOPPING", "NO_LEADER", "OVERLOADED"].contains(&reason.as_str()),
        None => error.message.contains("Connection refused") || error.message.ends_with("connection closed"),
    };
    let (refused, failed): (Vec<_>, Vec<_>) = report.direct_failures.iter().partition(refused);
    println!("{} messages acknowledged, {} calls refused", report.acknowledged, refused.len());
    assert_eq!(failed, Vec::<&ClientError>::new(), "a node that stops answers what it was asked");
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
    // Sent while the node hangs, so that it processes them first when it continues, still believing that it leads.
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
