//! Sessions, message ids and messages belong to the cluster and not to a node: they are the same everywhere, and
//! survive every process.

use futures_util::future::join_all;
use proto::chat::v1::SendMessageResponse;
use tonic::Code;
use uuid::Uuid;

use support::{Cluster, Direct, PASSWORD, Workload, eventually, history};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_opened_on_one_node_is_known_to_all_and_outlives_them() {
    let mut cluster = Cluster::five().await;
    let (_, elsewhere) = cluster.register("alice").await;
    let follower = cluster.follower().await;
    let token = cluster.direct(follower, "").login("alice", PASSWORD).await.unwrap().token;
    // Immediately, without waiting until the other nodes have caught up.
    let welcome = |directs: Vec<Direct>| async move {
        for answer in join_all(directs.iter().map(|direct| direct.send(Uuid::now_v7(), "alice", "note"))).await {
            answer.unwrap();
        }
        for answer in join_all(directs.iter().map(Direct::local)).await {
            answer.unwrap();
        }
    };
    welcome(cluster.directs(&token)).await;

    let leader = cluster.leader().await;
    cluster[leader].kill();
    cluster.leader().await;
    let living = cluster.up().into_iter().map(|node| cluster.direct(node, &token)).collect();
    welcome(living).await;

    for node in cluster.up() {
        cluster[node].kill();
    }
    cluster.start_all().await;
    welcome(cluster.directs(&token)).await;

    // The end of a session also applies everywhere: immediately to calls that ask the leader, and soon to all others.
    assert_eq!(cluster.direct(follower, &token).logout().await.unwrap(), 1);
    for direct in cluster.directs(&token) {
        let refused = direct.send(Uuid::now_v7(), "alice", "note").await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "{refused:?}");
        eventually("local reads refused", async || {
            let error = direct.local().await.err().ok_or("it is still answered")?;
            assert_eq!(error.code, Code::Unauthenticated, "{error:?}");
            Ok(())
        })
        .await;
    }
    welcome(cluster.directs(&elsewhere)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_makes_one_message_on_whichever_nodes_it_is_repeated() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let id = Uuid::now_v7();
    let everywhere = |directs: Vec<Direct>| async move {
        let answers = join_all(directs.iter().map(|direct| direct.send(id, "alice", "once"))).await;
        answers.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let answers = everywhere(cluster.directs(&token)).await;
    let first: Vec<&SendMessageResponse> = answers.iter().filter(|answer| !answer.repeated).collect();
    assert_eq!(first.len(), 1, "one of them stored it: {answers:?}");
    let expected = SendMessageResponse { repeated: true, ..*first[0] };
    let all_repeat = |answers: Vec<SendMessageResponse>| {
        for answer in answers {
            assert_eq!(SendMessageResponse { repeated: true, ..answer }, expected);
        }
    };
    all_repeat(answers);

    let leader = cluster.leader().await;
    cluster[leader].kill();
    cluster.leader().await;
    let repeated = everywhere(cluster.up().into_iter().map(|node| cluster.direct(node, &token)).collect()).await;
    assert!(repeated.iter().all(|answer| answer.repeated));
    all_repeat(repeated);

    for node in cluster.up() {
        cluster[node].kill();
    }
    cluster.start_all().await;
    let repeated = everywhere(cluster.directs(&token)).await;
    assert!(repeated.iter().all(|answer| answer.repeated));
    all_repeat(repeated);

    for direct in cluster.directs(&token) {
        let refused = direct.send(id, "alice", "another text").await.unwrap_err();
        let verdict = (refused.code, refused.reason.as_deref(), refused.field.as_deref());
        assert_eq!(verdict, (Code::InvalidArgument, Some("CLIENT_MESSAGE_ID_REUSED"), Some("client_message_id")));
    }
    let stored: Vec<String> = history(&alice, "alice").await.into_iter().map(|message| message.body).collect();
    assert_eq!(stored, ["once"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stop_or_die_and_everything_is_there_afterwards() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let workload = Workload::start(&cluster, 2, true).await;
    let mut last = alice.send_message("alice", "first").await.unwrap();
    for kindly in [true, false] {
        workload.advance(5).await;
        if kindly {
            (0..cluster.len()).for_each(|node| cluster[node].terminate());
            for node in 0..cluster.len() {
                assert_eq!(cluster[node].exit_code().await, 0, "{} stops well", cluster[node].name);
            }
        } else {
            (0..cluster.len()).for_each(|node| cluster[node].kill());
        }
        cluster.start_all().await;
        let next = alice.send_message("alice", "next").await.unwrap();
        assert!(next.revision > last.revision && next.seq == last.seq + 1, "{last:?} {next:?}");
        last = next;
    }
    workload.advance(5).await;
    workload.finish().await;
    cluster.level(&token, last.revision).await;
    let stored: Vec<u64> = history(&alice, "alice").await.iter().map(|message| message.seq).collect();
    assert_eq!(stored, [1, 2, 3]);
}
