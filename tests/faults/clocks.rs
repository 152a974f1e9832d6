//! Processes that are suspended for long, and clocks that are hours off.

use std::time::{Duration, Instant};

use client::{Consistency, Message};
use tonic::Code;
use uuid::Uuid;

use support::{Cluster, Direct, PASSWORD, Workload, eventually, history};

const MESSAGES: u64 = 10;
const HOUR_MS: i64 = 3_600_000;

fn clock(hours: i64) -> String {
    format!("clock {}", hours * HOUR_MS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_for_long_reads_nothing_stale() {
    /// Longer than any timeout between the nodes.
    const LONG: Duration = Duration::from_secs(30);
    /// Number of reads per suspended node, sent during the suspension and in flight when the node continues.
    const READS: usize = 10;
    let (mut cluster, _, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 2, false).await;
    // Both at the same time, because the suspension takes long.
    let stopped = [cluster.leader().await, cluster.follower().await];
    let before = alice.send_message("alice", "before").await.unwrap();
    let started = Instant::now();
    for node in stopped {
        let page = cluster.direct(node, &token).read("alice", Consistency::Linearizable).await.unwrap();
        assert_eq!(page.last_seq, before.seq);
    }
    for node in stopped {
        cluster[node].stop();
    }
    workload.advance(MESSAGES).await;
    let after = alice.send_message("alice", "after").await.unwrap();
    tokio::time::sleep((LONG - Duration::from_secs(2)).saturating_sub(started.elapsed())).await;
    // The reads arrive while the node still relies on its old state.
    let read = |direct: Direct| async move { direct.read("alice", Consistency::Linearizable).await };
    let reads: Vec<_> = (0..READS * 2).map(|i| tokio::spawn(read(cluster.direct(stopped[i % 2], &token)))).collect();
    tokio::time::sleep(LONG.saturating_sub(started.elapsed())).await;
    for node in stopped {
        cluster[node].go_on();
    }
    let mut answered = 0;
    for read in reads {
        match read.await.unwrap() {
            Ok(page) => {
                answered += 1;
                assert_eq!(page.last_seq, after.seq, "a linearizable read is stale");
            }
            Err(error) => assert!(error.is_unavailable() || error.code == Code::DeadlineExceeded, "{error:?}"),
        }
    }
    println!("{answered} of {} reads were answered, the others refused", READS * 2);
    workload.advance(MESSAGES).await;
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    cluster.level(&token, after.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_neither_turn_time_back_nor_revive_a_session() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.set_all("CHAT_SESSION_LIFETIME_HOURS", "24");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let old = cluster.leader().await;
    let others: Vec<usize> = cluster.up().into_iter().filter(|node| *node != old).collect();
    // Every node has a different time, before or after the true one.
    faults[old].set(&[&clock(5)]);
    for (node, hours) in others.iter().zip([-7, -2, 0, 2]) {
        faults[*node].set(&[&clock(hours)]);
    }
    // A session of 24 hours, opened at five o'clock, valid on all nodes.
    let session = cluster.direct(old, "").login("alice", PASSWORD).await.unwrap();
    let expiring = cluster.directs(&session.token);
    let ahead = expiring[old].send(Uuid::now_v7(), "alice", "ahead").await.unwrap();
    cluster.level(&token, ahead.revision).await;
    for direct in &expiring {
        direct.read("alice", Consistency::Linearizable).await.unwrap();
    }

    // 30 hours later by a follower's clock: it asks the leader, where the session is still valid.
    faults[others[2]].set(&[&clock(35)]);
    eventually("the clock is set", async || {
        expiring[others[2]].read("alice", Consistency::Linearizable).await.map_err(|error| error.to_string())
    })
    .await;
    // 30 hours later by the leader's clock too: the session has expired on all nodes, also where it is much earlier.
    faults[old].set(&[&clock(35)]);
    let refused = |error: client::ClientError| {
        assert_eq!((error.code, error.reason.as_deref()), (Code::Unauthenticated, Some("TOKEN_EXPIRED")), "{error:?}");
    };
    eventually("it has expired", async || {
        let read = expiring[old].read("alice", Consistency::Linearizable).await;
        read.map_or_else(
            |error| {
                refused(error);
                Ok(())
            },
            |_| Err("it is good".to_owned()),
        )
    })
    .await;
    for direct in &expiring {
        refused(direct.read("alice", Consistency::Linearizable).await.unwrap_err());
        refused(direct.send(Uuid::now_v7(), "alice", "expired").await.unwrap_err());
    }

    // Nodes whose clocks are behind take over: the replicated clock stands still, and expired sessions stay expired.
    let client = cluster.client().await;
    client.login("alice", PASSWORD).await.unwrap();
    let mut leader = old;
    for next in [others[0], others[1], others[3]] {
        eventually("the next leader", async || {
            cluster[next].transfer_to_itself().await?;
            let (name, _) = cluster.direct(old, "").leader().await.map_err(|error| error.to_string())?;
            if name == cluster[next].name { Ok(()) } else { Err(format!("{name} leads")) }
        })
        .await;
        for direct in &expiring {
            refused(direct.read("alice", Consistency::Linearizable).await.unwrap_err());
            refused(direct.send(Uuid::now_v7(), "alice", "expired").await.unwrap_err());
        }
        client.send_message("alice", "under another leader").await.unwrap();
        leader = next;
    }
    assert_ne!(leader, old);
    // True time everywhere, and restarts: the replicated clock does not go back.
    faults.iter().for_each(|faults| faults.heal());
    cluster[leader].kill();
    client.send_message("alice", "after a crash").await.unwrap();
    cluster.restart(leader).await;
    client.send_message("alice", "the last").await.unwrap();
    for direct in &expiring {
        refused(direct.read("alice", Consistency::Linearizable).await.unwrap_err());
    }
    let messages = history(&client, "alice").await;
    let times: Vec<u64> = messages.iter().map(sent_ms).collect();
    assert!(times.is_sorted(), "time ran back: {times:?}");
    assert!(messages.len() >= 6);
    drop(alice);
}

fn sent_ms(message: &Message) -> u64 {
    message.time_ms
}
