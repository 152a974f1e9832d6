//! Links that swallow, delay or lose: whoever is behind them holds up nobody, and comes back when they are well.

use std::time::{Duration, Instant};

use quorum_chat::client::{Client, Consistency};

use crate::support::{Cluster, Workload, eventually, links::Link};

/// Messages of each sender that are looked at.
const MESSAGES: u64 = 30;
/// What is asked of a send while a follower is behind a bad link: no election, no time-out on its account.
const LIMIT: Duration = Duration::from_millis(600);

/// Indexes of the first and the last entry that a node's log has.
fn log_range(cluster: &Cluster, node: usize) -> (u64, u64) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let log = rusqlite::Connection::open_with_flags(cluster[node].data_dir().join("log.db"), flags).unwrap();
    let range = "SELECT coalesce(min(idx), 0), coalesce(max(idx), 0) FROM entry";
    log.query_row(range, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// Sends so many bytes to the sender itself; the most memory that the leader had meanwhile.
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
    /// Half of what is sent: a queue that nobody bounds would take all of it, for each of the two.
    const MEMORY_GROWTH_MAX: u64 = 32 << 20;
    let (mut cluster, _, links) = Cluster::fragile().await;
    cluster.set_all("CHAT_SNAPSHOT_LOG_MB", "8");
    cluster.set_all("CHAT_LOG_ENTRIES_KEPT", "10");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let leader = cluster.leader().await;
    let term = cluster[leader].metric("chat_raft_term").await;
    // Caches fill, whatever the others do.
    let healthy = load(&cluster, leader, &alice, SENT_BYTES).await;
    let workload = Workload::start(&cluster, 3, false).await;
    workload.advance(MESSAGES).await;
    let usual = workload.longest();
    let stuck: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).take(2).collect();
    // One hears everything and its answers get lost, the other hears nothing.
    links.outgoing(stuck[0], Link::SILENT);
    links.around(stuck[1], Link::SILENT);
    let (_, last_before) = log_range(&cluster, leader);
    workload.advance(MESSAGES).await;
    let longest = workload.longest();
    println!("the slowest send took {longest:?}, before {usual:?}");
    assert!(longest < LIMIT + usual, "the slowest send took {longest:?}, before {usual:?}");

    // What may wait for a stuck follower fills up once, and no further.
    let filled = load(&cluster, leader, &alice, SENT_BYTES).await;
    let peak = load(&cluster, leader, &alice, SENT_BYTES).await;
    println!("the leader's memory: {} MiB without faults, then {}, {}", healthy >> 20, filled >> 20, peak >> 20);
    assert!(peak < filled + MEMORY_GROWTH_MAX, "the leader's memory grew from {filled} to {peak}");
    // Of the many snapshots that this much has led to, the last ones cover what the two never got.
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
        // For the last one, only what the leader says gets lost: it still hears the others.
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
