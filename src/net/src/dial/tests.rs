//! Order of the attempts, errors of calls, and reuse of connections, in simulated time.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex as StdMutex};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
use tonic::{Code, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::*;
use crate::far::Far;

const MS: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Host {
    Refuses(Duration),
    Silent,
    Answers(Duration),
}

/// A scripted network that records the attempts.
#[derive(Clone, Default)]
struct Script(Arc<Scripted>);

#[derive(Default)]
struct Scripted {
    /// The addresses of the name, with the time from which they are valid.
    names: Vec<(Duration, Vec<SocketAddr>)>,
    hosts: HashMap<SocketAddr, Host>,
    began: std::sync::OnceLock<Instant>,
    tried: StdMutex<Vec<(SocketAddr, Duration)>>,
    /// The hosts' ends of the connections.
    taken: StdMutex<Vec<DuplexStream>>,
}

impl Script {
    fn new(addresses: &[&str], hosts: &[(&str, Host)]) -> Self {
        Self::renamed(vec![(Duration::ZERO, all(addresses))], hosts)
    }

    fn renamed(names: Vec<(Duration, Vec<SocketAddr>)>, hosts: &[(&str, Host)]) -> Self {
        let hosts = hosts.iter().map(|(address, host)| (at(address), *host)).collect();
        Self(Arc::new(Scripted { names, hosts, ..Scripted::default() }))
    }

    fn elapsed(&self) -> Duration {
        self.0.began.get_or_init(Instant::now).elapsed()
    }

    fn tried(&self) -> Vec<(SocketAddr, Duration)> {
        self.0.tried.lock().unwrap().clone()
    }

    /// Connects to the name.
    async fn open(&self, limit: Duration) -> io::Result<ByteStream> {
        self.elapsed();
        Dialer::new(self.clone()).open("name:1", limit).await
    }
}

impl Network for Script {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let now = self.elapsed();
        let found = self.0.names.iter().rev().find(|(from, _)| *from <= now).map(|(_, addresses)| addresses.clone());
        Box::pin(async move { Ok(found.unwrap_or_default()) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<ByteStream>> {
        self.0.tried.lock().unwrap().push((address, self.elapsed()));
        let (host, script) = (self.0.hosts[&address], Arc::clone(&self.0));
        Box::pin(async move {
            match host {
                Host::Silent => std::future::pending().await,
                Host::Refuses(after) => {
                    sleep(after).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Host::Answers(after) => {
                    sleep(after).await;
                    let (near, far) = duplex(1024);
                    script.taken.lock().unwrap().push(far);
                    Ok(Box::new(near) as ByteStream)
                }
            }
        })
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn all(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| at(address)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_silent_address_costs_the_next_one_a_quarter_of_a_second() {
    let hosts = [("[::1]:1", Host::Silent), ("[::2]:1", Host::Silent), ("10.0.0.1:1", Host::Answers(40 * MS))];
    let network = Script::new(&["[::1]:1", "[::2]:1", "10.0.0.1:1"], &hosts);
    network.open(LIMIT).await.unwrap();
    // The address families alternate.
    assert_eq!(network.tried(), [(at("[::1]:1"), Duration::ZERO), (at("10.0.0.1:1"), 250 * MS)]);
    assert_eq!(network.elapsed(), 290 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_brings_the_next_one_forward() {
    let hosts = [("10.0.0.1:1", Host::Refuses(5 * MS)), ("10.0.0.2:1", Host::Answers(10 * MS))];
    let network = Script::new(&["10.0.0.1:1", "10.0.0.2:1"], &hosts);
    network.open(LIMIT).await.unwrap();
    assert_eq!(network.elapsed(), 15 * MS);
    let network = Script::new(&["10.0.0.1:1"], &hosts);
    let error = network.open(LIMIT).await.err().unwrap();
    assert_eq!((error.kind(), network.elapsed()), (io::ErrorKind::ConnectionRefused, 5 * MS));
}

#[tokio::test(start_paused = true)]
async fn five_addresses_share_no_time() {
    let addresses = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.0.0.5:1"];
    for round_trip in [70, 320, 1_500] {
        let network = Script::new(&addresses, &addresses.map(|address| (address, Host::Answers(round_trip * MS))));
        network.open(LIMIT).await.unwrap();
        assert_eq!(network.elapsed(), round_trip * MS, "the first attempt goes on beside the others");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_moves_is_found_while_the_old_address_is_silent() {
    let names = vec![(Duration::ZERO, all(&["10.0.0.1:1"])), (700 * MS, all(&["10.0.0.2:1"]))];
    let network = Script::renamed(names, &[("10.0.0.1:1", Host::Silent), ("10.0.0.2:1", Host::Answers(10 * MS))]);
    network.open(LIMIT).await.unwrap();
    assert_eq!(network.elapsed(), 1_010 * MS);
}

#[tokio::test(start_paused = true)]
async fn silence_is_bounded_in_time_and_in_attempts() {
    let network = Script::new(&["10.0.0.1:1"], &[("10.0.0.1:1", Host::Silent)]);
    let error = network.open(LIMIT).await.err().unwrap();
    assert_eq!((error.kind(), network.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
    assert_eq!(network.tried().len(), 8);
    let nobody = Script::new(&[], &[]).open(LIMIT).await.err().unwrap();
    assert_eq!(nobody.kind(), io::ErrorKind::NotFound);
}

fn channel(network: impl Network) -> MeasuredChannel {
    let endpoint = Endpoint::from_static("http://name:1");
    Dialer::new(network).channel(endpoint, ConnectTimeouts { per_call: 300 * MS, total: LIMIT })
}

/// A call on a channel.
async fn call(channel: &MeasuredChannel) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.channel.clone());
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let codec = ProstCodec::<(), ()>::default();
    grpc.unary(tonic::Request::new(()), PathAndQuery::from_static("/a/b"), codec).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_briefly_and_connecting_goes_on() {
    let network = Script::new(&["10.0.0.1:1"], &[("10.0.0.1:1", Host::Answers(1_500 * MS))]);
    let channel = channel(network.clone());
    let status = call(&channel).await.unwrap_err();
    assert_eq!((status.code(), network.elapsed()), (Code::Unavailable, 300 * MS));
    assert!(never_connected(&status), "{status:?}");
    assert_eq!(channel.round_trip.latest(), Duration::ZERO);
    sleep(1_300 * MS).await;
    assert_eq!(channel.round_trip.latest(), 1_500 * MS);
    // The next call is sent at once. It fails because the connection is not served.
    network.0.taken.lock().unwrap().clear();
    let status = call(&channel).await.unwrap_err();
    assert!(!never_connected(&status), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_closed() {
    let network = Script::new(&["10.0.0.1:1"], &[("10.0.0.1:1", Host::Answers(400 * MS))]);
    let channel = channel(network.clone());
    call(&channel).await.unwrap_err();
    sleep(101 * MS).await;
    let mut open = network.0.taken.lock().unwrap().pop().unwrap();
    assert_eq!(open.read(&mut [0]).await.unwrap(), 0, "it ends without a byte");
    assert_eq!(network.elapsed(), 400 * MS + UNUSED_MAX);
    drop(channel);
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_not_closed_for_the_age_of_an_earlier_one() {
    let network = Script::new(&["10.0.0.1:1"], &[("10.0.0.1:1", Host::Answers(400 * MS))]);
    let channel = channel(network.clone());
    // Each connection is complete 100 ms after its call has given up. The first is used by the next call.
    call(&channel).await.unwrap_err();
    sleep(150 * MS).await;
    network.0.taken.lock().unwrap().clear();
    assert!(!never_connected(&call(&channel).await.unwrap_err()));
    sleep(UNUSED_MAX - 500 * MS).await;
    assert!(never_connected(&call(&channel).await.unwrap_err()));
    // The first connection would be too old by now.
    sleep(500 * MS).await;
    network.0.taken.lock().unwrap().clear();
    assert!(!never_connected(&call(&channel).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn an_old_failure_is_not_reported_again() {
    let network = Script::new(&["10.0.0.1:1"], &[("10.0.0.1:1", Host::Refuses(310 * MS))]);
    let channel = channel(network.clone());
    call(&channel).await.unwrap_err();
    sleep(1_000 * MS).await;
    let tried = network.tried().len();
    call(&channel).await.unwrap_err();
    assert_eq!(network.tried().len(), tried + 1, "it was tried anew");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_at_a_round_trip_of_a_second_and_a_half_is_done_in_time() {
    use crate::{
        Listener as _,
        tls::{Files, Port, Protocol, Tls, issue::Authority},
    };
    let dir = tempfile::tempdir().unwrap();
    let files = Authority::open(dir.path()).unwrap().issue("far", &["far".to_owned()], 7).unwrap();
    let connector = Connector::trusting(files.authority.as_deref().unwrap()).unwrap();
    let (network, mut hosts) = Far::hosts(1, 1_500 * MS);
    let mut port =
        Port::new(hosts.remove(0), Some(Tls::load(Files { authority: None, ..files }).unwrap()), Protocol::Grpc);
    let served = tokio::spawn(async move {
        let (mut stream, _) = port.accept().await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(|_| byte)
    });
    let dialer = Dialer { tls: Some(connector), ..Dialer::new(network) };
    let mut stream = dialer.open("far:0", LIMIT).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
    assert_eq!(served.await.unwrap().unwrap(), *b"x");
}
