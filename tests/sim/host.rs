//! A node on a simulated host: the server's own code, with turmoil's network and the other simulated parts.

use std::{
    cell::RefCell,
    future::ready,
    io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use net::{
    Dialer, Listener,
    dial::{ByteStream, Network},
};
use raft::Node;
use server::{Host, LocalPorts, ServerError, config::Config};
use storage::Background;
use tokio::sync::{mpsc, watch};
use turmoil::net::{TcpListener, TcpStream};

use super::{
    clock,
    resets::{Breakable, Resets},
    rng::Rng,
    worker::{Latency, Tasks},
    world::FOUNDERS,
};

/// An operation on a running node from inside, as an operator would request it.
pub type Order = Box<dyn FnOnce(Node) + Send>;

/// The peer port of each slot, with effect from its next start.
pub type Ports = Rc<RefCell<Vec<u16>>>;

/// A node as the driver of the simulation sees it.
pub struct NodeSlot {
    /// Its number, from 0.
    pub number: usize,
    /// Its directory below the common root.
    pub dir: PathBuf,
    /// Its configuration, except for the peer addresses.
    pub config: Vec<(String, String)>,
    /// The peer ports of all slots, as the operator has configured them.
    pub ports: Ports,
    pub latency: Arc<Latency>,
    pub resets: Resets,
    pub rng: RefCell<Rng>,
    /// Set while it takes part in the cluster.
    pub node: Arc<Mutex<Option<Node>>>,
    /// The result of its end, until it is read.
    pub ended: RefCell<Option<Result<(), String>>>,
    /// Signals the node to stop.
    pub stop: RefCell<watch::Sender<bool>>,
    pub orders: RefCell<Option<mpsc::UnboundedSender<Order>>>,
    /// The number of its starts.
    pub starts: RefCell<u64>,
}

impl NodeSlot {
    /// The node's name and its host's.
    pub fn name(&self) -> String {
        format!("n{}", self.number + 1)
    }

    /// Runs the host's software. Never returns: the driver removes an ended process from the host.
    pub async fn run(self: Rc<Self>) {
        clock::enter(self.number);
        *self.starts.borrow_mut() += 1;
        let (sender, stop) = watch::channel(false);
        self.stop.replace(sender);
        let (orders, mut given) = mpsc::unbounded_channel::<Order>();
        self.orders.replace(Some(orders));
        let node = Arc::clone(&self.node);
        tokio::spawn(async move {
            while let Some(order) = given.recv().await {
                let running = node.lock().expect("not poisoned").clone();
                if let Some(node) = running {
                    order(node);
                }
            }
        });
        let config = self.config.iter().cloned().chain(self.peer_config());
        let config = Config::load(config).expect("valid");
        let tasks = Tasks { latency: Arc::clone(&self.latency), rng: Mutex::new(self.rng.borrow_mut().split("tasks")) };
        let resets = self.resets.subscribe();
        let host = Simulated { stop, background: Arc::new(tasks), resets, node: Arc::clone(&self.node) };
        let result = server::run_on(host, config).await.map_err(|error| error.to_string());
        self.node.lock().expect("not poisoned").take();
        self.ended.replace(Some(result));
        std::future::pending::<()>().await;
    }

    /// The configuration of the node's peer port and of its peers' addresses.
    fn peer_config(&self) -> Vec<(String, String)> {
        let ports = self.ports.borrow();
        let at = |slot: usize| format!("n{}:{}", slot + 1, ports[slot]);
        let initial: Vec<String> = (0..FOUNDERS).map(|slot| format!("n{}={}", slot + 1, at(slot))).collect();
        let mut config = vec![
            ("CHAT_PEER_LISTEN".to_owned(), format!("0.0.0.0:{}", ports[self.number])),
            ("CHAT_PEER_ADVERTISE".to_owned(), at(self.number)),
            ("CHAT_INITIAL_NODES".to_owned(), initial.join(",")),
        ];
        if self.number >= FOUNDERS {
            config.push(("CHAT_JOIN".to_owned(), (0..3).map(at).collect::<Vec<_>>().join(",")));
        }
        config
    }

    /// Runs an operation on the node, if it is running.
    pub fn order(&self, order: impl FnOnce(Node) + Send + 'static) {
        if let Some(orders) = &*self.orders.borrow() {
            // Fails if the node is gone.
            let _ = orders.send(Box::new(order));
        }
    }
}

struct Simulated {
    stop: watch::Receiver<bool>,
    background: Arc<dyn Background>,
    resets: watch::Receiver<()>,
    node: Arc<Mutex<Option<Node>>>,
}

impl Host for Simulated {
    type Listener = Accepting;

    async fn listen(&self, address: SocketAddr) -> io::Result<Accepting> {
        Ok(Accepting { listener: TcpListener::bind(address).await?, resets: self.resets.clone() })
    }

    async fn local_ports(&self, _config: &Config) -> Result<Option<LocalPorts>, ServerError> {
        Ok(None)
    }

    fn dialer(&self) -> Dialer {
        Dialer::new(SimulatedNetwork { resets: self.resets.clone() })
    }

    fn background(&self) -> Arc<dyn Background> {
        Arc::clone(&self.background)
    }

    fn stop(&self) -> watch::Receiver<bool> {
        self.stop.clone()
    }

    fn started(&self, node: &Node) {
        *self.node.lock().expect("not poisoned") = Some(node.clone());
    }
}

/// A listener on the simulated network.
struct Accepting {
    listener: TcpListener,
    resets: watch::Receiver<()>,
}

impl Listener for Accepting {
    type Stream = Breakable;

    async fn accept(&mut self) -> io::Result<(Breakable, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        Ok((Breakable::new(stream, self.resets.clone()), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Connects on the simulated network. The connections do not break by themselves.
pub fn dialer() -> Dialer {
    Dialer::new(SimulatedNetwork { resets: Resets::default().subscribe() })
}

struct SimulatedNetwork {
    resets: watch::Receiver<()>,
}

impl Network for SimulatedNetwork {
    fn resolve(&self, address: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let named = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let found = named.map(|(host, port)| vec![SocketAddr::new(turmoil::lookup(host), port)]);
        Box::pin(ready(found.ok_or_else(|| io::ErrorKind::InvalidInput.into())))
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<ByteStream>> {
        let resets = self.resets.clone();
        Box::pin(async move {
            let stream = Breakable::new(TcpStream::connect(address).await?, resets);
            Ok(Box::new(stream) as ByteStream)
        })
    }
}
