//! The addresses and the configuration of the nodes of a local cluster.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    LocalArguments, LocalError,
    file::{ClusterFile, NodeRecord},
};
use server::wait_until_free;
use terminal::tell;

const NODES: u16 = 5;
const BASE_PORT: u16 = 50051;
const WEB_PORT: u16 = 8081;
const METRICS_PORT: u16 = 9464;
/// Offset of the peer ports to the gRPC ports. With a custom base port, the web and metrics ports are offset by twice
/// and three times as much.
const STRIDE: u16 = 100;
/// Lowest port to pick, above the well-known ones.
const PICK_FROM: u16 = 10_000;
/// Start of the range for outgoing connections on Linux, unless the host configures another.
const OUTGOING_FROM: u16 = 32_768;

/// Returns the cluster's nodes: the recorded ones, or new ones by the arguments. Process ids are not set.
pub(super) fn plan(recorded: Option<ClusterFile>, arguments: &LocalArguments) -> Result<Vec<NodeRecord>, LocalError> {
    let Some(recorded) = recorded else {
        let count = arguments.nodes.unwrap_or(NODES);
        return match arguments.base_port.unwrap_or(BASE_PORT) {
            0 => picked(count),
            base => fixed(count, base),
        };
    };
    let keeps = |asked: String, has: String| {
        Err(LocalError::Arguments(format!(
            "the cluster in {} has {has}, and its members know each other by that; for {asked}, use another --data",
            arguments.data.display()
        )))
    };
    if let Some(count) = arguments.nodes
        && usize::from(count) != recorded.nodes.len()
    {
        return keeps(format!("{count} nodes"), format!("{} nodes", recorded.nodes.len()));
    }
    match (arguments.base_port, recorded.nodes.first()) {
        (Some(base), Some(first)) if base != 0 && base != first.grpc.port() => {
            keeps(format!("port {base}"), format!("port {}", first.grpc.port()))
        }
        _ => Ok(recorded.nodes),
    }
}

fn node(number: u16, [grpc, peer, web, metrics]: [u16; 4]) -> NodeRecord {
    let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    NodeRecord {
        name: format!("n{number}"),
        pid: 0,
        grpc: at(grpc),
        peer: at(peer),
        web: at(web),
        metrics: at(metrics),
    }
}

fn fixed(count: u16, base: u16) -> Result<Vec<NodeRecord>, LocalError> {
    let bases = if base == BASE_PORT {
        Some([base, base + STRIDE, WEB_PORT, METRICS_PORT])
    } else {
        base.checked_add(3 * STRIDE).map(|last| [base, base + STRIDE, base + 2 * STRIDE, last])
    };
    bases
        .filter(|bases| bases.iter().all(|first| first.checked_add(count).is_some()))
        .map(|bases| (0..count).map(|i| node(i + 1, bases.map(|first| first + i))).collect())
        .ok_or_else(|| LocalError::Arguments(format!("--base-port {base} leaves no room for the other ports")))
}

/// Finds free ports, below the range that the kernel uses for outgoing connections. The nodes open many of these, and
/// one of them must not occupy a node's port while that node is down.
fn picked(count: u16) -> Result<Vec<NodeRecord>, LocalError> {
    let failed = || LocalError::io("no free ports could be found");
    let end = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(OUTGOING_FROM);
    let span = u32::from(end.saturating_sub(PICK_FROM));
    let start = getrandom::u32().map_err(|error| failed()(io::Error::other(error)))?;
    let candidates = (0..span).filter_map(|i| u16::try_from(u32::from(PICK_FROM) + (start % span + i) % span).ok());
    let wanted = usize::from(count) * 4;
    // Kept open until all are found, so that no port is found twice.
    let open = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|l| Ok((l.local_addr()?.port(), l)));
    let mut found: Vec<(u16, TcpListener)> = candidates.filter_map(|port| open(port).ok()).take(wanted).collect();
    while found.len() < wanted {
        found.push(open(0).map_err(failed())?);
    }
    let ports = |i: u16| {
        let at = usize::from(i) * 4;
        [found[at].0, found[at + 1].0, found[at + 2].0, found[at + 3].0]
    };
    Ok((0..count).map(|i| node(i + 1, ports(i))).collect())
}

/// Checks that the nodes' addresses are free. Waits for all of them together for at most `time_limit`.
pub(super) fn check_free(nodes: &[NodeRecord], time_limit: Duration) -> Result<(), LocalError> {
    let until = Instant::now() + time_limit;
    for node in nodes {
        let uses = [("gRPC", node.grpc), ("peers", node.peer), ("web", node.web), ("metrics", node.metrics)];
        for (what, address) in uses {
            let failed =
                |source| LocalError::Port { node: node.name.clone(), what, address, port: address.port(), source };
            match wait_until_free(address, Instant::now()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    tell!("chatd local: {}; trying again for some seconds", failed(error));
                    wait_until_free(address, until).map_err(failed)?;
                }
                free => free.map_err(failed)?,
            }
        }
    }
    Ok(())
}

/// Keys that authenticate the nodes to each other. If any of them is set, `chatd local` does not create a secret.
const PROTECTION: [&str; 6] = [
    "CHAT_PEER_SECRET",
    "CHAT_PEER_SECRET_FILE",
    "CHAT_PEER_TLS_CERT",
    "CHAT_PEER_TLS_KEY",
    "CHAT_PEER_TLS_CA",
    "CHAT_INSECURE_PEERS",
];

/// Returns the file of the secret that the nodes share, unless the environment provides other protection.
pub(super) fn own_secret(data: &Path, given: &[(String, String)]) -> Option<PathBuf> {
    let is_protected = given.iter().any(|(key, value)| PROTECTION.contains(&key.as_str()) && !value.is_empty());
    (!is_protected).then(|| data.join("peer-secret"))
}

/// Returns the environment of `node`, in addition to the values passed on.
pub(super) fn environment(
    node: &NodeRecord,
    all: &[NodeRecord],
    data: &Path,
    given: &[(String, String)],
) -> Vec<(String, String)> {
    let initial: Vec<String> = all.iter().map(|node| format!("{}={}", node.name, node.peer)).collect();
    // The nodes share the cores. With one thread per core in every node, the threads would only preempt each other.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = match given.iter().find(|(key, _)| key == "CHAT_WORKER_THREADS") {
        Some((_, threads)) => threads.clone(),
        None => (cores / all.len()).max(1).to_string(),
    };
    let secret = own_secret(data, given).map(|path| ("CHAT_PEER_SECRET_FILE", path.to_string_lossy().into_owned()));
    let own = [
        ("CHAT_WORKER_THREADS", threads),
        ("CHAT_NAME", node.name.clone()),
        ("CHAT_LISTEN", node.grpc.to_string()),
        ("CHAT_PEER_LISTEN", node.peer.to_string()),
        ("CHAT_WEB_LISTEN", node.web.to_string()),
        ("CHAT_METRICS_LISTEN", node.metrics.to_string()),
        ("CHAT_ADVERTISE", node.grpc.to_string()),
        ("CHAT_PEER_ADVERTISE", node.peer.to_string()),
        ("CHAT_WEB_ADVERTISE", node.web.to_string()),
        ("CHAT_DATA_DIR", data.join(&node.name).to_string_lossy().into_owned()),
        ("CHAT_INITIAL_NODES", initial.join(",")),
    ];
    own.into_iter().chain(secret).map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use server::config::Config;

    fn arguments(nodes: Option<u16>, base_port: Option<u16>) -> LocalArguments {
        LocalArguments { nodes, base_port, data: "d".into(), start: None }
    }

    fn ports(node: &NodeRecord) -> [u16; 4] {
        [node.grpc, node.peer, node.web, node.metrics].map(|address| address.port())
    }

    #[test]
    fn the_default_is_five_nodes_on_the_documented_ports() {
        let nodes = plan(None, &arguments(None, None)).unwrap();
        assert_eq!(nodes.len(), 5);
        assert_eq!((nodes[0].name.as_str(), ports(&nodes[0])), ("n1", [50051, 50151, 8081, 9464]));
        assert_eq!((nodes[4].name.as_str(), ports(&nodes[4])), ("n5", [50055, 50155, 8085, 9468]));
    }

    #[test]
    fn a_base_port_moves_all_of_them() {
        let nodes = plan(None, &arguments(Some(3), Some(20000))).unwrap();
        assert_eq!(ports(&nodes[2]), [20002, 20102, 20202, 20302]);
        assert!(plan(None, &arguments(None, Some(65300))).is_err());
    }

    #[test]
    fn picked_ports_are_free_and_distinct() {
        let nodes = plan(None, &arguments(Some(9), Some(0))).unwrap();
        let distinct: BTreeSet<u16> = nodes.iter().flat_map(ports).collect();
        assert_eq!(distinct.len(), 36);
        // A program that another test starts has the sockets of this process too, until it has replaced its image.
        check_free(&nodes, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_cluster_keeps_its_addresses() {
        let before = plan(None, &arguments(Some(3), Some(20000))).unwrap();
        let again = |nodes, base| plan(Some(ClusterFile { nodes: before.clone() }), &arguments(nodes, base));
        for (nodes, base) in [(None, None), (Some(3), None), (None, Some(0)), (None, Some(20000))] {
            assert_eq!(again(nodes, base).unwrap(), before);
        }
        assert!(again(Some(5), None).is_err());
        assert!(again(None, Some(20001)).is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let mut nodes = plan(None, &arguments(Some(1), Some(0))).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        nodes[0].grpc = taken.local_addr().unwrap();
        let error = check_free(&nodes, Duration::ZERO).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {} (gRPC of n1, ", nodes[0].grpc.port())), "{error}");
        assert!(error.ends_with(&format!("(pid {}) has it", std::process::id())), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn nodes_get_a_valid_configuration() {
        let nodes = plan(None, &arguments(None, None)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        fs::write(own_secret(data, &[]).unwrap(), "the-secret-of-this-cluster").unwrap();
        assert_eq!(own_secret(data, &[("CHAT_PEER_SECRET".to_owned(), "x".to_owned())]), None);
        for node in &nodes {
            let config = Config::load(environment(node, &nodes, data, &[])).unwrap();
            assert!(config.peer_secrets.is_some());
            assert!(config.warnings.is_empty(), "{:?}", config.warnings);
            assert_eq!(config.advertise, node.grpc.to_string());
            assert_eq!(config.initial_nodes.len(), 5);
            assert_eq!(config.data_dir, data.join(&node.name));
        }
    }
}
