//! Without a majority nothing is acknowledged, and what is there can still be read.

use quorum_chat::client::{Client, ClientError, Consistency};
use tonic::Code;

use crate::support::{Cluster, eventually, impatient};

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

        // The first may have reached a leader that does not know yet that it is alone.
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

/// Once the survivors know that they are too few, writes are refused with the promise that nothing was applied. How
/// many got no such promise before.
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

/// Local reads say how old they may be; linearizable ones are refused.
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
    let error = direct.undelivered(false).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    let (_, heartbeat) = direct.undelivered(true).await.unwrap();
    assert!(heartbeat.age_ms.is_some_and(|age| age >= 300), "{heartbeat:?}");
    // Nor does it claim that there is a leader, or that it could serve.
    let error = eventually("no leader", async || direct.leader().await.map_or_else(Ok, |leader| Err(leader.0))).await;
    assert_eq!((error.code, error.reason.as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    eventually("not ready", async || match cluster[node].readiness().await {
        Err(why) if why.contains("there is no leader") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
