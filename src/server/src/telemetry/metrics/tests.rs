//! The names and the encoding of the metrics.

use std::time::Duration;

use super::*;

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
}

#[test]
fn values_are_encoded_with_the_node() {
    let metrics = Metrics::new("n1");
    metrics.set_raft(&RaftFigures { term: 3, is_leader: true, has_leader: true, applied_index: 7, ..<_>::default() });
    metrics.rpc_began("SendMessage");
    metrics.rpc_began("SendMessage");
    metrics.rpc_ended("SendMessage", "OK", "none", Duration::from_millis(2));
    metrics.clone().delivery.subscriptions.inc();
    metrics.storage.log_fsync_seconds.observe(0.001);
    let text = metrics.encode();
    for line in [
        "chat_raft_term{chat_node=\"n1\"} 3",
        "chat_raft_is_leader{chat_node=\"n1\"} 1",
        "chat_raft_applied_index{chat_node=\"n1\"} 7",
        "chat_rpc_requests_total{code=\"OK\",fault=\"none\",method=\"SendMessage\",chat_node=\"n1\"} 1",
        "chat_rpc_duration_seconds_count{method=\"SendMessage\",chat_node=\"n1\"} 1",
        "chat_rpc_in_flight{method=\"SendMessage\",chat_node=\"n1\"} 1",
        "chat_subscriptions{chat_node=\"n1\"} 1",
        "chat_log_fsync_seconds_count{chat_node=\"n1\"} 1",
    ] {
        has(&text, line);
    }
    let build = text.lines().find(|line| line.starts_with("chat_build_info{")).expect("build info");
    assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
    assert!(text.contains("\nprocess_resident_memory_bytes{chat_node=\"n1\"} "), "{text}");
}

#[test]
fn two_nodes_in_one_process_do_not_share_values() {
    let (first, second) = (Metrics::new("n1"), Metrics::new("n2"));
    first.delivery.subscriptions.set(5);
    has(&second.encode(), "chat_subscriptions{chat_node=\"n2\"} 0");
}

#[test]
fn what_a_leader_knows_is_absent_elsewhere() {
    let metrics = Metrics::new("n1");
    let peers = |names: &[(&str, Option<u64>)]| {
        names.iter().map(|(name, lag)| ((*name).to_owned(), Some(Duration::from_secs(1)), *lag)).collect()
    };
    let figures =
        LeaderFigures { failures_tolerated: 0, peers: peers(&[("n2", Some(9)), ("n3", None)]), ..<_>::default() };
    metrics.set_leader(Some(&figures));
    let text = metrics.encode();
    has(&text, "chat_raft_failures_tolerated{chat_node=\"n1\"} 0");
    has(&text, "chat_raft_peer_lag_entries{peer=\"n2\",chat_node=\"n1\"} 9");
    has(&text, "chat_raft_peer_silence_seconds{peer=\"n3\",chat_node=\"n1\"} 1");
    assert!(!text.contains("lag_entries{peer=\"n3\""), "{text}");

    metrics.set_leader(Some(&LeaderFigures { peers: peers(&[("n3", Some(0))]), ..figures }));
    let text = metrics.encode();
    has(&text, "chat_raft_peer_lag_entries{peer=\"n3\",chat_node=\"n1\"} 0");
    assert!(!text.contains("peer=\"n2\""), "it was removed: {text}");
    metrics.set_leader(None);
    let text = metrics.encode();
    assert!(!text.contains("chat_raft_failures_tolerated") && !text.contains("peer="), "{text}");
}

#[test]
fn names_follow_the_conventions() {
    let metrics = Metrics::new("n1");
    metrics.rpc_began("Login");
    metrics.rpc_ended("Login", "OK", "none", Duration::from_millis(100));
    metrics.set_leader(Some(&LeaderFigures {
        peers: vec![("n2".into(), Some(Duration::ZERO), Some(0))],
        ..<_>::default()
    }));
    metrics.add_proposals("failed", 1);
    metrics.add_refusals("messages", 1);
    metrics.heartbeat_answered("n2", Duration::ZERO);
    metrics.set_file_bytes("log.db", 1);
    metrics.backed_up();
    metrics.set_certificate_expiry("peers", std::time::SystemTime::now());
    let mut families = 0;
    for family in metrics.registry.gather() {
        families += 1;
        let (name, help) = (family.name(), family.help());
        assert!(name.starts_with("chat_"), "{name}");
        assert!(help.ends_with('.'), "{name}: {help}");
        assert!(documented(name), "docs/metrics.md does not know {name}");
        let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(counter, name.ends_with("_total"), "{name}");
    }
    assert_eq!(families, 58, "one was added or lost: count again, and look whether each was seen here");
    for family in metrics.process.gather() {
        let name = family.name();
        assert!(name.starts_with("process_") && documented(name), "docs/metrics.md does not know {name}");
    }
}

fn documented(name: &str) -> bool {
    include_str!("../../../../../docs/metrics.md").contains(&format!("| `{name}` |"))
}
