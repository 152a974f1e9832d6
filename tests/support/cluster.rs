//! A cluster of several nodes, and the operations that tests need.

use std::{
    net::SocketAddr,
    ops::{Index, IndexMut},
    path::Path,
    time::Duration,
};

use client::{Client, Options};
use futures_util::future::join_all;
use tempfile::TempDir;

use super::{
    Direct, Node, PASSWORD, eventually,
    links::Links,
    ports::Ports,
    preload::{Faults, Preload},
    slots::Slots,
};

/// A cluster. Nodes are numbered from 0.
pub struct Cluster {
    nodes: Vec<Node>,
    /// Dropped after the nodes, in this order.
    dir: TempDir,
    ports: Ports,
    _slots: Slots,
}

impl Index<usize> for Cluster {
    type Output = Node;
    fn index(&self, node: usize) -> &Node {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }
}

impl Cluster {
    /// Five nodes, all of them ready.
    pub async fn five() -> Self {
        Self::running(Slots::one(), 5).await
    }

    /// Five nodes, all of them ready, with no other cluster running at the same time: for measuring times.
    pub async fn five_alone() -> Self {
        Self::running(Slots::all(), 5).await
    }

    async fn running(slots: Slots, count: usize) -> Self {
        let mut cluster = Self::with(slots, count);
        cluster.start_all().await;
        cluster
    }

    /// `count` nodes that are not started yet.
    pub fn prepared(count: usize) -> Self {
        Self::with(Slots::one(), count)
    }

    /// Five nodes that are not started yet, with fault injection for disks, clocks and links. No other cluster runs at
    /// the same time.
    pub async fn fragile() -> (Self, Vec<Faults>, Links) {
        let mut cluster = Self::with(Slots::all(), 5);
        let preload = Preload::compile(cluster.dir.path());
        let load = |(number, node)| preload.load_into(node, number);
        let faults = cluster.nodes.iter_mut().enumerate().map(load).collect();
        let targets: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.peer).collect();
        let (links, proxies) = Links::before(&targets).await;
        cluster.found_with(&proxies);
        (cluster, faults, links)
    }

    fn with(slots: Slots, count: usize) -> Self {
        let (dir, ports) = (TempDir::new().unwrap(), Ports::take());
        let node = |i| Node::new(dir.path(), &format!("n{}", i + 1), ports.of(i));
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let peers: Vec<SocketAddr> = nodes.iter().map(|node| node.peer).collect();
        let mut cluster = Self { nodes, dir, ports, _slots: slots };
        cluster.found_with(&peers);
        cluster
    }

    /// Configures all nodes with each other's peer addresses.
    fn found_with(&mut self, peers: &[SocketAddr]) {
        let initial: Vec<String> =
            self.nodes.iter().zip(peers).map(|(node, peer)| format!("{}={peer}", node.name)).collect();
        self.set_all("CHAT_INITIAL_NODES", &initial.join(","));
    }

    /// Another process for a node, with its own files and ports; not started.
    pub fn another_of(&self, node: usize, data_dir: &Path) -> Node {
        let ports = self.ports.of(self.nodes.len());
        let mut another = Node::new(self.dir.path(), &format!("{}-again", self.nodes[node].name), ports);
        let advertised = another.peer.to_string();
        another
            .set("CHAT_NAME", &self.nodes[node].name)
            .set("CHAT_DATA_DIR", data_dir.display().to_string())
            .set("CHAT_PEER_ADVERTISE", advertised)
            .set("CHAT_INITIAL_NODES", self.nodes[node].value("CHAT_INITIAL_NODES"));
        another
    }

    /// Sets a key of the configuration of all nodes, from their next start on.
    pub fn set_all(&mut self, key: &str, value: &str) {
        for node in &mut self.nodes {
            node.set(key, value);
        }
    }

    #[allow(clippy::len_without_is_empty, reason = "a cluster has nodes")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Starts the nodes that do not run, and waits until all are ready.
    pub async fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_up()) {
            node.start();
        }
        for node in &mut self.nodes {
            node.ready().await;
        }
    }

    /// Starts a node and waits until it is ready.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].start();
        self.nodes[node].ready().await;
    }

    /// The numbers of the running nodes.
    pub fn up(&self) -> Vec<usize> {
        (0..self.len()).filter(|node| self.nodes[*node].is_up()).collect()
    }

    /// A library client that knows all addresses.
    pub async fn client(&self) -> Client {
        self.client_with(Options::default()).await
    }

    pub async fn client_with(&self, options: Options) -> Client {
        Client::connect(self.nodes.iter().map(|node| node.grpc.to_string()), options).await.unwrap()
    }

    /// A library client with a new account, and its token.
    pub async fn register(&self, name: &str) -> (Client, String) {
        let client = self.client().await;
        client.create_account(name, PASSWORD).await.unwrap();
        let token = client.login(name, PASSWORD).await.unwrap().token;
        (client, token)
    }

    /// Calls to one node and no other.
    pub fn direct(&self, node: usize, token: &str) -> Direct {
        Direct::new(self.nodes[node].grpc, token)
    }

    /// Calls to each node.
    pub fn directs(&self, token: &str) -> Vec<Direct> {
        (0..self.len()).map(|node| self.direct(node, token)).collect()
    }

    /// The leader that all running nodes agree on.
    pub async fn leader(&self) -> usize {
        eventually("one leader for all", async || {
            let asked = self.up().into_iter().map(|node| async move { (node, self.direct(node, "").leader().await) });
            let mut agreed = None;
            for (node, answer) in join_all(asked).await {
                let leader = answer.map_err(|error| format!("{}: {error}", self.nodes[node].name))?;
                if *agreed.get_or_insert_with(|| leader.clone()) != leader {
                    return Err(format!("{} says {leader:?}, others {agreed:?}", self.nodes[node].name));
                }
            }
            let (name, _) = agreed.ok_or("no node runs")?;
            self.up().into_iter().find(|node| self.nodes[*node].name == name).ok_or(format!("{name} does not run"))
        })
        .await
    }

    /// A running node that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.up().into_iter().find(|node| *node != leader).unwrap()
    }

    /// Waits until all running nodes have the same state, of at least `revision`, and returns its revision. A node that
    /// does not know the session of `token` yet does not count as caught up.
    pub async fn level(&self, token: &str, revision: u64) -> u64 {
        eventually("the same revision everywhere", async || {
            let directs: Vec<Direct> = self.up().into_iter().map(|node| self.direct(node, token)).collect();
            let headers = join_all(directs.iter().map(|direct| direct.local())).await;
            let headers: Result<Vec<u64>, _> = headers.into_iter().map(|header| Ok(header?.revision)).collect();
            let revisions = headers.map_err(|error: client::ClientError| error.to_string())?;
            let newest = revisions.iter().max().copied().unwrap_or_default();
            let level = newest >= revision && revisions.iter().all(|have| *have == newest);
            level.then_some(newest).ok_or_else(|| format!("{revisions:?}, wanted {revision}"))
        })
        .await
    }
}

/// Options for calls that have to fail, with a short deadline.
pub fn impatient() -> Options {
    Options { deadline: Duration::from_secs(2), ..Options::default() }
}
