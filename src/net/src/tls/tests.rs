//! Which connections are accepted, and how changed files are handled.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use tokio_rustls::TlsAcceptor;

use super::{issue::Authority, *};
use crate::{Dialer, Listener as _, dial::ByteStream};

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A directory with an authority, and the files that it issued for the loopback address.
fn issued(name: &str) -> (TempDir, Files) {
    let dir = TempDir::new().unwrap();
    let files = Authority::open(dir.path()).unwrap().issue(name, &hosts(&["localhost", "127.0.0.1"]), 7).unwrap();
    (dir, files)
}

fn without_authority(files: &Files) -> Files {
    Files { authority: None, ..files.clone() }
}

/// A port that echoes every byte for as long as the test runs.
async fn echo(tls: Arc<Tls>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut port = Port::new(listener, Some(tls), Protocol::Grpc);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = port.accept().await {
            tokio::spawn(async move {
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
            });
        }
    });
    address
}

async fn connect(connector: &Connector, address: &str) -> io::Result<ByteStream> {
    Dialer::from(connector.clone()).open(address, Duration::from_secs(10)).await
}

/// Connects, and receives a byte back.
async fn talk(connector: &Connector, address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(connector, &address.to_string()).await?;
    stream.write_all(b"x").await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await.map(|_| ())
}

#[test]
fn it_is_known_when_certificates_end() {
    const DAY: u64 = 24 * 3600;
    let (_dir, files) = issued("n1");
    let left = |files: &Files| {
        let ends = Tls::load(files.clone()).unwrap().expires_at().expect("known");
        ends.duration_since(std::time::SystemTime::now()).unwrap().as_secs()
    };
    let seven_days = 7 * DAY - 3600..=7 * DAY + DAY;
    assert!(seven_days.contains(&left(&files)), "{} s", left(&files));
    assert!(seven_days.contains(&left(&without_authority(&files))), "with or without an authority");
    // The authority ends later. It is part of the chain, but does not count.
    let mut chain = fs::read(&files.certificate).unwrap();
    chain.extend(fs::read(files.authority.as_ref().unwrap()).unwrap());
    fs::write(&files.certificate, chain).unwrap();
    assert!(seven_days.contains(&left(&files)), "{} s", left(&files));
}

#[tokio::test]
async fn who_is_vouched_for_is_talked_to() {
    let (_dir, files) = issued("n1");
    let tls = Tls::load(files).unwrap();
    let address = echo(Arc::clone(&tls)).await;
    talk(&tls.connector().unwrap(), address).await.unwrap();
}

#[tokio::test]
async fn peers_without_a_certificate_of_the_authority_get_nowhere() {
    let (_dir, files) = issued("n1");
    let (_other, theirs) = issued("n2");
    let address = echo(Tls::load(files.clone()).unwrap()).await;
    // No certificate at all.
    let nobody = Connector::trusting(files.authority.as_deref().unwrap()).unwrap();
    talk(&nobody, address).await.unwrap_err();
    // A certificate of another authority, presented by a caller that trusts this one.
    let impostor = Files { authority: files.authority.clone(), ..theirs.clone() };
    talk(&Tls::load(impostor).unwrap().connector().unwrap(), address).await.unwrap_err();
    // Nor does a node connect to a server of another authority.
    let elsewhere = Tls::load(theirs).unwrap().connector().unwrap();
    assert!(talk(&elsewhere, address).await.unwrap_err().to_string().contains("UnknownIssuer"));
}

#[tokio::test]
async fn clients_need_no_certificate_but_the_right_name() {
    let (_dir, files) = issued("n1");
    let address = echo(Tls::load(without_authority(&files)).unwrap()).await;
    let client = Connector::trusting(files.authority.as_deref().unwrap()).unwrap();
    talk(&client, address).await.unwrap();
    connect(&client, &format!("localhost:{}", address.port())).await.unwrap();

    let dir = TempDir::new().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let other = authority.issue("other", &hosts(&["other.example.org"]), 7).unwrap();
    let address = echo(Tls::load(without_authority(&other)).unwrap()).await;
    let client = Connector::trusting(other.authority.as_deref().unwrap()).unwrap();
    let error = talk(&client, address).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn without_tls_nothing_is_understood() {
    let (_dir, files) = issued("n1");
    let address = echo(Tls::load(without_authority(&files)).unwrap()).await;
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() < 24, "an alert at most: {answer:?}");
    // And the other way round.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut port = Port::new(listener, None, Protocol::Grpc);
    tokio::spawn(async move {
        let (mut stream, _) = port.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let client = Connector::trusting(files.authority.as_deref().unwrap()).unwrap();
    talk(&client, address).await.unwrap_err();
}

/// Certificates of one authority: a lasting one for `n1`, and one for `n2` that ends within seconds.
fn lasting_and_brief() -> (TempDir, Arc<Tls>, Arc<Tls>) {
    let dir = TempDir::new().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let here = hosts(&["127.0.0.1"]);
    let lasting = authority.issue("n1", &here, 7).unwrap();
    let brief = authority.issue_for("n2", &here, Duration::from_secs(5)).unwrap();
    (dir, Tls::load(lasting).unwrap(), Tls::load(brief).unwrap())
}

/// Waits until an idle connection ends.
async fn end_of(mut stream: impl AsyncRead + Unpin) -> io::Result<usize> {
    tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0])).await.expect("it ends")
}

#[tokio::test]
async fn a_server_ends_the_connection_of_a_certificate_that_expires() {
    let (_dir, lasting, brief) = lasting_and_brief();
    let address = echo(lasting).await;
    // A client that does not check the time itself.
    let config = brief.read().client.clone().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = TlsConnector::from(config).connect(server_name("127.0.0.1").unwrap(), stream).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    let _ = end_of(stream).await;
    assert!(SystemTime::now() >= brief.expires_at().unwrap(), "it ended before its time");
    talk(&brief.connector().unwrap(), address).await.expect_err("it was let in again");
}

#[tokio::test]
async fn a_client_ends_the_connection_to_a_certificate_that_expires() {
    let (_dir, lasting, brief) = lasting_and_brief();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // A server that does not check the time itself.
    let acceptor = TlsAcceptor::from(brief.server(Protocol::Grpc));
    let served = tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await });
    let stream = connect(&lasting.connector().unwrap(), &address.to_string()).await.unwrap();
    let open = served.await.unwrap().unwrap();
    assert_eq!(end_of(stream).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(SystemTime::now() >= brief.expires_at().unwrap(), "it ended before its time");
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn who_is_silent_is_cut_off() {
    let (_dir, files) = issued("n1");
    let (ours, theirs) = tokio::io::duplex(1024);
    let accept = TlsAcceptor::from(Tls::load(files).unwrap().server(Protocol::Grpc)).accept(ours);
    let mut stream = port::Stream::greeting(accept, "127.0.0.1:1".parse().unwrap(), None, Peer::anonymous());
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(theirs);
}

#[tokio::test]
async fn replaced_files_are_taken_into_use_and_bad_ones_are_not() {
    let (dir, files) = issued("n1");
    let tls = Tls::load(files.clone()).unwrap();
    let address = echo(Arc::clone(&tls)).await;
    let before = Connector::trusting(files.authority.as_deref().unwrap()).unwrap();
    assert!(!tls.reload().unwrap(), "nothing changed");

    // Half of a replacement: the certificate is new, but the key is not.
    let (_new, theirs) = issued("n1");
    fs::copy(&theirs.certificate, &files.certificate).unwrap();
    let error = tls.reload().unwrap_err();
    assert!(error.to_string().contains("n1.pem"), "{error}");
    assert!(talk(&tls.connector().unwrap(), address).await.is_ok(), "what was in use still is");

    // The complete replacement, with another authority.
    fs::copy(&theirs.key, &files.key).unwrap();
    fs::copy(theirs.authority.as_deref().unwrap(), dir.path().join("ca.pem")).unwrap();
    assert!(tls.reload().unwrap());
    assert!(!tls.reload().unwrap());
    talk(&tls.connector().unwrap(), address).await.unwrap();
    assert!(talk(&before, address).await.unwrap_err().to_string().contains("UnknownIssuer"));
}

#[test]
fn what_is_wrong_is_named_with_its_file() {
    let (dir, files) = issued("n1");
    let error = |files: Files| Tls::load(files).unwrap_err().to_string();
    let missing = dir.path().join("nowhere.pem");
    assert!(error(Files { certificate: missing.clone(), ..files.clone() }).contains("nowhere.pem: No such file"));
    assert!(error(Files { authority: Some(missing), ..files.clone() }).contains("nowhere.pem: No such file"));
    let swapped = Files { certificate: files.key.clone(), key: files.certificate.clone(), ..files.clone() };
    assert!(error(swapped).contains("n1.key: no certificate in PEM form"));
    let no_key = Files { key: files.certificate.clone(), ..files.clone() };
    assert!(error(no_key).contains("n1.pem: no private key in PEM form"));
    let other = Authority::open(dir.path()).unwrap().issue("n2", &hosts(&["n2"]), 7).unwrap();
    assert!(error(Files { key: other.key, ..files }).contains("n1.pem: "));
}

#[test]
fn a_certificate_is_for_some_hosts_and_of_one_authority() {
    let (dir, files) = issued("n1");
    let tls = Tls::load(files.clone()).unwrap();
    tls.check_host("localhost").unwrap();
    tls.check_host("127.0.0.1").unwrap();
    let error = tls.check_host("n7.example.org").unwrap_err().to_string();
    assert!(error.contains("n1.pem: not valid for the host \"n7.example.org\""), "{error}");
    assert!(tls.check_host("not a host").is_err());
    // The same without an authority: only the name counts.
    let alone = Tls::load(without_authority(&files)).unwrap();
    alone.check_host("localhost").unwrap();
    alone.check_host("n7").unwrap_err();
    alone.connector().unwrap_err();
    // Signed by another authority.
    let (_other, theirs) = issued("n2");
    let foreign = Tls::load(Files { authority: theirs.authority, ..files }).unwrap();
    assert!(foreign.check_host("localhost").unwrap_err().to_string().contains("UnknownIssuer"));
    drop(dir);
}

#[test]
fn an_authority_is_kept_and_its_certificates_are_renewed() {
    let dir = TempDir::new().unwrap();
    let first = Authority::open(dir.path()).unwrap();
    assert!(first.is_new());
    let wildcard = first.issue("all", &hosts(&["*.peers.example", "::1"]), 7).unwrap();
    let before = fs::read(&wildcard.certificate).unwrap();
    let again = Authority::open(dir.path()).unwrap();
    assert!(!again.is_new());
    let tls = Tls::load(again.issue("all", &hosts(&["*.peers.example"]), 7).unwrap()).unwrap();
    assert_ne!(fs::read(&wildcard.certificate).unwrap(), before);
    tls.check_host("n1.peers.example").unwrap();
    tls.check_host("a.n1.peers.example").unwrap_err();
    assert!(again.issue("wide", &hosts(&["*.peers"]), 7).is_err(), "nobody accepts that");
    // A key that does not belong to the authority of the certificate.
    let (_other, theirs) = issued("n1");
    fs::copy(theirs.authority.unwrap(), dir.path().join("ca.pem")).unwrap();
    assert!(matches!(again.issue("n2", &hosts(&["n2"]), 7), Err(issue::IssueError::NoUse(_))));
    fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
    assert!(Authority::open(dir.path()).is_err());
}

#[test]
fn hosts_are_found_in_addresses() {
    for (address, expected) in [("n1:50051", "n1"), ("[::1]:50051", "::1"), ("127.0.0.1:1", "127.0.0.1")] {
        assert_eq!(host_of(address), expected);
    }
}
