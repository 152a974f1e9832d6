//! What is kept of the log.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, PATIENCE, settings};
use crate::{LogKept, Settings};
use chat::{Command, limits};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_large_entries_are_cut_by_their_size() {
    const ENTRY: u64 = limits::PASSWORD_HASH_BYTES_MAX as u64;
    let log_kept = LogKept { entries: 1_000, bytes: 3 * ENTRY };
    let cluster = Cluster::start(1, Settings { log_kept, snapshot_log_bytes: ENTRY, ..settings(50, 300, 600) }).await;
    let member = &cluster.members[&1];
    for number in 0..10 {
        let command = Command::CreateAccount {
            username: format!("user{number}"),
            password_hash: "h".repeat(limits::PASSWORD_HASH_BYTES_MAX),
            request_id: None,
            invitation: None,
        };
        member.node.propose(command, None, Instant::now() + PATIENCE).await.expect("made");
    }
    // An entry is its hash and some bytes: two of them have room.
    let deadline = Instant::now() + PATIENCE;
    let kept = || member.log.bounds().0.zip(member.log.bounds().1).map(|(purged, last)| last.index - purged.index);
    while kept() != Some(2) {
        assert!(Instant::now() < deadline, "kept: {:?}", kept());
        sleep(Duration::from_millis(10)).await;
    }
    assert!(member.has_account("user0") && member.has_account("user9"));
}
