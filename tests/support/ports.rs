//! Ports that belong to one cluster for its whole lifetime, also while its nodes are down.
//!
//! They are below the range for outgoing connections, and are allocated in blocks. A lock on a block's file reserves
//! the block. The lock keeps all test processes of a user apart, so that allocation cannot race.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

/// Lowest port to pick.
const FROM: u16 = 10_000;
/// Start of the range for outgoing connections on Linux, unless the host configures another.
const OUTGOING_FROM: u16 = 32_768;
/// Number of ports in a block: four for each of up to eight nodes.
const BLOCK: u16 = 32;

/// A block of free ports.
pub struct Ports {
    first: u16,
    /// Unlocked when it is dropped.
    _lock: File,
}

impl Ports {
    /// Finds a block whose ports are all free.
    pub fn take() -> Self {
        let dir = std::env::temp_dir().join(format!("quorum-chat-ports-{}", rustix::process::getuid().as_raw()));
        fs::create_dir_all(&dir).unwrap();
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let end = range.split_whitespace().next().and_then(|end| end.parse().ok()).unwrap_or(OUTGOING_FROM);
        let blocks = u32::from(end.saturating_sub(FROM) / BLOCK);
        let start = getrandom::u32().unwrap() % blocks;
        (0..blocks)
            .map(|i| FROM + u16::try_from((start + i) % blocks).unwrap() * BLOCK)
            .find_map(|first| {
                let lock = File::create(dir.join(first.to_string())).unwrap();
                let free = lock.try_lock().is_ok()
                    && (first..first + BLOCK).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
                free.then_some(Self { first, _lock: lock })
            })
            .expect("one of hundreds of blocks of ports is free")
    }

    /// The addresses of node number `node` (from 0): gRPC, peers, web, metrics.
    pub fn of(&self, node: usize) -> [SocketAddr; 4] {
        let first = self.first + u16::try_from(node).unwrap() * 4;
        assert!(first + 4 <= self.first + BLOCK, "so many nodes do not fit into a block of ports");
        [0, 1, 2, 3].map(|i| SocketAddr::from((Ipv4Addr::LOCALHOST, first + i)))
    }
}
