//! A membership change whose leader dies half-way is completed by the next leader.

use std::process::{Command, Stdio};

use prost::Message as _;
use proto::log::v1 as log;

use support::{Cluster, eventually, links::Link};

/// The voter sets in the newest membership of a node's log, committed or not.
fn voter_sets(cluster: &Cluster, node: usize) -> Vec<Vec<u64>> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(cluster[node].data_dir().join("log.db"), flags).unwrap();
    let mut statement = file.prepare("SELECT bytes FROM entry ORDER BY idx DESC").unwrap();
    let entries = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let payloads = entries.map(|bytes| log::Entry::decode(&*bytes.unwrap()).unwrap().payload);
    let newest = payloads.into_iter().find_map(|payload| match payload {
        Some(log::entry::Payload::Membership(membership)) => Some(membership),
        _ => None,
    });
    newest.unwrap().voters.into_iter().map(|set| set.node_ids).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_whose_leader_dies_half_way_is_finished_by_the_next() {
    let (mut cluster, _, links) = Cluster::fragile().await;
    // No other node takes over during the change, however slow the machine is.
    cluster.set_all("CHAT_ELECTION_MIN_MS", "2000");
    cluster.set_all("CHAT_ELECTION_MAX_MS", "4000");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let before = alice.send_message("alice", "before").await.unwrap();
    cluster.level(&token, before.revision).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = cluster.up().into_iter().filter(|node| *node != leader).collect();
    let (heir, removed) = (others[0], others[1]);
    let removed_id = removed as u64 + 1;
    // The leader's decision reaches one other node, and takes effect nowhere.
    for other in &others[1..] {
        links.set(leader, *other, Link::SILENT);
    }
    let mut command = Command::new(support::chatctl())
        .args(["--timeout", "20", "members", "remove", &cluster[removed].name, "--socket"])
        .arg(cluster[leader].data_dir().join("admin.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the change is in the log of one other", async || {
        let sets = voter_sets(&cluster, heir);
        (sets.len() == 2).then_some(()).ok_or_else(|| format!("{sets:?}"))
    })
    .await;
    assert!(others[1..].iter().all(|other| voter_sets(&cluster, *other).len() == 1), "it is half-way");
    // None of the remaining nodes can become leader without the one that has the entry.
    cluster[leader].kill();
    cluster[removed].kill();
    links.heal();
    command.wait().unwrap();

    eventually("the next leader finishes it", async || {
        let sets = voter_sets(&cluster, heir);
        let finished = sets.len() == 1 && sets[0].len() == 4 && !sets[0].contains(&removed_id);
        finished.then_some(()).ok_or_else(|| format!("{sets:?}"))
    })
    .await;
    let after = alice.send_message("alice", "after").await.unwrap();
    assert_eq!(after.seq, before.seq + 1);
    cluster[removed].start();
    assert_eq!(cluster[removed].exit_code().await, 77);
    cluster.restart(leader).await;
    cluster.level(&token, after.revision).await;
}
