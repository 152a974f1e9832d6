//! An untrusted member proposes invalid commands, and appends them as a leader that was not elected. Such an entry once
//! ended every node, again at each start.

use chat::{Command, limits};
use client::Client;
use net::tls::{Secrets, Tls};
use prost::Message as _;
use proto::{log::v1 as pb, raft::v1 as wire};
use raft::peers::{Credentials, Lane, Peers};
use storage::codec;

use support::{Cluster, Node, PEER_SECRET, eventually};

/// The id of a leader that was not elected.
const STRANGER: u64 = 9;

/// Another member, by its credentials.
struct Member {
    cluster_id: String,
    credentials: Credentials,
    peers: Peers,
}

impl Member {
    async fn of(node: &Node) -> Self {
        let shared = Tls::shared(Secrets::parse(PEER_SECRET).unwrap(), None).unwrap();
        let peers = Peers::new(shared.connector().unwrap().into());
        let request = credentials("", 0).present(wire::ProbeRequest { name: "n9".into() });
        let found = peers.client(&node.peer.to_string(), Lane::Control).unwrap().probe(request).await.unwrap();
        let cluster_id = found.into_inner().cluster_id;
        Self { credentials: credentials(&cluster_id, 5), cluster_id, peers }
    }

    /// A call to node `id` by the node that the vote names, because a call is only valid for its sender.
    fn sign_as<T>(&self, vote: Option<&pb::Vote>, id: u64, message: T) -> tonic::Request<T> {
        credentials(&self.cluster_id, vote.map_or(STRANGER, |vote| vote.node_id)).sign(id, message)
    }

    async fn propose(&self, node: &Node, id: u64, commands: Vec<Option<pb::Command>>) -> Result<usize, tonic::Status> {
        let forwarded = |command| wire::ForwardedCommand { command, ..Default::default() };
        let request = wire::ProposeRequest { commands: commands.into_iter().map(forwarded).collect() };
        let mut client = self.peers.client(&node.peer.to_string(), Lane::Forward).unwrap();
        Ok(client.propose(self.credentials.sign(id, request)).await?.into_inner().outcomes.len())
    }

    /// The last committed position, from the leader.
    async fn committed(&self, node: &Node, id: u64) -> Result<pb::LogId, tonic::Status> {
        let mut client = self.peers.client(&node.peer.to_string(), Lane::Control).unwrap();
        let answer = client.read_index(self.credentials.sign(id, wire::ReadIndexRequest {})).await?;
        Ok(answer.into_inner().read_log_id.unwrap())
    }

    async fn append(&self, node: &Node, id: u64, request: wire::AppendRequest) -> Result<(), tonic::Status> {
        let mut client = self.peers.client(&node.peer.to_string(), Lane::Replication).unwrap();
        let vote = request.vote;
        client.append(self.sign_as(vote.as_ref(), id, request)).await.map(drop)
    }
}

fn credentials(cluster_id: &str, node_id: u64) -> Credentials {
    Credentials::new(cluster_id, node_id, "n9", "127.0.0.1:9").unwrap()
}

/// Commands that every node has to reject: absent, without a kind, with fields of a wrong length, beyond the limits.
fn unfit() -> Vec<Option<pb::Command>> {
    use pb::command::Kind;
    let some = |kind| Some(pb::Command { kind: Some(kind) });
    let account = |username: &str| {
        let (username, password_hash) = (username.to_owned(), "hash".to_owned());
        Some(codec::encode_command(&Command::CreateAccount {
            username,
            password_hash,
            request_id: None,
            invitation: None,
        }))
    };
    let to = || Some(pb::send_message::To::Recipient("alice".into()));
    let (client_id, body) = (vec![1; 16], "b".repeat(limits::BODY_BYTES_MAX + 1));
    vec![
        None,
        Some(pb::Command { kind: None }),
        some(Kind::OpenSession(pb::OpenSession {
            account_id: 1,
            token_hash: vec![7; 31],
            lifetime_ms: 1,
            ..Default::default()
        })),
        some(Kind::OpenSession(pb::OpenSession {
            account_id: 1,
            token_hash: vec![7; 32],
            lifetime_ms: u64::MAX,
            ..Default::default()
        })),
        some(Kind::SendMessage(pb::SendMessage {
            session_id: 1,
            to: None,
            client_id: client_id.clone(),
            body: "b".into(),
        })),
        some(Kind::SendMessage(pb::SendMessage { session_id: 1, to: to(), client_id: vec![], body: "b".into() })),
        some(Kind::SendMessage(pb::SendMessage { session_id: 1, to: to(), client_id, body })),
        some(Kind::Receipts(pb::Receipts { items: vec![Default::default(); limits::RECEIPTS_MAX + 1] })),
        some(Kind::DeleteMessages(pb::DeleteMessages { message_ids: vec![1; 1001], ..Default::default() })),
        account("Not A Name"),
        account(&"x".repeat(33)),
    ]
}

/// Payloads of entries that are not commands in any version.
fn garbage() -> Vec<Vec<u8>> {
    let batch = |command| {
        let proposal = pb::Proposal { time_ms: u64::MAX, traceparent: String::new(), command };
        pb::Batch { proposals: vec![proposal], ..Default::default() }.encode_to_vec()
    };
    let short = pb::command::Kind::ReportDigest(pb::ReportDigest { digest: vec![1; 5], ..Default::default() });
    vec![
        Vec::new(),
        b"garbage".to_vec(),
        vec![0xff; 64 * 1024],
        batch(None),
        batch(Some(pb::Command { kind: None })),
        batch(Some(pb::Command { kind: Some(short) })),
    ]
}

async fn serves(cluster: &Cluster, alice: &Client, token: &str) {
    let sent = alice.send_message("alice", "still here").await.unwrap();
    cluster.level(token, sent.revision).await;
    let digests = eventually("the same digest everywhere", async || {
        let mut digests = Vec::new();
        for direct in cluster.directs(token) {
            digests.push(direct.nodes().await.map_err(|error| error.to_string())?.digest);
        }
        digests.iter().all(|digest| *digest == digests[0]).then_some(digests.len()).ok_or(format!("{digests:?}"))
    });
    assert_eq!(digests.await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_end_the_service_with_what_is_no_command() {
    let mut cluster = Cluster::five().await;
    let (alice, token) = cluster.register("alice").await;
    let leader = cluster.leader().await;
    let (node, id) = (&cluster[leader], leader as u64 + 1);
    let member = Member::of(node).await;

    // Through the leader: rejected, with the position of the bad command. No command of the batch gets into the log.
    let before = member.committed(node, id).await.unwrap().index;
    for (position, command) in unfit().into_iter().enumerate() {
        let refused = member.propose(node, id, vec![Some(nothing()), command]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{position}: {refused}");
        assert!(refused.message().starts_with("command 1: "), "{position}: {refused}");
    }
    assert_eq!(member.committed(node, id).await.unwrap().index, before);
    assert_eq!(member.propose(node, id, vec![Some(nothing())]).await.unwrap(), 1);
    serves(&cluster, &alice, &token).await;

    refuses_what_no_leader_sends(&cluster, &member, member.committed(node, id).await.unwrap()).await;
    // As a leader that was not elected, which can append anything.
    let committed = eventually("all nodes take the entries", async || poison(&cluster, &member).await).await;
    eventually("all nodes have rejected them", async || {
        for number in 0..5 {
            let rejected = cluster[number].metric("chat_malformed_commands_total").await;
            if rejected < garbage().len() as f64 {
                return Err(format!("{} rejected {rejected}", cluster[number].name));
            }
        }
        Ok(())
    })
    .await;
    serves(&cluster, &alice, &token).await;
    for number in 0..5 {
        cluster[number].logged(" - ERROR - ").await;
        cluster[number].logged("malformed command").await;
    }

    // The nodes met the entries again at each start, which ended them for good.
    for number in 0..5 {
        cluster[number].kill();
    }
    cluster.start_all().await;
    serves(&cluster, &alice, &token).await;
    let leader = cluster.leader().await;
    assert!(member.committed(&cluster[leader], leader as u64 + 1).await.unwrap().index > committed);
}

/// Requests that no leader sends: misplaced entries, a membership without voters, numbers that no file can hold,
/// invalid votes.
async fn refuses_what_no_leader_sends(cluster: &Cluster, member: &Member, last: pb::LogId) {
    let (node, id) = (&cluster[0], 1);
    let vote = |node_id, committed| Some(pb::Vote { term: last.term + 50, node_id, committed });
    let entry = |index, payload| pb::Entry { log_id: Some(pb::LogId { index, ..last }), payload: Some(payload) };
    let blank = || pb::entry::Payload::Blank(pb::Blank {});
    let good = wire::AppendRequest { vote: vote(STRANGER, true), prev_log_id: Some(last), ..Default::default() };
    let empty = pb::entry::Payload::Membership(pb::Membership::default());
    let far = pb::LogId { index: u64::MAX, ..last };
    for request in [
        wire::AppendRequest { vote: vote(id, true), ..good.clone() },
        wire::AppendRequest { vote: vote(STRANGER, false), ..good.clone() },
        wire::AppendRequest {
            vote: Some(pb::Vote { term: u64::MAX, node_id: STRANGER, committed: true }),
            ..good.clone()
        },
        wire::AppendRequest { entries: vec![entry(last.index + 2, blank())], ..good.clone() },
        wire::AppendRequest { entries: vec![entry(last.index + 1, empty)], ..good.clone() },
        wire::AppendRequest { entries: vec![pb::Entry::default()], ..good.clone() },
        wire::AppendRequest { prev_log_id: Some(far), ..good.clone() },
        wire::AppendRequest { leader_commit: Some(far), ..good.clone() },
    ] {
        let refused = member.append(node, id, request.clone()).await.expect_err(&format!("{request:?}"));
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{request:?}: {refused}");
    }
    let mut client = member.peers.client(&node.peer.to_string(), Lane::Control).unwrap();
    for vote in [vote(id, false), vote(STRANGER, true)] {
        let request = wire::VoteRequest { vote, last_log_id: Some(last), ..Default::default() };
        let refused = client.vote(member.sign_as(vote.as_ref(), id, request)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
}

/// A command without effect.
fn nothing() -> pb::Command {
    codec::encode_command(&Command::Receipts(Vec::new()))
}

/// Appends garbage to all nodes after their last entry, and declares it committed. Returns the index of its last entry.
async fn poison(cluster: &Cluster, member: &Member) -> Result<u64, String> {
    let leader = cluster.leader().await;
    let last = member.committed(&cluster[leader], leader as u64 + 1).await.map_err(|error| error.to_string())?;
    let term = last.term + 100;
    let position = |index| pb::LogId { term, node_id: STRANGER, index };
    let payload = |bytes: Vec<u8>| Some(pb::entry::Payload::Batch(bytes.into()));
    let entries: Vec<pb::Entry> = garbage()
        .into_iter()
        .zip(last.index + 1..)
        .map(|(bytes, index)| pb::Entry { log_id: Some(position(index)), payload: payload(bytes) })
        .collect();
    let end = last.index + entries.len() as u64;
    let request = wire::AppendRequest {
        vote: Some(pb::Vote { term, node_id: STRANGER, committed: true }),
        prev_log_id: Some(last),
        entries,
        leader_commit: Some(position(end)),
        ..Default::default()
    };
    for number in 0..5 {
        member.append(&cluster[number], number as u64 + 1, request.clone()).await.map_err(|error| error.to_string())?;
    }
    Ok(end)
}
