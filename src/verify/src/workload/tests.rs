//! Tests of the workload without a cluster. The others are in `tests/cluster/verify.rs`.

use super::*;
use client::fake::Fake;

#[test]
fn tasks_have_random_numbers_of_their_own() {
    let first = |seed, task| actor::random(seed, task).u64(..);
    assert_eq!(first(7, 0), first(7, 0));
    let all: std::collections::HashSet<u64> =
        (0..50).flat_map(|seed| (0..50).map(move |task| first(seed, task))).collect();
    assert!(all.len() > 2_490, "{} of 2500 differ", all.len());
}

#[tokio::test]
async fn a_plan_that_cannot_be_is_refused() {
    for clients in [0, CLIENTS_MAX + 1] {
        let plan = Plan { clients, duration: Duration::from_secs(1), seed: 1 };
        let error = run(vec!["127.0.0.1:1".to_owned()], Options::default(), plan).await.expect_err("refused");
        assert_eq!(error.code, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn without_a_node_there_is_no_run() {
    let options = Options { deadline: Duration::from_millis(200), ..Options::default() };
    let plan = Plan { clients: 1, duration: Duration::from_secs(1), seed: 1 };
    let error = run(vec!["127.0.0.1:1".to_owned()], options, plan).await.expect_err("nobody is there");
    assert!(error.is_unavailable(), "{error:?}");
}

#[tokio::test]
async fn given_nodes_are_used_also_while_they_are_down_and_each_node_once() {
    let nodes = Fake::cluster(3).await;
    nodes[2].kill();
    // Nodes without a name look like one node: only the first of them counts.
    let given = vec![nodes[0].address.clone(), nodes[2].address.clone()];
    let setup = Client::connect(given.clone(), Options::default()).await.expect("one answers");
    let found = find_nodes(&setup, &given, &Options::default()).await.expect("listed");
    assert_eq!(found, given);
}

#[tokio::test]
async fn a_service_that_stores_and_shows_nothing_is_not_called_good() {
    // The fake acknowledges sends and has no reads, so the run proves nothing.
    let nodes = Fake::cluster(1).await;
    let options = Options { deadline: Duration::from_millis(300), ..Options::default() };
    let plan = Plan { clients: 2, duration: Duration::from_millis(200), seed: 3 };
    let history = run(vec![nodes[0].address.clone()], options, plan).await.expect("it runs");
    let report = crate::checker::check(&history);
    assert!(report.acknowledged > 0);
    assert!(report.proved_nothing().is_some_and(|why| why.contains("read back")));
}

#[tokio::test]
async fn a_load_that_is_stopped_ends_early_and_is_read_back() {
    let nodes = Fake::cluster(1).await;
    let options = Options { deadline: Duration::from_millis(300), ..Options::default() };
    let plan = Plan { clients: 2, duration: Duration::from_secs(3600), seed: 3 };
    // The delay begins with the load, when `stop` is first polled.
    let stop = async { tokio::time::sleep(Duration::from_millis(200)).await };
    let history = run_until(vec![nodes[0].address.clone()], options, plan, stop).await.expect("it runs");
    // Generous, because the machine may be busy. It only has to be much less than an hour.
    assert!((0.2..600.0).contains(&history.header.seconds), "{}", history.header.seconds);
    assert!((history.header.seconds * 1e6 - history.header.load_ended_us as f64).abs() < 2.0);
    let is_last = |record: &Record| matches!(record.action, Action::Read { last: true, .. });
    assert!(history.records.iter().any(is_last), "it was tried to read everything back");
    assert!(crate::checker::check(&history).acknowledged > 0);
}
