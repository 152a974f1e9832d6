//! Certificates: with them everything works as without, connections without them fail, and they can be renewed while
//! the cluster runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use client::{Client, Options};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use support::{Cluster, PASSWORD, eventually};

/// Runs `chatctl` with its own home directory. Returns its exit code and output.
fn chatctl(home: &Path, words: &[&str], input: &str) -> (i32, String) {
    use std::io::Write as _;
    let mut process = Command::new(support::chatctl())
        .args(words)
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Makes `chatctl` create certificates for some nodes. Returns the path of the authority's.
fn issue(dir: &Path, names: &[&str]) -> PathBuf {
    let mut words = vec!["certs", dir.to_str().unwrap()];
    words.extend(names);
    let (code, text) = chatctl(dir, &words, "");
    assert_eq!(code, 0, "{text}");
    dir.join("ca.pem")
}

const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// `count` nodes that are to use the certificates in `dir`; not started yet.
fn secured(count: usize, dir: &Path) -> Cluster {
    let mut cluster = Cluster::prepared(count);
    for node in 0..count {
        let name = cluster[node].name.clone();
        let file = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
        let node = &mut cluster[node];
        node.set("CHAT_PEER_SECRET", "");
        node.set("CHAT_TLS_CERT", file("pem")).set("CHAT_TLS_KEY", file("key"));
        node.set("CHAT_PEER_TLS_CERT", file("pem")).set("CHAT_PEER_TLS_KEY", file("key"));
        node.set("CHAT_PEER_TLS_CA", dir.join("ca.pem").display().to_string());
    }
    cluster
}

async fn trusting(cluster: &Cluster, authorities: &Path) -> Client {
    cluster.client_with(Options::default().with_tls(authorities).unwrap()).await
}

/// Gets the page of a node's web port over TLS.
async fn page(address: &str, authorities: &Path) -> std::io::Result<String> {
    use tokio_rustls::{TlsConnector, rustls};
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(authorities).unwrap();
    for certificate in rustls::pki_types::pem::PemObject::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(config).connect("localhost".try_into().unwrap(), stream).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map(|_| text)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_everything_works_and_without_nothing_does() {
    let (dir, elsewhere, home) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let authority = issue(dir.path(), &[&NAMES[..], &["n6", "n7"]].concat());
    issue(elsewhere.path(), &["n6"]);
    let mut cluster = secured(7, dir.path());
    let initial: Vec<String> = (0..5).map(|i| format!("{}={}", cluster[i].name, cluster[i].peer)).collect();
    let members = cluster[0].peer.to_string();
    cluster.set_all("CHAT_INITIAL_NODES", &initial.join(","));
    cluster.set_all("CHAT_EXPECTED_NODES", "n6,n7");
    for node in 0..5 {
        cluster[node].start();
    }
    for node in 0..5 {
        cluster[node].ready().await;
    }

    let client = trusting(&cluster, &authority).await;
    client.create_account("alice", PASSWORD).await.unwrap();
    client.login("alice", PASSWORD).await.unwrap();
    client.send_message("alice", "before").await.unwrap();
    let leader = client.leader().await.unwrap().node.name;
    let leader = NAMES.iter().position(|name| *name == leader).unwrap();
    cluster[leader].kill();
    client.send_message("alice", "after").await.unwrap();
    cluster.restart(leader).await;

    // Clients without TLS, or with another authority, are rejected before any request.
    let options = Options { deadline: std::time::Duration::from_secs(1), ..Options::default() };
    let addresses = || NAMES.iter().enumerate().map(|(node, _)| cluster[node].grpc.to_string());
    let error = Client::connect(addresses(), options.clone()).await.err().unwrap();
    assert!(error.is_unavailable() && error.message.contains("it talks TLS, and this side does not"), "{error:?}");
    let mistrusting = options.with_tls(&elsewhere.path().join("ca.pem")).unwrap();
    let error = Client::connect(addresses(), mistrusting).await.err().unwrap();
    assert!(error.is_unavailable() && error.message.contains("UnknownIssuer"), "{error:?}");

    // The command line: a session remembers the authority.
    let nodes: Vec<String> = addresses().collect();
    let words = ["--nodes", &nodes.join(","), "--tls-ca", authority.to_str().unwrap(), "register", "bob"];
    let (code, text) = chatctl(home.path(), &words, PASSWORD);
    assert_eq!(code, 0, "{text}");
    for words in
        [&["send", "alice", "hello"][..], &["health"], &["status"], &["bench", "--seconds", "0.2", "--clients", "2"]]
    {
        let (code, text) = chatctl(home.path(), words, "");
        assert_eq!(code, 0, "{words:?}: {text}");
    }
    // The web page, as browsers get it.
    let web = client.nodes().await.unwrap().nodes[0].web_address.clone();
    let text = page(&web, &authority).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");

    // A node with a certificate of another authority and one without a certificate cannot join; one with a valid
    // certificate joins.
    let stranger = |ending: &str| elsewhere.path().join(format!("n6.{ending}")).display().to_string();
    cluster[5].set("CHAT_JOIN", &members).set("CHAT_PEER_TLS_CERT", stranger("pem"));
    cluster[5].set("CHAT_PEER_TLS_KEY", stranger("key"));
    cluster[5].start();
    assert_eq!(cluster[5].exit_code().await, 64, "its own authority does not vouch for it");
    cluster[5].set("CHAT_PEER_TLS_CA", elsewhere.path().join("ca.pem").display().to_string()).start();
    eventually("the stranger is refused", async || {
        let log = cluster[0].log();
        log.contains("A TLS handshake failed").then_some(()).ok_or(log)
    })
    .await;
    for key in ["CHAT_PEER_TLS_CERT", "CHAT_PEER_TLS_KEY", "CHAT_PEER_TLS_CA"] {
        cluster[6].set(key, "");
    }
    cluster[6].set("CHAT_JOIN", &members).start();
    eventually("the node without certificates is refused", async || {
        let log = cluster[0].log();
        log.contains("InvalidContentType").then_some(()).ok_or(log)
    })
    .await;
    for node in [5, 6] {
        assert!(cluster[node].readiness().await.is_err());
        cluster[node].kill();
    }
    assert_eq!(client.nodes().await.unwrap().nodes.len(), 5);
    let good = |ending: &str| dir.path().join(format!("n6.{ending}")).display().to_string();
    cluster[5].set("CHAT_PEER_TLS_CERT", good("pem")).set("CHAT_PEER_TLS_KEY", good("key"));
    cluster[5].set("CHAT_PEER_TLS_CA", authority.display().to_string());
    cluster.restart(5).await;
    eventually("six nodes", async || {
        let nodes = client.nodes().await.map_err(|error| error.to_string())?.nodes;
        (nodes.len() == 6).then_some(()).ok_or_else(|| format!("{nodes:?}"))
    })
    .await;
}

/// Waits until each node has replaced the certificates of both its ports this many times.
async fn replaced(cluster: &Cluster, times: usize) {
    for node in 0..cluster.len() {
        eventually("the certificates are replaced", async || {
            let log = cluster[node].log();
            let found = |what: &str| log.matches(&format!("Reloaded the certificate of {what}")).count() >= times;
            (found("peers") && found("clients")).then_some(()).ok_or(log)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_the_nodes_run() {
    let (dir, next) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let authority = issue(dir.path(), &NAMES);
    let old = dir.path().join("old.pem");
    fs::copy(&authority, &old).unwrap();
    let new = issue(next.path(), &NAMES);
    let mut cluster = secured(5, dir.path());
    cluster.start_all().await;
    let client = trusting(&cluster, &old).await;
    client.create_account("alice", PASSWORD).await.unwrap();
    client.login("alice", PASSWORD).await.unwrap();

    // First all nodes trust both authorities, then all present new certificates, then none trusts the old authority.
    fs::write(&authority, [fs::read(&old).unwrap(), fs::read(&new).unwrap()].concat()).unwrap();
    for name in NAMES {
        for ending in ["key", "pem"] {
            let file = format!("{name}.{ending}");
            fs::copy(next.path().join(&file), dir.path().join(&file)).unwrap();
        }
    }
    replaced(&cluster, 1).await;
    fs::copy(&new, &authority).unwrap();
    eventually("the old authority is forgotten", async || {
        let peers = cluster[0].log().matches("Reloaded the certificate of peers (CHAT_PEER_TLS_CERT)").count();
        (peers >= 2).then_some(()).ok_or_else(|| cluster[0].log())
    })
    .await;

    // Open connections stay; new ones get the new certificate.
    client.send_message("alice", "over the old connection").await.unwrap();
    let renewed = trusting(&cluster, &new).await;
    renewed.login("alice", PASSWORD).await.unwrap();
    let options = Options { deadline: std::time::Duration::from_secs(1), ..Options::default() };
    let addresses = (0..5).map(|node| cluster[node].grpc.to_string());
    assert!(Client::connect(addresses, options.with_tls(&old).unwrap()).await.is_err());
    // The nodes reconnect to each other with it.
    for node in 0..5 {
        cluster[node].kill();
    }
    cluster.start_all().await;
    renewed.send_message("alice", "after all").await.unwrap();
}
