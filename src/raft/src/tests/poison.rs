//! Invalid commands, which no member should make: rejected at the peer port, and harmless in the log.

use crate::tests::cluster::*;
use crate::{
    transport::peers::{Credentials, Lane, Peers},
    types::Payload,
};
use proto::{log::v1 as pb, raft::v1 as wire};

/// Bytes that are no batch, batches without commands, and invalid commands next to a valid one.
fn garbage() -> Vec<Vec<u8>> {
    use prost::Message as _;
    let batch = |command| {
        let proposal = |command| pb::Proposal { time_ms: u64::MAX, traceparent: String::new(), command };
        let good = storage::codec::encode_command(&create("with-garbage"));
        pb::Batch { proposals: vec![proposal(command), proposal(Some(good))], ..Default::default() }.encode_to_vec()
    };
    let short = pb::command::Kind::OpenSession(pb::OpenSession { token_hash: vec![1; 31], ..Default::default() });
    vec![
        Vec::new(),
        b"garbage".to_vec(),
        vec![0xff; 4096],
        batch(None),
        batch(Some(pb::Command { kind: None })),
        batch(Some(pb::Command { kind: Some(short) })),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_no_commands_are_rejected_alike_everywhere() {
    let cluster = Cluster::start(3, settings(50, 400, 800)).await;
    let leader = cluster.leader().await;
    let node = cluster.members[&leader].node.clone();
    make(&node, "before").await;
    for bytes in garbage() {
        node.raft().client_write(Payload(bytes.into())).await.expect("appended");
    }
    let revision = make(&node, "after").await;
    // The valid command among the invalid ones was applied once. The others of the same name were rejected.
    assert_eq!(revision.0, 3);
    cluster.caught_up(3).await;
    let digests = || -> Vec<_> { cluster.members.values().map(|member| member.node.digests()).collect() };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while digests().iter().any(|status| status.revision != revision) {
        assert!(tokio::time::Instant::now() < deadline, "the digests differ");
        tokio::task::yield_now().await;
    }
    let digests: Vec<_> = digests().into_iter().map(|status| status.digest).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_a_bad_command_is_refused_as_a_whole_and_names_it() {
    let cluster = Cluster::start(1, settings(50, 400, 800)).await;
    let member = &cluster.members[&1];
    let mut client = Peers::default().client(&member.address.to_string(), Lane::Forward).expect("a valid address");
    let ours = Credentials::new(CLUSTER, 2, "n2", "").expect("plain text");
    let forwarded = |command| wire::ForwardedCommand { command, ..Default::default() };
    let good = |name| forwarded(Some(storage::codec::encode_command(&create(name))));
    let last = member.node.status().last_log_index;
    let bad = [forwarded(None), forwarded(Some(pb::Command { kind: None })), good("Not A Name")];
    for bad in bad {
        let commands = vec![good("good"), bad.clone(), good("other"), bad];
        let refused = client.propose(ours.sign(1, wire::ProposeRequest { commands })).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().starts_with("command 1: "), "{refused}");
        assert_eq!(refused.metadata().get("quorum-unfit").expect("named"), "1,3");
    }
    for count in [0, 513] {
        let commands = vec![good("good"); count];
        let refused = client.propose(ours.sign(1, wire::ProposeRequest { commands })).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
    assert_eq!(member.node.status().last_log_index, last, "nothing of it was appended");
    make(&member.node, "good").await;
}
