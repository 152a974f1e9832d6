//! A node may repeat its request to join.

use tokio::time::Instant;

use crate::tests::cluster::{Cluster, PATIENCE, settings};
use crate::{MemberError, Node, view};
use proto::raft::v1 as wire;

/// Asks for the place of n4 until there is an answer.
async fn ask(node: &Node, admission: u64) -> u64 {
    let joiner = wire::JoinRequest {
        name: "n4".into(),
        // No process answers there.
        peer_address: "127.0.0.1:1".into(),
        admission,
        ..wire::JoinRequest::default()
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match node.join(joiner.clone()).await {
            Ok(given) if given.node_id != 0 => return given.node_id,
            Ok(elsewhere) => panic!("{elsewhere:?}"),
            Err(error @ (MemberError::Conflict(_) | MemberError::NoLeader)) if Instant::now() > deadline => {
                panic!("{error}")
            }
            Err(MemberError::Conflict(_) | MemberError::NoLeader) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_to_join_again_gets_the_same_id() {
    // However busy the machine is with other tests, the leader keeps its term.
    let cluster = Cluster::start(3, settings(50, 10_000, 20_000)).await;
    let leader = &cluster.members[&cluster.leader().await].node;
    let members_are = async |expected: [u64; 4]| {
        let ids = |view: &view::View| view.members.iter().map(|member| member.node_id).collect::<Vec<_>>();
        view::wait(&leader.view(), Instant::now() + PATIENCE, |view| ids(view) == expected).await
    };
    let first = ask(leader, 7).await;
    let follower = cluster.members.values().find(|member| !member.leads()).expect("two of three follow");
    // A follower may learn of the leader after the majority has.
    assert!(view::wait(&follower.node.view(), Instant::now() + PATIENCE, |view| view.leader().is_some()).await);
    let elsewhere =
        follower.node.join(wire::JoinRequest { name: "n4".into(), ..Default::default() }).await.expect("an answer");
    assert_eq!(
        (elsewhere.node_id, elsewhere.leader),
        (0, leader.view().borrow().leader().expect("it leads").peer_address.clone())
    );
    assert!(members_are([1, 2, 3, first]).await);

    // The first process ended before it took its id. The next one is another process, and the place of the first is
    // free.
    let second = ask(leader, 8).await;
    assert!(second > first, "{second} after {first}");
    assert!(members_are([1, 2, 3, second]).await);
    // Requests of an older version never get the same id.
    let third = ask(leader, 0).await;
    let fourth = ask(leader, 0).await;
    assert!(second < third && third < fourth, "{second}, {third}, {fourth}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_waits_for_the_next_leader() {
    let mut cluster = Cluster::start(3, settings(50, 1000, 2000)).await;
    let leader = cluster.leader().await;
    let gone = cluster.members.remove(&leader).expect("a member");
    let follower = &cluster.members.values().next().expect("two others").node;
    assert!(view::wait(&follower.view(), Instant::now() + PATIENCE, |view| view.leader().is_some()).await);
    let name = format!("n{leader}");
    // The first request finds the leader that ends here.
    let ((), removed) = tokio::join!(gone.stop(), follower.remove_member(&name, Instant::now() + PATIENCE));
    assert_eq!(removed, Ok(vec![leader]));
    assert_eq!(follower.remove_member(&name, Instant::now() + PATIENCE).await, Err(MemberError::NodeUnknown));
}
