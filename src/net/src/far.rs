//! A test network on which all hosts are equally far away, in simulated time.
//!
//! Connecting takes one round trip, and each byte takes half of one. A channel hands the connections to the test's
//! hosts.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Listener,
    dial::{ByteStream, Network},
};

const BUFFER: usize = 64 << 10;

/// A network with a fixed round-trip time.
pub struct Far {
    round_trip: Duration,
    hosts: Vec<UnboundedSender<DuplexStream>>,
}

impl Far {
    /// A network of `count` hosts, each with a channel that receives its connections. The addresses are `far:0`,
    /// `far:1` and so on.
    pub fn hosts(count: usize, round_trip: Duration) -> (Self, Vec<UnboundedReceiver<DuplexStream>>) {
        let (hosts, taken) = (0..count).map(|_| unbounded_channel()).unzip();
        (Self { round_trip, hosts }, taken)
    }
}

impl Network for Far {
    fn resolve(&self, address: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = address.rsplit_once(':').and_then(|(_, host)| host.parse().ok()).expect("one of these hosts");
        Box::pin(async move { Ok(vec![SocketAddr::new([192, 0, 2, 1].into(), host)]) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<ByteStream>> {
        let (host, round_trip) = (self.hosts[usize::from(address.port())].clone(), self.round_trip);
        Box::pin(async move {
            sleep(round_trip).await;
            let (near, from_near) = duplex(BUFFER);
            let (far, from_far) = duplex(BUFFER);
            let (near_out, near_in) = split(from_near);
            let (far_out, far_in) = split(from_far);
            carry(near_out, far_in, round_trip / 2);
            carry(far_out, near_in, round_trip / 2);
            host.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as ByteStream)
        })
    }
}

/// Carries bytes with a fixed delay.
fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, delay: Duration) {
    let (sender, mut on_the_way) = unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; BUFFER];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            // Fails only when the receiving task is gone.
            let _ = sender.send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    });
    tokio::spawn(async move {
        while let Some((arrives, bytes)) = on_the_way.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
}

/// The connections of a host.
impl Listener for UnboundedReceiver<DuplexStream> {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        let stream = self.recv().await.ok_or(io::ErrorKind::NotConnected)?;
        Ok((stream, SocketAddr::new([192, 0, 2, 2].into(), 1)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new([192, 0, 2, 1].into(), 1))
    }
}
