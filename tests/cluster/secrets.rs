//! Secrets that must never be in a log, at any log level.

use uuid::Uuid;

use support::{Cluster, Collector, eventually};

const PASSWORD: &str = "hunter2-and-some-more";
const WRONG: &str = "not-hunter2-but-wrong";
const PEER_SECRET: &str = "between-us-nodes-only";
const COLLECTOR_KEY: &str = "key-of-the-collector";
const BODY: &str = "meet-me-behind-the-shed";

/// Asserts that none of `secrets` is in the logs of the nodes.
fn must_not_be_in(logs: &str, secrets: &[&str]) {
    for secret in secrets {
        let line = logs.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?} is in the log: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_token_secret_or_message_is_logged_even_at_the_finest_level() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::prepared(3);
    for (key, value) in [
        ("CHAT_LOG_LEVEL", "trace"),
        ("CHAT_HEARTBEAT_LOG_LEVEL", "trace"),
        ("CHAT_PEER_SECRET", PEER_SECRET),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", collector.address)),
        ("OTEL_EXPORTER_OTLP_HEADERS", &format!("api-key={COLLECTOR_KEY}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ] {
        cluster.set_all(key, value);
    }
    cluster.start_all().await;
    let alice = cluster.client().await;
    alice.create_account("alice", PASSWORD).await.unwrap();
    let token = alice.login("alice", PASSWORD).await.unwrap().token;
    cluster.level(&token, 0).await;
    for node in 0..3 {
        let direct = cluster.direct(node, &token);
        direct.send(Uuid::new_v4(), "alice", BODY).await.unwrap();
        direct.login("alice", WRONG).await.unwrap_err();
        cluster.direct(node, &token[1..]).send(Uuid::new_v4(), "alice", BODY).await.unwrap_err();
    }
    let mut events = alice.events(Some(0));
    tokio::time::timeout(support::PATIENCE, events.next()).await.expect("an event comes").unwrap().unwrap();
    eventually("spans were exported", async || match collector.taken().len() {
        0 => Err("none yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    // A restart replays the log.
    for node in 0..3 {
        cluster[node].kill();
        cluster.restart(node).await;
    }
    let logs: String = (0..3).map(|node| cluster[node].log()).collect();
    assert!(logs.contains(" - TRACE - ") && logs.contains(" - DEBUG - "), "the levels are in effect");
    must_not_be_in(&logs, &[PASSWORD, WRONG, &token, &token[1..], PEER_SECRET, COLLECTOR_KEY, BODY]);
    let (_, shown) = cluster[0].chatd(&["config"]);
    assert!(shown.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{shown}");
    must_not_be_in(&shown, &[PEER_SECRET, COLLECTOR_KEY]);
    must_not_be_in(&format!("{:?}", collector.taken()), &[PASSWORD, WRONG, &token, PEER_SECRET, COLLECTOR_KEY, BODY]);
}
