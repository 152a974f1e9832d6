//! B: all attacks at once, on every node, under load: the guarantees hold, latencies stay low, no node grows or fails.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use client::Consistency;
use futures_util::future::join_all;
use proto::chat::v1 as pb;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Command,
    task::JoinSet,
    time::sleep,
};
use uuid::Uuid;

use super::admission::{HALF_A_HANDSHAKE, PREFACE, frame, headers, many_files, silent};
use support::{Cluster, Direct};

/// Duration of `chatctl verify` during the attacks.
const SECONDS: u64 = 15;
/// The memory limit of a node in Compose.
const MEMORY_MAX: u64 = 512_000_000;
/// Maximum factor by which the attacks may slow down the slowest of a hundred calls.
const SLOWER_MAX: u32 = 5;
/// Latencies below this do not count as slower: the attackers and five debug builds share a few cores.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// Duration of a round: the time limit of half a request.
const ROUND: Duration = Duration::from_secs(5);

/// SETTINGS with a receive window of this size for any answer.
fn takes(window: u8) -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0"[..], &[window]].concat()
}

/// Reads until the node closes the connection, and answers its PINGs like a live caller that does not read.
async fn until_ended(stream: TcpStream) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut head = [0; 9];
    while reader.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if reader.read_exact(&mut payload).await.is_err() {
            return;
        }
        if head[3] == PING && head[4] == 0 {
            let _ = writer.write_all(&frame(PING, 1, 0, &payload)).await;
        }
    }
}

const PING: u8 = 6;

/// A complete call on `stream`.
fn call(stream: u32, method: &str, token: &str, message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    let path = format!("/chat.v1.ChatService/{method}");
    let headers = headers(&path, &[("authorization", &format!("Bearer {token}"))]);
    [frame(1, 4, stream, &headers), frame(0, 1, stream, &body)].concat()
}

/// A connection that makes calls and accepts only `window` bytes of each answer.
async fn unread(address: SocketAddr, window: u8, calls: Vec<u8>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(&[takes(window), calls].concat()).await.ok()?;
    Some(stream)
}

/// The calls of an account with much to read, for one connection each: pages, and subscriptions from the beginning.
fn greedy(token: &str) -> (Vec<u8>, Vec<u8>) {
    let page = pb::ReadConversationRequest {
        conversation: Some(pb::read_conversation_request::Conversation::Partner("mallory".into())),
        limit: 200,
        ..Default::default()
    };
    let subscribe = pb::SubscribeRequest { after_revision: Some(0), consistency: None };
    let pages = (0..250).flat_map(|number| call(2 * number + 1, "ReadConversation", token, &page));
    let subscriptions = (0..64).flat_map(|number| call(2 * number + 1, "Subscribe", token, &subscribe));
    (pages.collect(), subscriptions.collect())
}

/// An account with much to read, and its token.
async fn mallory(cluster: &Cluster) -> String {
    let (mallory, token) = cluster.register("mallory").await;
    for _ in 0..200 {
        mallory.send_message("mallory", &"x".repeat(16 * 1024)).await.unwrap();
    }
    token
}

/// Runs all attacks against a node once, and holds them for a while: enough to fill every pool and every share of one
/// address.
async fn attack([grpc, peer, web, metrics]: [SocketAddr; 4], token: String) {
    let half: Vec<u8> =
        (0..256).flat_map(|call| frame(1, 4, 2 * call + 1, &headers("/chat.v1.ChatService/Login", &[]))).collect();
    let json = format!(
        "POST /chat.v1.ChatService/Login HTTP/1.1\r\nHost: {web}\r\nContent-Type: application/json\r\n\
         Content-Length: 262144\r\n\r\n{}",
        " ".repeat(100_000)
    );
    let (pages, subscriptions) = greedy(&token);
    let words = [PREFACE, &half].concat();
    let _held = tokio::join!(
        silent(grpc, 9, &words),
        silent(grpc, 200, PREFACE),
        silent(web, 90, json.as_bytes()),
        silent(peer, 80, HALF_A_HANDSHAKE),
        silent(metrics, 140, b"GET /livez HTTP/1.1\r\nHo"),
        unread(grpc, 0, pages),
        unread(grpc, 1, subscriptions),
    );
    sleep(ROUND).await;
}

/// Measures the duration of calls: alternating writes and linearizable reads.
async fn calls(bystander: &Direct, took: &mut Vec<Duration>) {
    for _ in 0..100 {
        let start = Instant::now();
        bystander.send(Uuid::new_v4(), "bystander", "hello").await.unwrap();
        took.push(start.elapsed());
        let start = Instant::now();
        bystander.read("bystander", Consistency::Linearizable).await.unwrap();
        took.push(start.elapsed());
    }
}

/// The duration of the slowest of a hundred calls.
fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn under_all_attacks_at_once_others_are_served_and_the_promises_hold() {
    many_files();
    let cluster = Cluster::five_alone().await;
    let token = mallory(&cluster).await;
    let (_, bystander) = cluster.register("bystander").await;
    let leader = cluster.leader().await;
    let token_of_bystander = bystander;
    let bystander = cluster.direct(leader, &token_of_bystander);
    let mut calm = Vec::new();
    for _ in 0..3 {
        calls(&bystander, &mut calm).await;
    }
    let calm = p99(calm);

    let stop = Arc::<AtomicBool>::default();
    let mut attacks = JoinSet::new();
    for node in 0..cluster.len() {
        let ports = [cluster[node].grpc, cluster[node].peer, cluster[node].web, cluster[node].metrics];
        let (stop, token) = (stop.clone(), token.clone());
        attacks.spawn(async move {
            // Not all at once: the test measures held connections and not how fast this process connects.
            sleep(ROUND * u32::try_from(node).unwrap() / 5).await;
            while !stop.load(Ordering::Relaxed) {
                attack(ports, token.clone()).await;
            }
        });
    }
    let nodes: Vec<String> = (0..cluster.len()).map(|node| cluster[node].grpc.to_string()).collect();
    let verify = Command::new(support::chatctl())
        .args(["verify", "--output", "json", "--clients", "2", "--seconds", &SECONDS.to_string()])
        .args(["--nodes", &nodes.join(",")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut verify = tokio::spawn(verify.wait_with_output());
    let mut stormy = Vec::new();
    let mut memory: Vec<u64> = (0..cluster.len()).map(|node| cluster[node].memory_bytes()).collect();
    let output = loop {
        calls(&bystander, &mut stormy).await;
        for (node, most) in memory.iter_mut().enumerate() {
            *most = cluster[node].memory_bytes().max(*most);
        }
        if verify.is_finished() {
            break (&mut verify).await.unwrap().unwrap();
        }
    };
    let ready = join_all((0..cluster.len()).map(|node| cluster[node].readiness())).await;
    stop.store(true, Ordering::Relaxed);
    while attacks.join_next().await.is_some() {}

    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one JSON object");
    for count in ["lost", "duplicated", "reordered", "phantom", "stale_reads", "resume_gaps"] {
        assert_eq!(report[count], 0, "{count}: {stdout}");
    }
    let stormy = p99(stormy);
    println!("the slowest of a hundred: {calm:?} without, {stormy:?} with the attacks; memory {memory:?}");
    assert!(stormy <= (calm * SLOWER_MAX).max(NOTICEABLE), "{stormy:?}, and {calm:?} without the attacks");
    assert!(memory.iter().all(|most| *most < MEMORY_MAX), "{memory:?}");
    assert!(ready.iter().all(Result::is_ok), "{ready:?}");
    // On a busy machine one election may happen; the slowest calls above would show more. No node left the quorum.
    let now = cluster.leader().await;
    println!("node {leader} led before, {now} leads now");
    let nodes = cluster.direct(now, &token_of_bystander).nodes().await.unwrap();
    assert_eq!(nodes.failures_tolerated, Some(2));
}

/// B10, B11: unread answers and subscriptions are bounded, and their connections are closed.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_bounded_and_end() {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let token = mallory(&cluster).await;
    let before = cluster[0].memory_bytes();
    let (pages, subscriptions) = greedy(&token);
    let mut held = Vec::new();
    for number in 0..8 {
        held.push(unread(cluster[0].grpc, number % 2, pages.clone()).await.unwrap());
    }
    held.push(unread(cluster[0].grpc, 1, subscriptions).await.unwrap());
    let mut most = 0;
    // Each connection is closed, not long after the time limit for an answer.
    let ended = tokio::time::timeout(Duration::from_secs(60), join_all(held.into_iter().map(until_ended)));
    let watched = async {
        loop {
            most = cluster[0].memory_bytes().max(most);
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        ended = ended => drop(ended.expect("the connections end")),
        () = watched => unreachable!(),
    }
    let labels = ["port=\"clients\"", "reason=\"answer_unread\""];
    let dropped = cluster[0].metric_with("chat_connections_dropped_total", &labels).await;
    assert!(dropped >= 9.0, "{dropped} by the gate, and not by keepalive");
    let grown = most.saturating_sub(before);
    // Includes the caches of the reader threads, whatever the number of waiting answers.
    assert!(grown < 256 << 20, "{} KiB more", grown >> 10);
}
