//! Fault injection for links between nodes: a TCP proxy before each node's peer port.
//!
//! All nodes know each other by the proxies' addresses. The source address identifies the caller (see `preload.c`), so
//! each direction between two nodes has its own state. Data from node A to node B travels as requests on A's
//! connections to B and as answers on B's connections to A. Both follow the state of A -> B.
//!
//! A proxy buffers a bounded amount and then stops reading, like a full TCP window. It accepts connections in every
//! state, so a silent link looks like a hung host. Loss is modelled: on a TCP stream, a lost packet causes a stall of
//! one retransmission timeout, or of twice as long when the retransmission is lost too, and everything behind it waits.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// Size of a read: the amount of data that one loss delays.
const SEGMENT: usize = 16 * 1024;
/// Maximum number of segments in flight in one direction of a connection.
const SEGMENTS_MAX: usize = 32;
/// TCP's minimum retransmission timeout on Linux.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// The state of one direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// Additional delay of all data.
    pub delay: Duration,
    /// Share of segments that are lost and retransmitted.
    pub loss: f64,
    /// Whether data is silently dropped.
    pub silent: bool,
    /// Whether connections are closed, including new ones.
    pub cut: bool,
}

impl Link {
    pub const HEALTHY: Self = Self { delay: Duration::ZERO, loss: 0.0, silent: false, cut: false };
    pub const SILENT: Self = Self { silent: true, ..Self::HEALTHY };
    pub const CUT: Self = Self { cut: true, ..Self::HEALTHY };

    pub fn delayed(ms: u64) -> Self {
        Self { delay: Duration::from_millis(ms), ..Self::HEALTHY }
    }

    pub fn lossy(loss: f64) -> Self {
        Self { loss, ..Self::HEALTHY }
    }

    /// The additional delay of the next segment.
    fn lateness(&self) -> Duration {
        let mut late = self.delay;
        let mut timeout = RETRANSMISSION;
        while f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX) < self.loss {
            late += timeout;
            timeout *= 2;
        }
        late
    }
}

/// All directions between all nodes. Nodes are numbered from 0.
#[derive(Clone)]
pub struct Links {
    states: Arc<HashMap<(usize, usize), watch::Sender<Link>>>,
    count: usize,
}

impl Links {
    /// Starts proxies before the peer ports `targets`. Returns them and their addresses.
    pub async fn before(targets: &[SocketAddr]) -> (Self, Vec<SocketAddr>) {
        let count = targets.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let states = Arc::new(pairs.map(|pair| (pair, watch::Sender::new(Link::HEALTHY))).collect());
        let links = Self { states, count };
        let mut addresses = Vec::new();
        for (to, target) in targets.iter().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(links.clone().accept(listener, to, *target));
        }
        (links, addresses)
    }

    /// The source address of a node's calls.
    pub fn source(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 0, 11 + u8::try_from(node).unwrap())
    }

    /// Sets one direction.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.states[&(from, to)].send_replace(link);
    }

    /// Sets the direction from a node to all others.
    pub fn outgoing(&self, node: usize, link: Link) {
        (0..self.count).for_each(|other| self.set(node, other, link));
    }

    /// Both directions between a node and all others.
    pub fn around(&self, node: usize, link: Link) {
        (0..self.count).for_each(|other| {
            self.set(node, other, link);
            self.set(other, node, link);
        });
    }

    /// Restores all links.
    pub fn heal(&self) {
        for state in self.states.values() {
            state.send_replace(Link::HEALTHY);
        }
    }

    async fn accept(self, listener: TcpListener, to: usize, target: SocketAddr) {
        while let Ok((caller, address)) = listener.accept().await {
            let IpAddr::V4(source) = address.ip() else { continue };
            let Some(from) = (0..self.count).find(|node| Self::source(*node) == source) else {
                panic!("a call from {source}, which is no node: was the library loaded?");
            };
            let (there, back) = (self.states[&(from, to)].subscribe(), self.states[&(to, from)].subscribe());
            tokio::spawn(connection(caller, target, there, back));
        }
    }
}

async fn connection(caller: TcpStream, target: SocketAddr, there: watch::Receiver<Link>, back: watch::Receiver<Link>) {
    if there.borrow().cut || back.borrow().cut {
        return;
    }
    // The node is down, so its proxy closes the connection.
    let Ok(callee) = TcpStream::connect(target).await else { return };
    let (_, _) = (caller.set_nodelay(true), callee.set_nodelay(true));
    let (caller_read, caller_write) = caller.into_split();
    let (callee_read, callee_write) = callee.into_split();
    tokio::select! {
        () = pass(caller_read, callee_write, there.clone()) => {}
        () = pass(callee_read, caller_write, back.clone()) => {}
        () = cut(there) => {}
        () = cut(back) => {}
    }
}

async fn cut(mut link: watch::Receiver<Link>) {
    // Fails only when the test ends and drops the sender.
    let _ = link.wait_for(|link| link.cut).await;
}

/// Forwards bytes in order, each when it is due, until either side closes.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) {
    let (sender, mut segments) = mpsc::channel::<(Instant, Vec<u8>)>(SEGMENTS_MAX);
    let state = link.clone();
    let reading = async move {
        loop {
            let mut segment = vec![0; SEGMENT];
            let Ok(count @ 1..) = from.read(&mut segment).await else { return };
            segment.truncate(count);
            let due = Instant::now() + state.borrow().lateness();
            if sender.send((due, segment)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, segment)) = segments.recv().await {
            // When the link is restored, delayed and lost data is sent immediately.
            tokio::select! {
                () = sleep_until(due) => {}
                _ = link.wait_for(|link| *link == Link::HEALTHY) => {}
            }
            if link.wait_for(|link| !link.silent).await.is_err() || to.write_all(&segment).await.is_err() {
                return;
            }
        }
    };
    // Data that was read before the end of the stream still arrives.
    tokio::join!(reading, writing);
}
