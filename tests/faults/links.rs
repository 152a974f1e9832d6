//! Links that drop, delay or lose data: the nodes behind them delay no others, and recover when the links do.

use std::time::{Duration, Instant};

use client::{Client, Consistency};
use uuid::Uuid;

use support::{Cluster, Workload, eventually, links::Link};

/// Number of messages of each sender that are measured.
const MESSAGES: u64 = 30;
/// Limit for a send while a follower is behind a faulty link: without an election or a timeout caused by it.
const LIMIT: Duration = Duration::from_millis(600);

/// Indexes of the first and the last entry of a node's log.
fn log_range(cluster: &Cluster, node: usize) -> (u64, u64) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let log = rusqlite::Connection::open_with_flags(cluster[node].data_dir().join("log.db"), flags).unwrap();
    let range = "SELECT coalesce(min(idx), 0), coalesce(max(idx), 0) FROM entry";
    log.query_row(range, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// Sends this number of bytes to the sender itself. Returns the leader's peak memory meanwhile.
async fn load(cluster: &Cluster, leader: usize, client: &Client, bytes: usize) -> u64 {
    const BODY_BYTES: usize = 16 * 1024;
    const AT_ONCE: usize = 64;
    let body = "x".repeat(BODY_BYTES);
    let mut peak = 0;
    for _ in 0..bytes / BODY_BYTES / AT_ONCE {
        let sends = (0..AT_ONCE).map(|_| client.send_message("alice", &body));
        futures_util::future::try_join_all(sends).await.unwrap();
        peak = peak.max(cluster[leader].memory_bytes());
    }
    peak
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_never_answer_hold_up_neither_sends_nor_the_log_nor_memory() {
    const SENT_BYTES: usize = 64 << 20;
    const MEASURED_BYTES: usize = 2 * SENT_BYTES;
    /// Half of the measured bytes. An unbounded queue would contain all of them, for each of the two followers. Without
    /// one, up to 60 MiB that are freed and not yet given back come and go over ten such loads.
    const MEMORY_GROWTH_MAX: u64 = MEASURED_BYTES as u64 / 2;
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.set_all("CHAT_SNAPSHOT_LOG_MB", "8");
    cluster.set_all("CHAT_LOG_ENTRIES_KEPT", "10");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let leader = cluster.leader().await;
    let term = cluster[leader].metric("chat_raft_term").await;
    // Caches fill regardless of the other nodes.
    let healthy = load(&cluster, leader, &alice, SENT_BYTES).await;
    let workload = Workload::start(&cluster, 3, false).await;
    workload.advance(MESSAGES).await;
    let usual = workload.longest();
    let stuck: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).take(2).collect();
    // One receives everything but its answers are lost, the other receives nothing.
    links.outgoing(stuck[0], Link::SILENT);
    links.around(stuck[1], Link::SILENT);
    let (_, last_before) = log_range(&cluster, leader);
    workload.advance(MESSAGES).await;
    let longest = workload.longest();
    println!("the slowest send took {longest:?}, before {usual:?}");
    assert!(longest < LIMIT + usual, "the slowest send took {longest:?}, before {usual:?}");

    // The queues for a stuck follower fill up once, and grow no further.
    let filled = load(&cluster, leader, &alice, SENT_BYTES).await;
    let peak = load(&cluster, leader, &alice, MEASURED_BYTES).await;
    println!("the leader's memory: {} MiB without faults, then {}, {}", healthy >> 20, filled >> 20, peak >> 20);
    assert!(peak < filled + MEMORY_GROWTH_MAX, "the leader's memory grew from {filled} to {peak}");
    // This load triggered many snapshots. The last ones cover entries that the two never received.
    eventually("the log is cut", async || {
        workload.advance(5).await;
        let (first, last) = log_range(&cluster, leader);
        println!("the log: {first}..{last}, {last_before} when the two got stuck");
        if first > last_before {
            return Ok(());
        }
        Err(format!("it goes from {first} to {last}, and the two got nothing after about {last_before}"))
    })
    .await;
    assert_eq!(cluster[leader].metric("chat_raft_term").await, term, "there was an election");
    links.heal();
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    let sent = alice.send_message("alice", "after").await.unwrap();
    cluster.level(&token, sent.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_behind_slow_and_lossy_links_hold_up_nobody() {
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 3, false).await;
    workload.advance(MESSAGES).await;
    let (leader, usual) = (cluster.leader().await, workload.longest());
    let term = cluster[leader].metric("chat_raft_term").await;
    let behind: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).take(2).collect();
    for bad in [[Link::delayed(300), Link::lossy(0.3)], [Link::lossy(0.3), Link::CUT]] {
        for (node, link) in behind.iter().zip(bad) {
            links.around(*node, link);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(4) {
            workload.advance(MESSAGES).await;
        }
        let longest = workload.longest();
        println!("{bad:?}: the slowest send took {longest:?}, before {usual:?}");
        assert!(longest < LIMIT + usual, "{bad:?}: the slowest send took {longest:?}, before {usual:?}");
        assert_eq!(cluster[leader].metric("chat_raft_term").await, term, "there was an election");
    }
    links.heal();
    let report = workload.finish().await;
    assert_eq!(report.failures, []);
    let sent = alice.send_message("alice", "after").await.unwrap();
    cluster.level(&token, sent.revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_behind_a_bad_link_serves_slowly_or_is_replaced_and_nothing_is_read_stale() {
    const ROUNDS: usize = 3;
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 2, true).await;
    for (what, bad) in [("300 ms", Link::delayed(300)), ("30 % loss", Link::lossy(0.3)), ("silence", Link::SILENT)] {
        let mut newest = alice.send_message("alice", what).await.unwrap();
        let leader = cluster.leader().await;
        let pinned = cluster.direct(leader, &token);
        // In the last case only the leader's messages are lost: the node still receives those of the others.
        if bad == Link::SILENT {
            links.outgoing(leader, bad)
        } else {
            links.around(leader, bad)
        };
        let started = Instant::now();
        let mut answered = 0;
        for _ in 0..ROUNDS {
            newest = alice.send_message("alice", what).await.unwrap();
            match pinned.read("alice", Consistency::Linearizable).await {
                Ok(page) => {
                    answered += 1;
                    assert!(page.last_seq >= newest.seq, "{what}: read {} after {}", page.last_seq, newest.seq);
                }
                Err(error) => {
                    assert!(error.is_unavailable() || error.code == tonic::Code::DeadlineExceeded, "{error:?}")
                }
            }
        }
        println!("{what}: {ROUNDS} sends and {answered} reads at the old leader took {:?}", started.elapsed());
        workload.advance(5).await;
        links.heal();
        cluster.level(&token, newest.revision).await;
    }
    let report = workload.finish().await;
    println!("{} messages, the slowest took {:?}", report.acknowledged, report.longest);
    for failure in report.failures {
        assert!(failure.is_unavailable() || failure.outcome_unknown, "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_but_hears_nobody_is_replaced() {
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let before = alice.send_message("alice", "before").await.unwrap();
    let leader = cluster.leader().await;
    for other in cluster.up() {
        links.set(other, leader, Link::SILENT);
    }
    let started = Instant::now();
    let after = alice.send_message("alice", "after").await.unwrap();
    println!("sent {:?} after the leader became deaf", started.elapsed());
    assert_eq!(after.seq, before.seq + 1);
    links.heal();
    cluster.level(&token, after.revision).await;
}

/// The time until each node has first acknowledged a send, counted from `healed`.
async fn sends_again(cluster: &Cluster, token: &str, healed: Instant) -> Vec<Duration> {
    let sends = cluster.directs(token).into_iter().enumerate().map(|(node, direct)| async move {
        eventually(&format!("a send through n{}", node + 1), async || {
            direct.send(Uuid::new_v4(), "alice", "after").await.map_err(|error| error.to_string())
        })
        .await;
        healed.elapsed()
    });
    futures_util::future::join_all(sends).await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_links_are_well_again_sends_go_through_all_nodes_soon() {
    /// Long enough for every backoff to reach its maximum.
    const HOLDS: Duration = Duration::from_secs(6);
    /// Time from the repair to an acknowledged send: the guaranteed limit, and what unoptimized code can achieve.
    const AGAIN_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 3_000 } else { 1_500 });
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.start_all().await;
    let (_, token) = cluster.register("alice").await;
    // Partitions of two, two and one nodes: none has a majority.
    for (what, link) in [("silence", Link::SILENT), ("cuts", Link::CUT)] {
        let leader = cluster.leader().await;
        let part = |node: usize| (node + cluster.len() - leader) % cluster.len() / 2;
        let pairs = (0..cluster.len()).flat_map(|from| (0..cluster.len()).map(move |to| (from, to)));
        pairs.filter(|(from, to)| part(*from) != part(*to)).for_each(|(from, to)| links.set(from, to, link));
        tokio::time::sleep(HOLDS).await;
        links.heal();
        let took = sends_again(&cluster, &token, Instant::now()).await;
        println!("three parts by {what}: sends go through the nodes after {took:?}");
        assert!(took.iter().all(|time| *time < AGAIN_MAX), "three parts by {what}: {took:?}");
    }
    for (what, link) in [("600 ms each", Link::delayed(600)), ("30 % loss", Link::lossy(0.3))] {
        (0..cluster.len()).for_each(|node| links.around(node, link));
        tokio::time::sleep(HOLDS).await;
        links.heal();
        let took = sends_again(&cluster, &token, Instant::now()).await;
        println!("{what}: sends go through the nodes after {took:?}");
        assert!(took.iter().all(|time| *time < AGAIN_MAX), "{what}: {took:?}");
    }
}
