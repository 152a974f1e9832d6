//! Silent, slow and greedy callers: the unfinished work of one caller does not affect others.

use std::{net::SocketAddr, time::Duration};

use client::Consistency;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use support::{Cluster, Node};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A call takes milliseconds. On a busy machine this is still far from what a user would call stuck.
const NOTICEABLE: Duration = Duration::from_secs(5);

/// The beginning of a TLS ClientHello.
pub(super) const HALF_A_HANDSHAKE: &[u8] = &[22, 3, 1, 2, 0, 1];

/// Raises the limit on open files, because this process has the other ends of all connections.
pub(super) fn many_files() {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
}

/// Opens connections that send `words` and then nothing.
pub(super) async fn silent(address: SocketAddr, count: usize, words: &[u8]) -> Vec<TcpStream> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The node may close the connection at any moment.
        let _ = stream.write_all(words).await;
        connections.push(stream);
    }
    connections
}

/// A frame of HTTP/2.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a call, in HPACK without a table.
pub(super) fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let always =
        [(":path", path), (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in always.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The HEADERS frame of a call on `stream`, without a body.
fn half_a_call(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, &headers("/chat.v1.ChatService/Login", &[]))
}

async fn one_node() -> (Cluster, String) {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let (_, token) = cluster.register("bystander").await;
    (cluster, token)
}

/// Makes reads as a logged-in user, each with a time limit.
async fn bystander_is_served(cluster: &Cluster, token: &str) {
    let direct = cluster.direct(0, token);
    for _ in 0..10 {
        let start = Instant::now();
        direct.read("bystander", Consistency::Linearizable).await.unwrap();
        assert!(start.elapsed() < NOTICEABLE, "{:?}", start.elapsed());
    }
}

/// The number of connections of a port that were closed in favour of others.
async fn displaced(node: &Node, port: &str) -> f64 {
    let labels = [format!("port=\"{port}\""), "reason=\"displaced\"".into()];
    node.metric_with("chat_connections_dropped_total", &labels.each_ref().map(String::as_str)).await
}

/// Queries `/livez` and `/readyz`, one after the other.
async fn probes_are_answered(node: &Node) {
    for _ in 0..5 {
        let ready = timeout(NOTICEABLE, node.readiness()).await;
        ready.expect("the probe is answered in time").expect("the node is ready");
    }
}

#[tokio::test]
async fn half_sent_calls_take_no_places() {
    let (cluster, token) = one_node().await;
    let before = cluster[0].memory_bytes();
    let calls: Vec<u8> = (0..256).flat_map(|call| half_a_call(2 * call + 1)).collect();
    let words = [PREFACE, &calls].concat();
    let _half = silent(cluster[0].grpc, 40, &words).await;
    bystander_is_served(&cluster, &token).await;
    // A stranger is served too: a new login on a new connection.
    let client = cluster.client().await;
    timeout(NOTICEABLE, client.login("bystander", support::PASSWORD)).await.expect("in time").unwrap();
    let grown = cluster[0].memory_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{} KiB more", grown >> 10);
}

#[tokio::test]
async fn half_sent_json_bodies_are_bounded_in_bytes() {
    let (cluster, token) = one_node().await;
    let before = cluster[0].memory_bytes();
    let head = "POST /chat.v1.ChatService/Login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
                Content-Length: 262144\r\n\r\n";
    let words = [head.as_bytes(), &vec![b' '; 262_000]].concat();
    let mut half = Vec::new();
    // 200 MiB, if all of them were kept.
    for _ in 0..800 {
        let mut stream = TcpStream::connect(cluster[0].web).await.unwrap();
        let _ = timeout(Duration::from_millis(500), stream.write_all(&words)).await;
        half.push(stream);
    }
    bystander_is_served(&cluster, &token).await;
    let grown = cluster[0].memory_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{} KiB more", grown >> 10);
}

#[tokio::test]
async fn silent_connections_on_peer_ports_do_not_hinder_an_election() {
    let mut cluster = Cluster::five().await;
    let (_, token) = cluster.register("bystander").await;
    let leader = cluster.leader().await;
    cluster[leader].kill();
    let start = Instant::now();
    let node = cluster.up()[0];
    let mut held = Vec::new();
    loop {
        // A handshake has a time limit of one second, so the connections are renewed until a leader is elected.
        held.clear();
        for node in cluster.up() {
            held.push(silent(cluster[node].peer, 150, HALF_A_HANDSHAKE).await);
        }
        if cluster.direct(node, &token).read("bystander", Consistency::Linearizable).await.is_ok() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no leader after {:?}", start.elapsed());
    }
    let mut dropped = 0.0;
    for node in cluster.up() {
        dropped += displaced(&cluster[node], "peers").await;
    }
    assert!(dropped > 0.0, "the pools were full");
}

#[tokio::test]
async fn silent_connections_on_the_metrics_port_leave_probes_alone() {
    let (cluster, _) = one_node().await;
    let _held = silent(cluster[0].metrics, 600, b"GET /livez HTTP/1.1\r\nHo").await;
    probes_are_answered(&cluster[0]).await;
}

#[tokio::test]
async fn idle_connections_of_one_address_leave_room_for_another() {
    many_files();
    let (cluster, token) = one_node().await;
    let _held = silent(cluster[0].grpc, 3000, PREFACE).await;
    bystander_is_served(&cluster, &token).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = timeout(NOTICEABLE, socket.connect(cluster[0].grpc)).await.expect("in time").unwrap();
    other.write_all(PREFACE).await.unwrap();
    let mut first = [0; 9];
    timeout(NOTICEABLE, other.read_exact(&mut first)).await.expect("in time").expect("the node speaks HTTP/2");
    // The connection stays open, whatever the other address does.
    let _more = silent(cluster[0].grpc, 1500, PREFACE).await;
    let ping = [&b"\0\0\x08\x06\0\0\0\0\0"[..], b"12345678"].concat();
    other.write_all(&ping).await.unwrap();
    let mut answer = Vec::new();
    let answered = async {
        while !answer.ends_with(b"12345678") {
            assert_ne!(other.read_buf(&mut answer).await.unwrap(), 0, "it was dropped");
        }
    };
    timeout(NOTICEABLE, answered).await.expect("the ping is answered");
    assert!(displaced(&cluster[0], "clients").await > 0.0);
}
