//! Point 15: an account cannot exceed its limits, and full volumes stop growth and nothing else.

#[allow(dead_code, reason = "the tests of faults use the rest")]
use std::{fs, os::unix::fs::FileExt as _, path::Path};

use client::{ClientError, Consistency};
use uuid::Uuid;

use support::volume::Volume;
use support::{Cluster, PASSWORD, eventually};

fn reason(error: &ClientError) -> &str {
    error.reason.as_deref().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_sends_too_fast_is_slowed_down_and_nobody_else() {
    let mut cluster = Cluster::prepared(3);
    cluster.set_all("CHAT_ACCOUNT_MESSAGES_PER_S", "5");
    cluster.start_all().await;
    let (_, mallory) = cluster.register("mallory").await;
    let (_, bob) = cluster.register("bob").await;
    // Through a follower: the rate limit is that of the cluster, on every node.
    let follower = cluster.follower().await;
    let leader = cluster.leader().await;
    let (mallory, bob) = (cluster.direct(follower, &mallory), cluster.direct(leader, &bob));
    let (mut sent, mut refused) = (0, 0);
    for _ in 0..80 {
        match mallory.send(Uuid::new_v4(), "bob", "spam").await {
            Ok(_) => sent += 1,
            Err(error) => {
                assert_eq!(reason(&error), "RATE_LIMITED", "{error}");
                refused += 1;
            }
        }
    }
    assert!(sent >= 50 && refused > 0, "{sent} sent, {refused} refused");
    for _ in 0..10 {
        bob.send(Uuid::new_v4(), "mallory", "hello").await.expect("bob has a rate of his own");
    }
    // The limit recovers on its own.
    eventually("another message", async || {
        mallory.send(Uuid::new_v4(), "bob", "later").await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_begun_waits_for_its_rate_and_receipts_have_one_too() {
    let mut cluster = Cluster::prepared(3);
    cluster.set_all("CHAT_ACCOUNT_CHANGES_PER_S", "80");
    cluster.start_all().await;
    let (_, mallory) = cluster.register("mallory").await;
    let leader = cluster.leader().await;
    let mallory = cluster.direct(leader, &mallory);
    // The limit for ten seconds is 800: the last ones wait while the first ones are deleted.
    let ids: Vec<u64> = (1..=1000).map(|n| n << 40).collect();
    assert_eq!(mallory.delete(ids, true).await.unwrap(), 0);
    let error = mallory.delete(vec![1 << 40; 100], true).await.unwrap_err();
    assert_eq!(reason(&error), "RATE_LIMITED", "{error}");
    // The same for acknowledgements, with 500 conversations each.
    let mut taken = 0;
    let error = loop {
        match mallory.acknowledge(500).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "there is no end");
    };
    assert_eq!(reason(&error), "RATE_LIMITED", "{error}");
    assert!(error.retry_after.is_some(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_stores_no_more_than_its_quota_until_it_deletes() {
    let mut cluster = Cluster::prepared(3);
    cluster.set_all("CHAT_ACCOUNT_MESSAGES_MAX", "5");
    cluster.start_all().await;
    let (_, mallory) = cluster.register("mallory").await;
    cluster.register("bob").await;
    let leader = cluster.leader().await;
    let mallory = cluster.direct(leader, &mallory);
    let first = mallory.send(Uuid::new_v4(), "bob", "one").await.unwrap();
    for _ in 1..5 {
        mallory.send(Uuid::new_v4(), "bob", "more").await.unwrap();
    }
    let id = Uuid::new_v4();
    for _ in 0..2 {
        let error = mallory.send(id, "bob", "too much").await.unwrap_err();
        assert_eq!(reason(&error), "QUOTA_EXCEEDED", "{error}");
    }
    mallory.delete(vec![first.message_id], true).await.unwrap();
    mallory.send(Uuid::new_v4(), "bob", "fits again").await.unwrap();
    let error = mallory.send(Uuid::new_v4(), "bob", "too much").await.unwrap_err();
    assert_eq!(reason(&error), "QUOTA_EXCEEDED", "{error}");
}

/// Uses up all but `left` bytes of the volume of a directory.
fn fill(dir: &Path, left: u64) {
    let volume = rustix::fs::statvfs(dir).unwrap();
    let free = volume.f_bavail * volume.f_frsize;
    let file = fs::File::create(dir.join("filler")).unwrap();
    let piece = vec![7; 1 << 20];
    for at in 0..free.saturating_sub(left) >> 20 {
        file.write_all_at(&piece, at << 20).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_fills_the_volumes_stops_growth_and_nothing_else() {
    const VOLUME_MIB: u32 = 96;
    let mut cluster = Cluster::prepared(3);
    let mut volumes = Vec::new();
    for node in 0..cluster.len() {
        match Volume::mount(&cluster[node].data_dir(), VOLUME_MIB) {
            Ok(volume) => volumes.push(volume),
            Err(why) => {
                eprintln!("SKIPPED: small volumes are not tested: tmpfs cannot be mounted here: {why}");
                return;
            }
        }
    }
    cluster.start_all().await;
    let (_, mallory) = cluster.register("mallory").await;
    let (_, bob) = cluster.register("bob").await;
    let leader = cluster.leader().await;
    let bob_there = cluster.direct(leader, &bob);
    let kept = bob_there.send(Uuid::new_v4(), "mallory", "before").await.unwrap();
    for node in 0..cluster.len() {
        fill(&cluster[node].data_dir(), 24 << 20);
    }
    // Mallory sends until nothing is accepted any more.
    let mallory = cluster.direct(leader, &mallory);
    let body = "x".repeat(16 * 1024);
    let mut sent = 0;
    let error = loop {
        match mallory.send(Uuid::new_v4(), "bob", &body).await {
            Ok(_) => sent += 1,
            // A leader that is low on space transfers leadership to a node that is not.
            Err(error) if reason(&error) != "STORAGE_LOW" => {
                eprintln!("in between: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => break error,
        }
        assert!(sent < 2000, "24 MiB take no 32");
    };
    assert_eq!(reason(&error), "STORAGE_LOW");

    for round in 0..2 {
        // Every node is running, and does everything except growing.
        eventually("deletion, reading and login", async || {
            for node in 0..cluster.len() {
                let bob = cluster.direct(node, &bob);
                let page = bob.read("mallory", Consistency::Linearizable).await.map_err(|error| error.to_string())?;
                assert!(!page.messages.is_empty());
                bob.login("bob", PASSWORD).await.map_err(|error| error.to_string())?;
                bob.delete(vec![kept.message_id], true).await.map_err(|error| error.to_string())?;
            }
            Ok(())
        })
        .await;
        let leader = cluster.leader().await;
        let refused = cluster.direct(leader, &bob);
        eventually("growth is refused", async || match refused.send(Uuid::new_v4(), "mallory", &body).await {
            Err(error) if reason(&error) == "STORAGE_LOW" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        // All nodes restart with the remaining space.
        if round == 0 {
            for node in 0..cluster.len() {
                cluster[node].kill();
            }
            cluster.start_all().await;
        }
    }
    for node in 0..cluster.len() {
        fs::remove_file(cluster[node].data_dir().join("filler")).unwrap();
    }
    eventually("growth is possible again", async || {
        let leader = cluster.leader().await;
        let bob = cluster.direct(leader, &bob);
        bob.send(Uuid::new_v4(), "mallory", "after").await.map_err(|error| error.to_string())
    })
    .await;
}
