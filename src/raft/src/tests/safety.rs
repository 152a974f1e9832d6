//! The guarantees of consensus, each attacked where it is weakest.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::tests::cluster::{CLUSTER, Cluster, Member, PATIENCE, crash_image, create, make, rebind, settings};
use crate::{
    ProposeError,
    start::config,
    transport::{
        convert,
        peers::{Credentials, Lane, Peers},
    },
    types::Vote,
    view,
};
use proto::{log::v1 as pb, raft::v1 as wire};

const QUICK: (u64, u64, u64) = (50, 300, 600);

fn quick() -> crate::Settings {
    settings(QUICK.0, QUICK.1, QUICK.2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_a_command_and_reads_what_was_acknowledged() {
    let cluster = Cluster::start(3, quick()).await;
    for (position, member) in cluster.members.values().enumerate() {
        let name = format!("user{position}");
        make(&member.node, &name).await;
        for reader in cluster.members.values() {
            reader.node.read_barrier(Instant::now() + PATIENCE).await.expect("barrier");
            assert!(reader.has_account(&name), "node {} does not have {name} after the barrier", reader.id);
        }
    }
    let health = cluster.members[&1].node.cluster_health(Instant::now() + PATIENCE).await.expect("cluster_health");
    assert_eq!(health.peers.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request_from_any_node() {
    // However busy the machine is with other tests, no node is elected except on request.
    let cluster = Cluster::start(3, settings(50, 10_000, 20_000)).await;
    let deadline = Instant::now() + PATIENCE;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    let (target, asked) = (others[0], &cluster.members[&others[1]].node);
    // The new leader is known to itself first, and a node may learn of it before it has the entry with its address.
    assert!(view::wait(&asked.view(), deadline, |view| view.leader().is_some_and(|peer| peer.node_id == leader)).await);
    assert_eq!(asked.transfer_leadership(Some(target), deadline).await, Ok(target));
    assert_eq!(cluster.leader().await, target);
    make(asked, "after").await;
    let unknown = asked.transfer_leadership(Some(99), deadline).await;
    assert_eq!(unknown, Err(crate::TransferError::NotAVoter));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_stopping_declines_leadership_and_the_next_one_is_asked() {
    // The timeouts are so long that every new leader is one that was asked.
    let cluster = Cluster::start(3, settings(50, 10_000, 20_000)).await;
    let first = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != first).collect();
    let (stopping, second) = (others[0], others[1]);
    let transfer_before_stop = async |id: u64| {
        let began = Instant::now();
        cluster.members[&id].node.transfer_before_stop(began + PATIENCE).await;
        assert!(began.elapsed() < PATIENCE / 2, "it took {:?}", began.elapsed());
    };
    let term = cluster.members[&first].node.status().term;
    transfer_before_stop(stopping).await;
    transfer_before_stop(first).await;
    assert_eq!(cluster.leader().await, second);
    assert_eq!(cluster.members[&second].node.status().term, term + 1);
    // Neither of them accepts leadership now.
    transfer_before_stop(second).await;
    assert!(cluster.members[&second].leads());
    let declined = cluster.members[&second].node.declined();
    assert!([first, stopping].iter().all(|id| declined.count(*id) > 0), "both were asked");
}

/// Timeouts so long that a leader which a test waits for was not elected because of one.
fn patient() -> crate::Settings {
    settings(50, 60_000, 120_000)
}

/// Waits until each of the other nodes watches the leader.
async fn watched_leader(cluster: &Cluster) -> u64 {
    let leader = cluster.leader().await;
    for member in cluster.members.values().filter(|member| member.id != leader) {
        let is_leader = |vote: &Option<Vote>| vote.is_some_and(|vote| vote.leader_id.node_id == leader);
        timeout(PATIENCE, member.node.watched().wait_for(is_leader)).await.expect("in time").expect("it runs");
    }
    leader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_is_replaced_without_a_timeout() {
    let mut cluster = Cluster::start(5, patient()).await;
    for left in [4, 3] {
        let leader = watched_leader(&cluster).await;
        let term = cluster.members[&leader].node.status().term;
        cluster.members.remove(&leader).expect("a member").stop().await;
        let next = cluster.leader().await;
        assert_eq!(cluster.members.len(), left);
        assert!(cluster.members[&next].node.status().term > term);
        make(&cluster.members[&next].node, &format!("user{left}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_stopping_does_not_succeed_a_leader_that_ends() {
    let mut cluster = Cluster::start(5, patient()).await;
    let leader = watched_leader(&cluster).await;
    // Of equals, the one with the highest id stands.
    let stopping = cluster.members.keys().copied().filter(|id| *id != leader).max().expect("others");
    cluster.members[&stopping].node.transfer_before_stop(Instant::now() + PATIENCE).await;
    cluster.members.remove(&leader).expect("a member").stop().await;
    let next = cluster.leader().await;
    assert_ne!(next, stopping);
    make(&cluster.members[&next].node, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_connections_break_keeps_its_term() {
    let cluster = Cluster::start(3, patient()).await;
    let leader = watched_leader(&cluster).await;
    let term = cluster.members[&leader].node.status().term;
    for round in 1..=5 {
        let followers = cluster.members.values().filter(|member| member.id != leader);
        let mut watches: Vec<_> = followers.map(|member| member.node.watched()).collect();
        watches.iter_mut().for_each(|watched| watched.mark_unchanged());
        cluster.members.values().for_each(Member::reset);
        for watched in &mut watches {
            timeout(PATIENCE, watched.changed()).await.expect("the watch breaks").expect("it runs");
        }
        watched_leader(&cluster).await;
        make(&cluster.members[&leader].node, &format!("user{round}")).await;
        cluster.caught_up(round).await;
    }
    let terms: Vec<u64> = cluster.members.values().map(|member| member.node.status().term).collect();
    assert_eq!(terms, [term; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_cannot_find_the_leader_changes_nothing() {
    let cluster = Cluster::start(3, patient()).await;
    let leader = watched_leader(&cluster).await;
    let term = cluster.members[&leader].node.status().term;
    let alone = cluster.members.values().find(|member| member.id != leader).expect("another");
    // No process answers there.
    alone.peers.found(leader, "127.0.0.1:1");
    cluster.members[&leader].reset();
    let vote = convert::vote(pb::Vote { term, node_id: leader, committed: true });
    let deadline = Instant::now() + PATIENCE;
    while !alone.node.has_lost(&vote).await.is_lost {
        assert!(Instant::now() < deadline, "it finds the leader where no process answers");
        tokio::task::yield_now().await;
    }
    alone.peers.found(leader, &cluster.members[&leader].address.to_string());
    watched_leader(&cluster).await;
    make(&alone.node, "after").await;
    assert_eq!(alone.node.status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_not_offered_to_a_node_that_is_gone() {
    let mut cluster = Cluster::start(3, settings(50, 1_000, 2_000)).await;
    let leader = cluster.leader().await;
    let gone = cluster.members.keys().copied().find(|id| *id != leader).expect("another");
    let deadline = Instant::now() + PATIENCE;
    let silent_for = async |node: &crate::Node, least: Duration| {
        let silence = async || {
            let health = node.cluster_health(deadline).await.expect("cluster_health");
            health.peers.iter().find(|peer| peer.node_id == gone).and_then(|peer| peer.silent)
        };
        while silence().await < Some(least) {
            assert!(Instant::now() < deadline, "not silent for {least:?}");
            tokio::task::yield_now().await;
        }
    };
    // A leader knows the age of an acknowledgement only after the first.
    silent_for(&cluster.members[&leader].node, Duration::ZERO).await;
    cluster.members.remove(&gone).expect("a member").stop().await;
    let node = &cluster.members[&leader].node;
    silent_for(node, Duration::from_secs(4)).await;
    assert_eq!(node.transfer_leadership(Some(gone), deadline).await, Err(crate::TransferError::Silent));
    make(node, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_alone_is_its_own_majority_all_the_time() {
    let cluster = Cluster::start(1, quick()).await;
    let node = &cluster.members[&cluster.leader().await].node;
    let deadline = Instant::now() + PATIENCE;
    // It gets no acknowledgements, so the last one would get ever older.
    while node.age() != Some(Duration::ZERO) {
        assert!(Instant::now() < deadline, "{:?}", node.age());
        tokio::task::yield_now().await;
    }
    assert!(node.status().leader.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_a_write_is_refused_as_not_applied() {
    let mut cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.members.remove(id).expect("a member").stop().await;
    }
    let survivor = &cluster.members[&leader].node;
    // The first writes may be appended before the lease of the leader ends; their outcome is unknown then.
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        assert!(Instant::now() < deadline, "still not refused");
        let attempt = survivor.propose(create("nobody"), None, Instant::now() + Duration::from_secs(3)).await;
        match attempt {
            Err(ProposeError::OutcomeUnknown(_)) => {}
            other => break other,
        }
    };
    assert_eq!(refused, Err(ProposeError::NoLeader));
    assert!(survivor.read_barrier(Instant::now() + Duration::from_secs(3)).await.is_err());
    assert!(!cluster.members[&leader].has_account("nobody"));
}

/// The leader replicates before its own fsync. If it crashes then, and restarts before another node is elected, it must
/// not continue in its term. It would use the log id of the lost entry for another one, and the follower that has the
/// first would keep that. `enable_leader_restore: Some(false)` prevents it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_its_unflushed_tail_does_not_resume_its_term() {
    let slow = settings(100, 2000, 3000);
    assert_eq!(config(&slow).expect("valid").enable_leader_restore, Some(false));
    let mut cluster = Cluster::start(5, slow).await;
    let leader = cluster.leader().await;
    let base = make(&cluster.members[&leader].node, "base").await;
    cluster.caught_up(base.0).await;
    let followers: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    let reachable = followers[0];
    let term = cluster.members[&leader].node.status().term;

    // Only one follower gets the entry, and the leader's own disk does not.
    for id in &followers[1..] {
        cluster.member(*id).unplug();
    }
    cluster.members[&leader].stall.set(true);
    let last = cluster.members[&reachable].node.status().last_log_index;
    let node = cluster.members[&leader].node.clone();
    // The first group passes the stall only after it is written. A second one makes sure that the writer is stalled.
    let doomed = tokio::spawn(async move {
        let short = Instant::now() + Duration::from_secs(5);
        let first = node.propose(create("first"), None, short);
        let second = node.propose(create("second"), None, short);
        let _ = tokio::join!(first, second);
    });
    let deadline = Instant::now() + PATIENCE;
    while cluster.members[&reachable].node.status().last_log_index <= last {
        assert!(Instant::now() < deadline, "the follower did not get the entry");
        tokio::task::yield_now().await;
    }

    // Crash and quick restart from what was on disk.
    let old = cluster.members.remove(&leader).expect("a member");
    let image = old.dir.with_extension("crashed");
    crash_image(&old.dir, &image);
    let address = old.address;
    old.stop().await;
    doomed.abort();
    let restarted = Member::start(leader, image, rebind(address).await, &cluster.settings.clone()).await;
    cluster.members.insert(leader, restarted);
    for id in &followers[1..] {
        cluster.member(*id).plug().await;
    }

    let now_leads = cluster.leader().await;
    assert!(cluster.members[&now_leads].node.status().term > term, "the old term was resumed");
    let after = make(&cluster.members[&now_leads].node, "after").await;
    cluster.caught_up(after.0).await;
    for name in ["base", "first", "second", "after"] {
        let having: Vec<bool> = cluster.members.values().map(|member| member.has_account(name)).collect();
        assert!(having.iter().all(|has| *has == having[0]), "{name} is not on all nodes alike: {having:?}");
    }
}

/// A volume is put back to an earlier moment, and the nodes with its commitments cannot be asked at the start. The
/// leader sends them with its next append. The third node is away meanwhile: together with the restarted one, it would
/// replace a leader that accepts no connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_forgot_what_it_acknowledged_is_told_by_the_leader_and_takes_no_part() {
    let mut cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.members.keys().copied().filter(|id| *id != leader).collect();
    let base = make(&cluster.members[&leader].node, "base").await;
    cluster.caught_up(base.0).await;
    let image = cluster.members[&others[0]].dir.with_extension("earlier");
    crash_image(&cluster.members[&others[0]].dir, &image);
    let later = make(&cluster.members[&leader].node, "later").await;
    cluster.caught_up(later.0).await;

    let settings = cluster.settings.clone();
    let third = cluster.members.remove(&others[1]).expect("a member");
    let (third_dir, third_address) = (third.dir.clone(), third.address);
    third.stop().await;
    let old = cluster.members.remove(&others[0]).expect("a member");
    let address = old.address;
    old.stop().await;
    cluster.member(leader).unplug();
    let restarted = Member::start(others[0], image, rebind(address).await, &settings).await;
    let deadline = Instant::now() + PATIENCE;
    while restarted.node.failure().get().is_none() {
        assert!(Instant::now() < deadline, "it was not notified");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failure = restarted.node.failure().get().expect("noted");
    assert!(failure.corrupt && failure.reason.contains("older copy"), "{failure:?}");
    assert!(restarted.readers.read(|query| query.revision()).is_err(), "nothing is served from it");
    restarted.stop().await;
    // The others are not affected.
    cluster.member(leader).plug().await;
    let third = Member::start(others[1], third_dir, rebind(third_address).await, &settings).await;
    cluster.members.insert(others[1], third);
    let leads = cluster.leader().await;
    make(&cluster.members[&leads].node, "after").await;
    assert!(cluster.members.values().all(|member| member.node.failure().get().is_none()), "another one has failed");
}

/// An entry is committed by other nodes before this node's own fsync. The state must wait for the fsync nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_never_ahead_of_the_durable_log() {
    let cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let slow = cluster.members.keys().copied().find(|id| *id != leader).expect("a follower");
    let base = make(&cluster.members[&leader].node, "base").await;
    cluster.caught_up(base.0).await;
    let follower = &cluster.members[&slow];
    follower.stall.set(true);
    // The writer passes once, and is stalled after that group.
    let node = cluster.members[&leader].node.clone();
    make(&node, "passes").await;
    let newest = make(&node, "waits").await;
    let deadline = Instant::now() + PATIENCE;
    while follower.node.status().committed_index < cluster.members[&leader].node.status().applied_index {
        assert!(Instant::now() < deadline, "the follower did not hear of the commit");
        tokio::task::yield_now().await;
    }
    // A read commits the applied changes.
    assert!(follower.revision() < newest.0);
    let image = follower.dir.with_extension("image");
    crash_image(&follower.dir, &image);
    let log = storage::LogDb::open(&image, Box::new(|_| {})).expect("opens");
    let state = storage::StateMachine::open(&image).expect("opens");
    let durable = log.bounds().1.map_or(0, |id| id.index);
    let applied = state.applied().log_id.map_or(0, |id| id.index);
    assert!(applied <= durable, "applied {applied}, durable {durable}");
    follower.stall.set(false);
    cluster.caught_up(newest.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_too_long_is_brought_level_by_a_snapshot() {
    let mut cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let away = cluster.members.keys().copied().find(|id| *id != leader).expect("a follower");
    let gone = cluster.members.remove(&away).expect("a member");
    let (dir, address) = (gone.dir.clone(), gone.address);
    gone.stop().await;
    let node = cluster.members[&leader].node.clone();
    for number in 0..20 {
        make(&node, &format!("user{number}")).await;
    }
    // Without the entries behind the snapshot, only the snapshot helps. openraft checks with each write whether it can
    // purge.
    node.snapshot(Instant::now() + PATIENCE).await.expect("snapshot");
    node.raft().trigger().purge_log(node.status().applied_index).await.expect("purged");
    let deadline = Instant::now() + PATIENCE;
    let mut users = 20;
    while cluster.members[&leader].log.bounds().0.is_none_or(|id| id.index < 20) {
        assert!(Instant::now() < deadline, "not purged");
        make(&node, &format!("user{users}")).await;
        users += 1;
    }
    let returned = Member::start(away, dir, rebind(address).await, &cluster.settings.clone()).await;
    cluster.members.insert(away, returned);
    cluster.caught_up(users).await;
    make(&node, "later").await;
    cluster.caught_up(users + 1).await;
    // Applied changes are added to the digest a moment after readers see them.
    let deadline = Instant::now() + PATIENCE;
    while cluster.members.values().any(|member| member.node.digests().revision.0 != users + 1) {
        assert!(Instant::now() < deadline, "the digests differ");
        tokio::task::yield_now().await;
    }
    let digests: Vec<_> = cluster.members.values().map(|member| member.node.digests().digest).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    let purged = cluster.members[&away].log.bounds().0;
    assert!(purged.is_some_and(|id| id.index >= 20), "it was the log that it caught up from: {purged:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_less_than_it_committed_to_does_not_vote() {
    let cluster = Cluster::start(1, quick()).await;
    let member = &cluster.members[&1];
    let peers = Peers::default();
    let mut client = peers.client(&member.address.to_string(), Lane::Control).expect("a valid address");
    let ours = Credentials::new(CLUSTER, 2, "n2", "").expect("plain text");
    let term = member.node.status().term;
    let candidate = |index| wire::VoteRequest {
        vote: Some(pb::Vote { term: term + 100, node_id: 2, committed: false }),
        last_log_id: Some(pb::LogId { term: term + 99, node_id: 2, index: 1000 }),
        commitment: Some(wire::Commitment { term, leader_id: 1, log_id: None, end_index: index }),
        ..Default::default()
    };
    let end = member.node.status().last_log_index + 1;
    assert!(client.pre_vote(ours.sign(1, candidate(end))).await.is_ok(), "it has everything that it committed to");
    let refused = client.pre_vote(ours.sign(1, candidate(end + 1))).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let refused = client.vote(ours.sign(1, candidate(end + 1))).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert_eq!(member.node.status().term, term, "it did not even look at the candidate's term");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_port_refuses_strangers() {
    let cluster = Cluster::start(1, quick()).await;
    let member = &cluster.members[&1];
    let peers = Peers::default();
    let mut client = peers.client(&member.address.to_string(), Lane::Control).expect("a valid address");
    let code = async |client: &mut _, credentials: &Credentials, target| {
        let client: &mut proto::raft::v1::raft_service_client::RaftServiceClient<_> = client;
        let result = client.read_index(credentials.sign(target, wire::ReadIndexRequest {})).await;
        result.map(|_| ()).map_err(|status: tonic::Status| status.code())
    };
    let ours = Credentials::new(CLUSTER, 2, "n2", "").expect("plain text");
    let theirs = Credentials::new("another-cluster", 2, "n2", "").expect("plain text");
    assert_eq!(code(&mut client, &ours, 1).await, Ok(()));
    assert_eq!(code(&mut client, &ours, 7).await, Err(tonic::Code::PermissionDenied));
    assert_eq!(code(&mut client, &theirs, 1).await, Err(tonic::Code::PermissionDenied));
    // The vote request of a stranger must not be processed.
    let term = member.node.status().term;
    let vote = wire::VoteRequest {
        vote: Some(pb::Vote { term: term + 100, node_id: 9, committed: false }),
        ..Default::default()
    };
    assert!(client.vote(theirs.sign(1, vote)).await.is_err());
    assert_eq!(member.node.status().term, term);
    // A node of the cluster accepts no other identity.
    let found = wire::BootstrapRequest { cluster_id: "new".into(), node_id: 1, name: "n1".into() };
    let refused = client.bootstrap(tonic::Request::new(found)).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_waits_for_the_next_leader() {
    let mut cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let follower = cluster.members.keys().copied().find(|id| *id != leader).expect("a follower");
    let node = cluster.members[&follower].node.clone();
    cluster.members.remove(&leader).expect("a member").stop().await;
    // The command is sent while there is no leader, or to one that is gone. It is applied once there is a new one.
    make(&node, "patient").await;
    assert!(view::wait(&node.view(), Instant::now() + PATIENCE, |view| view.leader != Some(leader)).await);
    cluster.caught_up(1).await;
    assert!(cluster.members.values().all(|member| member.has_account("patient")));
}

/// A log that cannot be written stops the node. The node must report that, and acknowledge nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_cannot_be_written_fails() {
    let cluster = Cluster::start(1, quick()).await;
    let member = &cluster.members[&1];
    make(&member.node, "before").await;
    let file = storage::open_file(&member.dir.join("log.db")).expect("opens");
    file.execute_batch("DROP TABLE entry").expect("dropped");
    let doomed = member.node.propose(create("after"), None, Instant::now() + Duration::from_secs(8));
    let (outcome, reason) = tokio::join!(doomed, tokio::time::timeout(PATIENCE, member.node.failed()));
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(reason.expect("the node says that it failed").contains("log"), "a reason");
    assert!(!member.has_account("after"));
}
