//! Without a majority nothing is acknowledged, and the local state can still be read.

use std::time::{Duration, Instant};

use client::{Client, ClientError, Consistency};
use tonic::Code;

use support::{Cluster, eventually, impatient};

#[tokio::test(flavor = "multi_thread")]
async fn with_three_of_five_dead_writes_are_refused_and_local_reads_tell_their_age() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let hasty = cluster.client_with(impatient()).await.with_token(&token).unwrap();
    for leader_dies in [false, true] {
        let before = alice.send_message("alice", "before").await.unwrap();
        cluster.level(&token, before.revision).await;
        let leader = cluster.leader().await;
        let mut victims: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).take(3).collect();
        if leader_dies {
            victims[0] = leader;
        }
        victims.iter().for_each(|victim| cluster[*victim].kill());

        // The first send may reach a leader that did not detect its isolation yet.
        let first = hasty.send_message("alice", "into the void").await.unwrap_err();
        assert!(first.is_unavailable() || first.outcome_unknown, "{first:?}");
        let in_flight = u64::from(first.outcome_unknown) + refuses_changes(&hasty).await;
        for node in cluster.up() {
            answers_locally(&cluster, node, &token, before.message_id).await;
        }

        cluster[victims[0]].start();
        let after = alice.send_message("alice", "after").await.unwrap();
        let possible = before.seq + 1..=before.seq + 1 + in_flight;
        assert!(possible.contains(&after.seq), "{possible:?} {after:?}");
        cluster.start_all().await;
        cluster.level(&token, after.revision).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_stood_still_tells_how_old_its_state_is() {
    const STANDS_STILL: Duration = Duration::from_millis(700);
    // Both clocks count whole milliseconds.
    const ROUNDING_MS: u64 = 3;
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let mut stale = 0;
    for _ in 0..4 {
        let before = alice.send_message("alice", "before").await.unwrap();
        cluster.level(&token, before.revision).await;
        let follower = cluster.follower().await;
        let direct = cluster.direct(follower, &token);
        direct.read("alice", Consistency::Local).await.unwrap();
        cluster[follower].stop();
        // The node receives these when it continues, in the order in which they were sent.
        let (stopped, mut missed) = (Instant::now(), Vec::new());
        while stopped.elapsed() < STANDS_STILL {
            let sent = alice.send_message("alice", "while it stands still").await.unwrap();
            missed.push((sent.seq, Instant::now()));
        }
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let direct = direct.clone();
                tokio::spawn(async move { direct.read("alice", Consistency::Local).await })
            })
            .collect();
        let goes_on = Instant::now();
        cluster[follower].go_on();
        for read in reads {
            let page = read.await.unwrap().unwrap();
            let Some((_, acknowledged)) = missed.iter().find(|(seq, _)| *seq > page.last_seq) else { continue };
            let age_ms = page.header.unwrap().age_ms.expect("the node has been level since it started");
            let least = goes_on.duration_since(*acknowledged).as_millis() as u64;
            assert!(age_ms + ROUNDING_MS >= least, "{age_ms} ms, and it lacks what was acknowledged {least} ms before");
            stale += 1;
        }
    }
    assert!(stale > 0, "no answer was of the time before");
    println!("{stale} answers of a state that was behind");
}

/// Once the survivors have detected that they are too few, writes are rejected with the guarantee that nothing was
/// applied. Returns how many earlier calls got no such guarantee.
async fn refuses_changes(client: &Client) -> u64 {
    let mut unknown = 0;
    let refused = eventually("a clear refusal", async || {
        let error = client.send_message("alice", "nothing").await.expect_err("there is no majority");
        unknown += u64::from(error.outcome_unknown);
        if error.outcome_unknown { Err(error.to_string()) } else { Ok(error) }
    })
    .await;
    let ClientError { code, reason, .. } = refused;
    assert_eq!((code, reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    unknown
}

/// Asserts that local reads report their maximum age, and that linearizable reads are rejected.
async fn answers_locally(cluster: &Cluster, node: usize, token: &str, last: u64) {
    let direct = cluster.direct(node, token);
    let mut ages = Vec::new();
    eventually("an age that grows", async || {
        let page = direct.read("alice", Consistency::Local).await.unwrap();
        assert_eq!(page.messages[0].message_id, last, "what was acknowledged is there, and nothing else");
        let age = page.header.unwrap().age_ms.expect("the node has been level since it started");
        assert!(ages.last().is_none_or(|earlier| age >= *earlier), "{ages:?}, then {age}");
        ages.push(age);
        let grown = ages.last().unwrap() - ages.first().unwrap();
        if grown >= 300 { Ok(()) } else { Err(format!("{ages:?}")) }
    })
    .await;
    let error = direct.read("alice", Consistency::Linearizable).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    let error = direct.undelivered(Consistency::Linearizable).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    let (_, heartbeat) = direct.undelivered(Consistency::Local).await.unwrap();
    assert!(heartbeat.age_ms.is_some_and(|age| age >= 300), "{heartbeat:?}");
    // The node reports neither a leader nor that it could serve.
    let error = eventually("no leader", async || direct.leader().await.map_or_else(Ok, |leader| Err(leader.0))).await;
    assert_eq!((error.code, error.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    eventually("not ready", async || match cluster[node].readiness().await {
        Err(why) if why.contains("there is no leader") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
