//! Disks that are full, faulty or read-only: the node stops, logs the reason, and recovers when the disk works again.

use std::{path::Path, process::Command};

use support::volume::Volume;
use support::{Cluster, Workload, eventually};

/// Number of messages of each sender between two faults.
const BETWEEN_FAULTS: u64 = 5;

/// Exit codes of `chatd`.
const DATA_DIR: i32 = 73;
const STORAGE: i32 = 74;
const FULL: i32 = 75;

const EIO: &str = "5";
const ENOSPC: &str = "28";
const EROFS: &str = "30";

/// The reason why a node ended: the last line of its log, ignoring openraft's messages about it.
fn last_error(cluster: &Cluster, node: usize) -> String {
    let log = cluster[node].log();
    let last = log.lines().next_back().unwrap_or_default();
    assert!(last.contains(" - ERROR - "), "a node that fails says why: {last}");
    last.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_full_volume_serves_what_it_has_and_goes_on_when_there_is_space() {
    const VOLUME_MIB: u32 = 48;
    let (mut cluster, _, _) = Cluster::fragile().await;
    let mut volumes = Vec::new();
    for node in 0..cluster.len() {
        match Volume::mount(&cluster[node].data_dir(), VOLUME_MIB) {
            Ok(volume) => volumes.push(volume),
            Err(why) => {
                eprintln!("SKIPPED: full and read-only volumes are not tested: tmpfs cannot be mounted here: {why}");
                return;
            }
        }
    }
    cluster.start_all().await;
    let (_, token) = cluster.register("witness").await;
    let workload = Workload::start(&cluster, 2, true).await;
    for leads in [false, true] {
        workload.advance(BETWEEN_FAULTS).await;
        let victim = if leads { cluster.leader().await } else { cluster.follower().await };
        let already = cluster[victim].log().matches("The volume is full").count();
        volumes[victim].fill();
        // A write fails, or the node stops accepting entries before that. When it is started again without space, it
        // releases the reserve file.
        workload.advance(BETWEEN_FAULTS).await;
        eventually("it serves what it has", async || {
            if cluster[victim].has_ended() {
                assert_eq!(cluster[victim].exit_code().await, FULL, "{:?}", cluster[victim].errors());
                let error = last_error(&cluster, victim);
                assert!(error.contains("log.db") || error.contains("chat.db"), "{error}");
                cluster[victim].start();
            }
            let full = cluster[victim].log().matches("The volume is full").count() > already;
            cluster.direct(victim, &token).local().await.map_err(|error| error.to_string())?;
            full.then_some(()).ok_or_else(|| "it has not noticed that its volume is full".into())
        })
        .await;
        workload.advance(BETWEEN_FAULTS).await;
        volumes[victim].make_room();
        cluster.level(&token, 0).await;
        cluster[victim].kill();

        // A volume that was remounted read-only is detected at the start.
        volumes[victim].read_only(true);
        cluster[victim].start();
        assert_eq!(cluster[victim].exit_code().await, DATA_DIR, "{:?}", cluster[victim].errors());
        assert!(last_error(&cluster, victim).contains("Read-only file system"));
        volumes[victim].read_only(false);
        cluster.restart(victim).await;
        workload.advance(BETWEEN_FAULTS).await;
    }
    let report = workload.finish().await;
    assert_eq!(report.failures, [], "the library hides all of it");
    cluster.level(&token, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_stops_its_node_with_a_code_that_tells_why() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (_, token) = cluster.register("witness").await;
    let workload = Workload::start(&cluster, 2, true).await;
    let cases = [
        (false, "write log.db-wal", EIO, STORAGE, "writing log.db"),
        (true, "sync log.db-wal", EIO, STORAGE, "writing log.db"),
        (true, "write log.db-wal", ENOSPC, FULL, "writing log.db"),
        (true, "write log.db-wal", EROFS, STORAGE, "writing log.db"),
        (false, "write chat.db-wal", EIO, STORAGE, "chat.db"),
        (true, "write chat.db-wal", ENOSPC, FULL, "chat.db"),
    ];
    for (leads, rule, errno, code, reason) in cases {
        workload.advance(BETWEEN_FAULTS).await;
        let victim = if leads { cluster.leader().await } else { cluster.follower().await };
        faults[victim].set(&[&format!("{rule} {errno}")]);
        assert_eq!(cluster[victim].exit_code().await, code, "{rule} {errno}: {:?}", cluster[victim].errors());
        assert!(last_error(&cluster, victim).contains(reason), "{rule} {errno}: {:?}", cluster[victim].errors());
        workload.advance(BETWEEN_FAULTS).await;
        faults[victim].heal();
        cluster.restart(victim).await;
    }
    workload.advance(BETWEEN_FAULTS).await;
    let report = workload.finish().await;
    assert_eq!(report.failures, [], "the library hides all of it");
    cluster.level(&token, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_before_its_node_belongs_to_a_cluster_stops_it_too() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    let victim = 2;
    cluster[victim].start();
    eventually("it waits for the others", async || {
        let log = cluster[victim].log();
        log.contains("Waiting for the cluster").then_some(()).ok_or(log)
    })
    .await;
    faults[victim].set(&[&format!("write log.db-wal {EIO}")]);
    for node in (0..cluster.len()).filter(|node| *node != victim) {
        cluster[node].start();
    }
    // Its identity is the first data that it has to write.
    assert_eq!(cluster[victim].exit_code().await, STORAGE, "{:?}", cluster[victim].errors());
    assert!(last_error(&cluster, victim).contains("log.db"), "{:?}", cluster[victim].errors());
    faults[victim].heal();
    cluster[victim].start();
    let (_, token) = cluster.register("witness").await;
    cluster.level(&token, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_behind_the_write_ahead_log_is_noticed_too() {
    /// A checkpoint moves a node's pages from the write-ahead log into the file after 16 MiB.
    const BODY: usize = 16 * 1024;
    const MESSAGES_MAX: usize = 4000;
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let cases = [
        ("write =log.db", EIO, STORAGE, "writing log.db: disk I/O error"),
        ("sync =chat.db", EIO, STORAGE, "chat.db: checkpoint the state: disk I/O error"),
        ("write =log.db", ENOSPC, FULL, "writing log.db: database or disk is full"),
        ("write =chat.db", ENOSPC, FULL, "chat.db: checkpoint the state: database or disk is full"),
    ];
    for (rule, errno, code, reason) in cases {
        let victim = cluster.follower().await;
        faults[victim].set(&[&format!("{rule} {errno}")]);
        let body = "x".repeat(BODY);
        let mut sent = 0;
        while !cluster[victim].has_ended() {
            assert!(sent < MESSAGES_MAX, "{rule}: nobody noticed");
            let sends = (0..16).map(|_| alice.send_message("alice", &body));
            futures_util::future::try_join_all(sends).await.unwrap();
            sent += 16;
        }
        assert_eq!(cluster[victim].exit_code().await, code, "{rule} {errno}: {:?}", cluster[victim].errors());
        let error = last_error(&cluster, victim);
        assert!(error.contains(reason), "{rule} {errno}: {error}");
        faults[victim].heal();
        cluster.restart(victim).await;
        cluster.level(&token, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_not_cut_behind_a_state_that_cannot_be_flushed() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    alice.send_message("alice", "hello").await.unwrap();
    let victim = cluster.follower().await;
    faults[victim].set(&[&format!("sync chat.db-wal {EIO}")]);
    cluster[victim].snapshot().await.expect_err("it cannot be built");
    assert_eq!(cluster[victim].exit_code().await, STORAGE, "{:?}", cluster[victim].errors());
    assert!(last_error(&cluster, victim).contains("chat.db-wal"), "{:?}", cluster[victim].errors());
    faults[victim].heal();
    cluster.restart(victim).await;
    cluster.level(&token, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_received_is_sent_again() {
    let (mut cluster, faults, _) = Cluster::fragile().await;
    cluster.set_all("CHAT_LOG_ENTRIES_KEPT", "1");
    cluster.set_all("CHAT_LOG_LEVEL", "debug");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    for number in 0..20 {
        alice.send_message("alice", &format!("message {number}")).await.unwrap();
    }
    let victim = cluster.follower().await;
    cluster[victim].kill();
    std::fs::remove_dir_all(cluster[victim].data_dir()).unwrap();
    for node in cluster.up() {
        cluster[node].snapshot().await.unwrap();
    }
    faults[victim].set(&[&format!("write *.tmp {ENOSPC}")]);
    cluster[victim].start();
    cluster[victim].logged("A snapshot of the leader was not installed").await;
    assert!(!cluster[victim].has_ended(), "{:?}", cluster[victim].errors());
    faults[victim].heal();
    cluster.level(&token, 0).await;
}

/// An open transaction of another process, like that of an operator's `sqlite3`. Here it belongs to the test.
fn lock(database: &Path) -> rusqlite::Connection {
    let mut conn =
        rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    // SQLite's own waits are longer than the moments between two transactions of a busy node.
    conn.busy_handler(Some(|attempts| {
        std::thread::yield_now();
        attempts < 10_000_000
    }))
    .unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    conn
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_process_is_waited_for_and_its_owner_named() {
    let mut cluster = Cluster::five().await;
    let (_, token) = cluster.register("witness").await;
    let workload = Workload::start(&cluster, 2, true).await;
    for name in ["log.db", "chat.db"] {
        workload.advance(BETWEEN_FAULTS).await;
        let victim = cluster.leader().await;
        let locked = lock(&cluster[victim].data_dir().join(name));
        cluster[victim].logged(&format!("{name} has been locked by ")).await;
        cluster[victim].logged(&format!("(process {})", std::process::id())).await;
        // Another node has become leader.
        workload.advance(BETWEEN_FAULTS).await;
        locked.execute_batch("ROLLBACK").unwrap();
        drop(locked);
        cluster[victim].logged(&format!("The disk responds again: a write to {name}")).await;
        cluster.level(&token, 0).await;
        assert!(!cluster[victim].has_ended(), "{name}");
    }
    let report = workload.finish().await;
    assert_eq!(report.failures, [], "the library hides all of it");
}

#[test]
fn too_few_open_files_are_no_failing_disk() {
    let cluster = Cluster::prepared(1);
    let node = cluster[0].command(&[]);
    let environment = node.get_envs().filter_map(|(key, value)| Some((key, value?)));
    let limited = "ulimit -n 24; exec \"$0\"";
    let started =
        Command::new("sh").arg("-c").arg(limited).arg(node.get_program()).env_clear().envs(environment).output();
    let output = started.unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(71), "{log}");
    assert!(log.contains("may open only 24 files, and needs 800: raise the limit (ulimit -n"), "{log}");
}
