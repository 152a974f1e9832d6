//! Minutes of `kill -9` at random moments, under the verifying workload.
//!
//! The choices come from a seed, which is printed; their timing does not. The test takes a minute, unless
//! `CHAT_TEST_KILL_SECONDS` sets another time. `CHAT_TEST_SEED` repeats the choices.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use client::Options;
use tokio::time::sleep;
use verify::{checker::check, workload};

use super::{digest::listed, members::voters};
use support::{Cluster, eventually};

const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
/// Maximum times: between two kills, of a node's downtime, and until a starting node is killed again.
const BETWEEN_MS: u64 = 1500;
const DOWN_MS: u64 = 2000;
const STARTING_MS: u64 = 600;
/// One in this many nodes that are killed alone also loses its disk.
const LOSES_DISK: u64 = 5;

fn setting(key: &str, default: u64) -> u64 {
    std::env::var(key).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key}={text} is no number")))
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.below(most_ms + 1))).await;
    }
}

/// Kills a node, and asserts that it was still running.
fn kill(cluster: &mut Cluster, node: usize) {
    assert!(!cluster[node].has_ended(), "{} ended by itself: {}", cluster[node].name, cluster[node].log());
    cluster[node].kill();
}

/// Kills one or two nodes and starts them again, perhaps several times before they are ready. Returns a description.
async fn round(cluster: &mut Cluster, chance: &mut Chance) -> String {
    let first = chance.below(5) as usize;
    let second = (first + 1 + chance.below(4) as usize) % 5;
    let victims = if chance.below(2) == 0 { vec![first] } else { vec![first, second] };
    for victim in &victims {
        kill(cluster, *victim);
        chance.pause(BETWEEN_MS / 4).await;
    }
    chance.pause(DOWN_MS).await;
    let lost = victims.len() == 1 && chance.below(LOSES_DISK) == 0;
    if lost {
        let asked = (first + 1) % 5;
        let before = voters(cluster, asked, &NAMES).await;
        std::fs::remove_dir_all(cluster[first].data_dir()).unwrap();
        cluster[first].start();
        // Another node goes down meanwhile. Together with the lost identity, that makes two.
        kill(cluster, second);
        chance.pause(DOWN_MS).await;
        cluster[second].start();
        eventually("the lost identity is replaced", async || {
            let now = voters(cluster, (first + 2) % 5, &NAMES).await;
            (now[first] != before[first]).then_some(()).ok_or_else(|| format!("{now:?}"))
        })
        .await;
        return format!("{} lost its disk, {} was killed meanwhile", NAMES[first], NAMES[second]);
    }
    let mut starts = 0;
    for victim in &victims {
        cluster[*victim].start();
        for _ in 0..chance.below(3) {
            chance.pause(STARTING_MS).await;
            kill(cluster, *victim);
            cluster[*victim].start();
            starts += 1;
        }
    }
    let names: Vec<&str> = victims.iter().map(|victim| NAMES[*victim]).collect();
    format!("{names:?} killed, {starts} times more while starting")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_promises_are_kept_while_up_to_two_nodes_are_killed_at_any_moment() {
    let seconds = setting("CHAT_TEST_KILL_SECONDS", 60);
    let seed = setting("CHAT_TEST_SEED", u64::from(getrandom::u32().unwrap()));
    println!("CHAT_TEST_SEED={seed} CHAT_TEST_KILL_SECONDS={seconds}");
    let mut cluster = Cluster::prepared(5);
    // Frequent, so that kills hit them: comparisons, snapshots, and purges of the log.
    cluster.set_all("CHAT_DIGEST_INTERVAL_S", "1");
    cluster.set_all("CHAT_SNAPSHOT_LOG_MB", "1");
    cluster.set_all("CHAT_LOG_ENTRIES_KEPT", "100");
    cluster.start_all().await;
    let (witness, token) = cluster.register("witness").await;
    let addresses: Vec<String> = (0..5).map(|node| cluster[node].grpc.to_string()).collect();
    let plan = workload::Plan { clients: 6, duration: Duration::from_secs(seconds), seed };
    let load = tokio::spawn(workload::run(addresses, Options::default(), plan));
    let (began, mut chance, mut rounds) = (Instant::now(), Chance(seed), 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        chance.pause(BETWEEN_MS).await;
        let done = round(&mut cluster, &mut chance).await;
        println!("{:>6.1} s: {done}", began.elapsed().as_secs_f64());
        rounds += 1;
    }
    cluster.start_all().await;
    let history = load.await.unwrap().unwrap();
    let report = check(&history);
    assert_eq!(report.violations, [], "seed {seed}");
    assert_eq!(report.proved_nothing(), None, "seed {seed}");
    assert_eq!(report.nodes_read_back, 5, "all nodes are back at the end");
    println!(
        "{rounds} rounds: {} messages acknowledged, {} of unknown fate, the longest outage took {} ms",
        report.acknowledged,
        report.unknown,
        report.longest_outage_us / 1000
    );

    // Everything is still there, in the same state, on all nodes.
    let last = witness.send_message("witness", "last").await.unwrap();
    cluster.level(&token, last.revision).await;
    eventually("equal digests at one revision", async || {
        let mut seen = BTreeSet::new();
        for node in cluster.up() {
            let answer = listed(&cluster, node).await?;
            assert_eq!(answer.digest.len(), 32);
            seen.insert((answer.revision, answer.digest));
        }
        let revisions: BTreeSet<u64> = seen.iter().map(|(revision, _)| *revision).collect();
        assert!(seen.len() == revisions.len(), "two digests at one revision, seed {seed}: {seen:?}");
        (seen.len() == 1).then_some(()).ok_or_else(|| format!("{revisions:?}"))
    })
    .await;
    for node in cluster.up() {
        assert!(!cluster[node].has_ended());
        // No node suspected a state or quarantined a disk without reason.
        let errors = cluster[node].errors();
        let wrong =
            |line: &&String| line.contains("different states") || line.contains("failed their integrity checks");
        assert_eq!(errors.iter().find(wrong), None, "seed {seed}");
    }
}
