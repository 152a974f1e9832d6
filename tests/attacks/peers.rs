//! Attacks on the port between the nodes (A in `docs/security.md`): strangers that call it, listeners in the place of a
//! dead node, relays in the middle, and a node that impersonates another one.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use net::tls::{Files, Secrets, Tls, issue::Authority};
use proto::raft::v1 as wire;
use raft::peers::{Credentials, Lane, Peers};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::Code;

use support::{Cluster, PATIENCE, PEER_SECRET, eventually};

/// Ways to call the peer port, by name.
fn strangers() -> Vec<(&'static str, Peers)> {
    let wrong = Secrets::parse("another-secret-than-theirs").unwrap();
    vec![
        ("without TLS", Peers::default()),
        ("with another secret", Peers::new(Tls::shared(wrong, None).unwrap().connector().unwrap().into())),
    ]
}

/// The results of several calls to the peer port.
async fn calls(peers: &Peers, address: SocketAddr, credentials: &Credentials) -> Vec<Result<(), Code>> {
    let client = || peers.client(&address.to_string(), Lane::Control).unwrap();
    let (mut probing, mut joining, mut proposing) = (client(), client(), client());
    let join = wire::JoinRequest { name: "n9".into(), peer_address: "127.0.0.1:9".into(), ..Default::default() };
    let (probe, join, propose) = tokio::join!(
        timeout(PATIENCE, probing.probe(credentials.present(wire::ProbeRequest { name: "n9".into() }))),
        timeout(PATIENCE, joining.join(credentials.present(join))),
        timeout(PATIENCE, proposing.propose(credentials.sign(1, wire::ProposeRequest::default()))),
    );
    let code = |status: tonic::Status| status.code();
    vec![
        probe.unwrap().map(drop).map_err(code),
        join.unwrap().map(drop).map_err(code),
        propose.unwrap().map(drop).map_err(code),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_from_the_peer_port() {
    let mut cluster = Cluster::prepared(3);
    cluster.start_all().await;
    let credentials = Credentials::new("", 0, "n9", "127.0.0.1:9").unwrap();
    for (who, peers) in strangers() {
        for (number, result) in calls(&peers, cluster[0].peer, &credentials).await.into_iter().enumerate() {
            // The connection fails without any answer, not even a rejection.
            let is_cut = |code: &Code| *code != Code::PermissionDenied && *code != Code::FailedPrecondition;
            assert!(result.as_ref().is_err_and(is_cut), "{who}, call {number}: {result:?}");
        }
    }
    // The same calls by a node with the secret are answered.
    let ours = Tls::shared(Secrets::parse(PEER_SECRET).unwrap(), None).unwrap();
    let peers = Peers::new(ours.connector().unwrap().into());
    assert_eq!(calls(&peers, cluster[0].peer, &credentials).await[0], Ok(()));
}

/// Records the data that arrives at an address.
async fn record(address: SocketAddr) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let listener = TcpListener::bind(address).await.unwrap();
    let recorded: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let all = Arc::clone(&recorded);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let number = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    all.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
                }
            });
        }
    });
    recorded
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_in_the_place_of_a_dead_node_learns_nothing() {
    let mut cluster = Cluster::prepared(3);
    cluster.start_all().await;
    let dead = cluster.follower().await;
    cluster[dead].kill();
    let recorded = record(cluster[dead].peer).await;
    // The other nodes keep trying to reach the dead node.
    eventually("calls for the dead node", async || {
        let count = recorded.lock().unwrap().iter().filter(|bytes| !bytes.is_empty()).count();
        if count >= 6 { Ok(()) } else { Err(format!("{count} connections")) }
    })
    .await;
    for bytes in recorded.lock().unwrap().iter() {
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(!has(PEER_SECRET.as_bytes()) && !has(b"quorum-cluster") && !has(b"PRI * HTTP/2"), "{bytes:?}");
        // Only the first message of a handshake: a TLS record of type handshake.
        assert!(bytes.is_empty() || bytes[0] == 22, "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_terminates_tls_gets_nowhere() {
    let mut cluster = Cluster::prepared(3);
    cluster.start_all().await;
    let dead = cluster.follower().await;
    cluster[dead].kill();
    // The relay speaks TLS with its own secret, so nodes do not connect to it.
    let own = Tls::shared(Secrets::parse("the-secret-of-the-relay").unwrap(), None).unwrap();
    let listener = TcpListener::bind(cluster[dead].peer).await.unwrap();
    let mut port = net::tls::Port::new(listener, Some(own), net::tls::Protocol::Grpc);
    let (tried, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (seen, got) = (Arc::clone(&tried), Arc::clone(&read));
    tokio::spawn(async move {
        use net::Listener as _;
        while let Ok((mut stream, _)) = port.accept().await {
            let (seen, got) = (Arc::clone(&seen), Arc::clone(&got));
            tokio::spawn(async move {
                if stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {
                    got.store(true, Ordering::SeqCst);
                }
                seen.store(true, Ordering::SeqCst);
            });
        }
    });
    eventually("the nodes try the relay", async || {
        tried.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "nobody connected".to_owned())
    })
    .await;
    assert!(!read.load(Ordering::SeqCst), "a node has sent something to the relay");
    // The relay gets nothing from a node either.
    let address = cluster[(dead + 1) % 3].peer;
    assert!(TcpStream::connect(address).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_rotated_under_load_without_a_failed_call() {
    const NEXT: &str = "the-next-secret-of-the-nodes";
    let dir = TempDir::new().unwrap();
    let file = |node: usize| dir.path().join(format!("secret-{node}"));
    let mut cluster = Cluster::prepared(3);
    for node in 0..3 {
        std::fs::write(file(node), PEER_SECRET).unwrap();
        cluster[node].set("CHAT_PEER_SECRET", "");
        cluster[node].set("CHAT_PEER_SECRET_FILE", file(node).display().to_string());
    }
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let load = tokio::spawn(async move {
        let mut sent = 0_u64;
        while !stop.load(Ordering::SeqCst) {
            alice.send_message("alice", &format!("message {sent}")).await.expect("each call succeeds");
            sent += 1;
        }
        sent
    });
    let steps = [format!("{PEER_SECRET} {NEXT}"), format!("{NEXT}\n{PEER_SECRET}"), NEXT.to_owned()];
    for (step, content) in steps.iter().enumerate() {
        for node in 0..3 {
            let unfinished = file(node).with_extension("new");
            std::fs::write(&unfinished, content).unwrap();
            std::fs::rename(&unfinished, file(node)).unwrap();
        }
        for node in 0..3 {
            eventually("the secret is replaced", async || {
                let log = cluster[node].log();
                let count = log.matches("Reloaded the certificate of peers (CHAT_PEER_SECRET_FILE)").count();
                (count > step).then_some(()).ok_or(log)
            })
            .await;
        }
    }
    for node in 0..3 {
        cluster[node].ready().await;
    }
    done.store(true, Ordering::SeqCst);
    assert!(timeout(PATIENCE, load).await.unwrap().unwrap() > 0);
    // The old secret is not accepted any more.
    let old = Tls::shared(Secrets::parse(PEER_SECRET).unwrap(), None).unwrap();
    let peers = Peers::new(old.connector().unwrap().into());
    let credentials = Credentials::new("", 0, "n9", "127.0.0.1:9").unwrap();
    assert!(calls(&peers, cluster[0].peer, &credentials).await.iter().all(Result::is_err));
}

#[test]
fn a_node_with_others_does_not_start_without_protection() {
    let mut cluster = Cluster::prepared(3);
    cluster[0].set("CHAT_PEER_SECRET", "");
    let (code, text) = cluster[0].chatd(&["config"]);
    assert_eq!(code, 64, "{text}");
    for what in ["CHAT_PEER_SECRET: not set", "chatd secret FILE", "CHAT_PEER_TLS_CERT", "CHAT_INSECURE_PEERS=1"] {
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_come_back_without_protection_and_says_when_it_trusts_all() {
    let mut cluster = Cluster::prepared(3);
    cluster.start_all().await;
    let node = cluster.follower().await;
    cluster[node].kill();
    // Its configuration has no other members, but its data directory does.
    cluster[node].set("CHAT_PEER_SECRET", "").set("CHAT_INITIAL_NODES", "");
    cluster[node].start();
    assert_eq!(cluster[node].exit_code().await, 64);
    assert!(cluster[node].errors().last().unwrap().contains("CHAT_INSECURE_PEERS=1"));

    let mut trusting = Cluster::prepared(1);
    let exposed = format!("0.0.0.0:{}", trusting[0].peer.port());
    trusting[0].set("CHAT_PEER_SECRET", "").set("CHAT_PEER_LISTEN", exposed);
    trusting[0].set("CHAT_INSECURE_PEERS", "1");
    trusting.start_all().await;
    trusting[0].logged("The peer port is not protected").await;
    assert_eq!(trusting[0].metric("chat_peers_insecure").await, 1.0);
    assert_eq!(cluster[(node + 1) % 3].metric("chat_peers_insecure").await, 0.0);
}

/// Three nodes with different IP addresses, each with a certificate for its own address only.
fn certified(dir: &Path) -> (Cluster, Vec<Files>) {
    let mut cluster = Cluster::prepared(3);
    let authority = Authority::open(dir).unwrap();
    let mut files = Vec::new();
    let address = |node: usize, port| SocketAddr::from(([127, 0, 1, node as u8 + 1], port));
    let addresses: Vec<SocketAddr> = (0..3).map(|node| address(node, cluster[node].peer.port())).collect();
    let initial: Vec<String> = (0..3).map(|node| format!("n{}={}", node + 1, addresses[node])).collect();
    for node in 0..3 {
        let hosts = [addresses[node].ip().to_string()];
        let issued = authority.issue(&format!("n{}", node + 1), &hosts, 7).unwrap();
        let own = &mut cluster[node];
        own.peer = addresses[node];
        own.set("CHAT_PEER_SECRET", "").set("CHAT_PEER_LISTEN", addresses[node].to_string());
        own.set("CHAT_INITIAL_NODES", initial.join(","));
        own.set("CHAT_PEER_TLS_CERT", issued.certificate.display().to_string());
        own.set("CHAT_PEER_TLS_KEY", issued.key.display().to_string());
        own.set("CHAT_PEER_TLS_CA", issued.authority.as_ref().unwrap().display().to_string());
        files.push(issued);
    }
    (cluster, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_one_node_does_not_speak_for_another() {
    let dir = TempDir::new().unwrap();
    let (mut cluster, files) = certified(dir.path());
    cluster.start_all().await;
    let peers = Peers::new(Tls::load(files[1].clone()).unwrap().connector().unwrap().into());
    let target = cluster[0].peer.to_string();
    let client = || peers.client(&target, Lane::Control).unwrap();
    let plain = |id, node: usize| {
        let (name, address) = (format!("n{}", node + 1), cluster[node].peer.to_string());
        move |cluster_id: &str| Credentials::new(cluster_id, id, &name, &address).unwrap()
    };
    let found = client().probe(plain(0, 1)("").present(wire::ProbeRequest { name: "n2".into() })).await.unwrap();
    let cluster_id = found.into_inner().cluster_id;
    let denied = |result: Result<(), tonic::Status>| {
        let status = result.expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    };
    let index = async |credentials: Credentials| {
        let result = client().read_index(credentials.sign(1, wire::ReadIndexRequest {})).await;
        result.map(drop).map_err(|status| status.code())
    };
    // Its calls are accepted as itself (the node may not lead), but not as n3, and not under an unknown id.
    assert!(matches!(index(plain(2, 1)(&cluster_id)).await, Ok(()) | Err(Code::FailedPrecondition)));
    assert_eq!(index(plain(3, 2)(&cluster_id)).await, Err(Code::PermissionDenied));
    assert_eq!(index(plain(77, 2)(&cluster_id)).await, Err(Code::PermissionDenied));
    // As itself, but with the vote of n3.
    let vote = proto::log::v1::Vote { term: 1_000_000, node_id: 3, committed: false };
    let request = wire::VoteRequest { vote: Some(vote), ..Default::default() };
    denied(client().vote(plain(2, 1)(&cluster_id).sign(1, request)).await.map(drop));
    // In place of n3, before and outside of a membership.
    denied(client().probe(plain(0, 2)("").present(wire::ProbeRequest { name: "n3".into() })).await.map(drop));
    let join = wire::JoinRequest { name: "n3".into(), peer_address: cluster[2].peer.to_string(), ..Default::default() };
    denied(client().join(plain(0, 1)("").present(join.clone())).await.map(drop));
    for from in [2, 3] {
        denied(client().join(plain(from, 2)(&cluster_id).sign(1, join.clone())).await.map(drop));
    }
    let recall = wire::GetCommitmentsRequest { cluster_id: cluster_id.clone(), node_id: 3 };
    denied(client().get_commitments(plain(0, 1)("").present(recall)).await.map(drop));
    // Nor can n2 move n3 to another address, as a member or without membership.
    let away = wire::MoveRequest {
        cluster_id: cluster_id.clone(),
        node_id: 3,
        name: "n3".into(),
        peer_address: cluster[1].peer.to_string(),
        ..Default::default()
    };
    denied(client().r#move(plain(0, 1)("").present(away.clone())).await.map(drop));
    for from in [2, 3] {
        denied(client().r#move(plain(from, 2)(&cluster_id).sign(1, away.clone())).await.map(drop));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_when_a_certificate_is_replaced() {
    let dir = TempDir::new().unwrap();
    let (mut cluster, files) = certified(dir.path());
    cluster.start_all().await;
    // A member's connection that stays open. Its own certificate is not replaced.
    let aside = TempDir::new().unwrap();
    let copy = |path: &Path| {
        let to = aside.path().join(path.file_name().unwrap());
        std::fs::copy(path, &to).unwrap();
        to
    };
    let authority = files[1].authority.as_deref().map(copy);
    let kept = Files { certificate: copy(&files[1].certificate), key: copy(&files[1].key), authority };
    let peers = Peers::new(Tls::load(kept).unwrap().connector().unwrap().into());
    let mut client = peers.client(&cluster[0].peer.to_string(), Lane::Control).unwrap();
    let presented = Credentials::new("", 0, "n2", &cluster[1].peer.to_string()).unwrap();
    let found = client.probe(presented.present(wire::ProbeRequest { name: "n2".into() })).await.unwrap().into_inner();
    let credentials = Credentials::new(&found.cluster_id, 2, "n2", &cluster[1].peer.to_string()).unwrap();
    let nothing = futures_util::stream::pending::<wire::AppendRequest>();
    let mut open = client.stream_append(credentials.sign(1, nothing)).await.unwrap().into_inner();
    Authority::open(dir.path()).unwrap().issue("n1", &[cluster[0].peer.ip().to_string()], 7).unwrap();
    // The call would never end by itself.
    timeout(PATIENCE, open.message()).await.expect("the connection ends").expect_err("in the middle of the call");
    cluster[0].logged("Reloaded the certificate of peers (CHAT_PEER_TLS_CERT)").await;
    for node in 0..3 {
        cluster[node].ready().await;
    }
    let client = cluster.client().await;
    client.create_account("alice", support::PASSWORD).await.unwrap();
}
