//! `chatctl verify` against five processes, two of which are killed repeatedly.

use std::{
    fs::File,
    io::BufReader,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use verify::{
    checker::{Kind, check},
    history::{Action, History, Outcome},
};

use support::{Cluster, eventually};

/// Duration of the load, in seconds.
const SECONDS: u64 = 8;
const SEED: u64 = 20_261_124;

fn verify(cluster: &Cluster, history: &Path) -> Child {
    let nodes: Vec<String> = (0..cluster.len()).map(|node| cluster[node].grpc.to_string()).collect();
    Command::new(support::chatctl())
        .args(["verify", "--output", "json", "--clients", "4"])
        .args(["--seconds", &SECONDS.to_string(), "--seed", &SEED.to_string(), "--nodes", &nodes.join(",")])
        .arg("--history")
        .arg(history)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The account's latest message that was acknowledged and is still visible to all.
fn victim(history: &History) -> u64 {
    let deleted = |id: u64| {
        let mut actions = history.records.iter().map(|record| &record.action);
        actions.any(|action| matches!(action, Action::Delete { messages, .. } if messages.contains(&id)))
    };
    let acknowledged = history.records.iter().rev().filter_map(|record| match &record.action {
        Action::Send { outcome: Outcome::Ok(stored), .. } => Some(stored.message),
        _ => None,
    });
    acknowledged.into_iter().find(|id| !deleted(*id)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_promises_are_kept_while_two_nodes_at_a_time_are_killed_and_a_loss_would_be_seen() {
    let mut cluster = Cluster::five().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let run = tokio::spawn(verify(&cluster, &path).wait_with_output());
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(SECONDS) {
        let leader = cluster.leader().await;
        // A different follower each time, so that all nodes are killed in turn.
        let other = (leader + 1 + rounds % (cluster.len() - 1)) % cluster.len();
        cluster[leader].kill();
        cluster[other].kill();
        // The remaining three elect a leader before the two return.
        cluster.leader().await;
        cluster.restart(leader).await;
        cluster.restart(other).await;
        rounds += 1;
    }
    let output = run.await.unwrap().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one JSON object");
    for count in ["lost", "duplicated", "reordered", "phantom", "stale_reads", "resume_gaps"] {
        assert_eq!(report[count], 0, "{count}: {stdout}");
    }
    assert!(report["acknowledged"].as_u64().unwrap() > 0, "{stdout}");
    assert!(report["unknown"].is_u64() && report["longest_outage_ms"].as_u64().unwrap() > 0, "{stdout}");
    assert_eq!((&report["seed"], &report["clients"]), (&SEED.into(), &4.into()));
    assert_eq!(report["nodes_read_back"], 5, "all nodes are back at the end: {stdout}");
    assert!(rounds > 0);
    println!("{rounds} times two nodes were killed: {stdout}");

    // The same run, with one acknowledged message missing at the end.
    let mut history = History::read(BufReader::new(File::open(&path).unwrap())).unwrap();
    assert_eq!(check(&history).violations, []);
    let id = victim(&history);
    for record in &mut history.records {
        if let Action::Read { last: true, outcome: Outcome::Ok(page), .. } = &mut record.action {
            page.messages.retain(|seen| seen.message != id);
        }
    }
    let found = check(&history);
    assert_eq!((found.lost, found.count(Kind::Lost)), (1, 1), "{:?}", found.violations);
    assert!(found.violations[0].example.contains(&format!("message {id}")), "{:?}", found.violations);
}

/// Starts `chatctl verify` with two clients, and waits until their accounts exist.
async fn in_flight(cluster: &Cluster, options: &[&str]) -> Child {
    let (_, token) = cluster.register("witness").await;
    let revision = cluster.level(&token, 0).await;
    let nodes: Vec<String> = (0..cluster.len()).map(|node| cluster[node].grpc.to_string()).collect();
    let run = Command::new(support::chatctl())
        .args(["verify", "--clients", "2", "--nodes", &nodes.join(",")])
        .args(options)
        .kill_on_drop(true)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("messages of the workload", async || {
        let now = cluster.direct(0, &token).local().await.map_err(|error| error.to_string())?.revision;
        if now > revision + 40 { Ok(()) } else { Err(format!("at {now}")) }
    })
    .await;
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_can_read_nothing_back_is_not_called_good() {
    const INCONCLUSIVE: i32 = 6;
    let mut cluster = Cluster::five().await;
    let run = in_flight(&cluster, &["--seconds", "3", "--timeout", "2"]).await;
    // The majority dies for good.
    (0..3).for_each(|node| cluster[node].kill());
    let output = run.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(INCONCLUSIVE), "{stderr}");
    assert!(stderr.contains("nothing was proven: no node could be read back"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_interrupted_reads_back_and_judges_what_it_did() {
    let cluster = Cluster::five().await;
    let run = in_flight(&cluster, &["--seconds", "3600", "--output", "json"]).await;
    let pid = Pid::from_raw(run.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = run.wait_with_output().await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert!(report["acknowledged"].as_u64().unwrap() > 0 && report["nodes_read_back"] == 5, "{stdout}");
    assert!(report["seconds"].as_f64().unwrap() < 3600.0, "{stdout}");
}
