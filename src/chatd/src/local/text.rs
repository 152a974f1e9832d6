//! The text that `chatd local` prints once the cluster is up: its addresses and the next commands.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::file::NodeRecord;

/// Ports that `chatctl` tries by default.
const DEFAULT_PORTS: [u16; 5] = [50051, 50052, 50053, 50054, 50055];

/// The command names of this program and of `chatctl`.
pub(super) struct Commands {
    chatd: String,
    chatctl: String,
}

impl Commands {
    /// Returns the commands for the executable `chatd`, relative to the directory `here`.
    pub(super) fn new(chatd: &Path, here: &Path) -> Self {
        let shown = |path: &Path| match path.strip_prefix(here) {
            // A shell looks up a bare name in its PATH and not in the directory.
            Ok(name) if name.components().count() == 1 => format!("./{}", name.display()),
            Ok(below) => below.display().to_string(),
            Err(_) => path.display().to_string(),
        };
        let sibling: PathBuf = chatd.with_file_name("chatctl");
        let chatctl = if sibling.exists() {
            shown(&sibling)
        } else {
            let release = chatd.components().any(|part| part.as_os_str() == "release");
            format!("cargo run {}--bin chatctl --", if release { "--release " } else { "" })
        };
        Self { chatd: shown(chatd), chatctl }
    }

    /// Returns the command that starts one node again.
    pub(super) fn start(&self, data: &Path, node: &str) -> String {
        format!("{} local --data {} --start {node}", self.chatd, data.display())
    }
}

/// Returns the text for the nodes that are ready.
pub(super) fn welcome(nodes: &[&NodeRecord], data: &Path, commands: &Commands) -> String {
    let count = if nodes.len() == 1 { "1 node is".to_owned() } else { format!("{} nodes are", nodes.len()) };
    let mut out = format!("\n{count} ready, with the data in {}.\n\n", data.display());
    let _ = writeln!(out, "  {:<6}{:<10}{:<18}{:<28}metrics", "node", "pid", "gRPC", "web");
    for node in nodes {
        let NodeRecord { name, pid, grpc, web, metrics, .. } = node;
        let web = format!("http://{web}/");
        let _ = writeln!(out, "  {name:<6}{pid:<10}{:<18}{web:<28}http://{metrics}/metrics", grpc.to_string());
    }
    let default = nodes.len() == DEFAULT_PORTS.len()
        && nodes.iter().zip(DEFAULT_PORTS).all(|(node, port)| node.grpc.port() == port);
    let addresses: Vec<String> = nodes.iter().map(|node| node.grpc.to_string()).collect();
    // Sessions store their nodes, so only commands without a session need the addresses.
    let at = if default { String::new() } else { format!(" --nodes {}", addresses.join(",")) };
    let _ = writeln!(out, "\nIn a second terminal, register two people and chat:\n");
    for words in [
        format!("{at} register alice"),
        format!("{at} register bob"),
        " --user alice send bob \"hello\"".to_owned(),
        " --user bob read alice".to_owned(),
        " --user bob listen".to_owned(),
    ] {
        let _ = writeln!(out, "  {}{words}", commands.chatctl);
    }
    if let Some(victim) = nodes.get(1).or(nodes.first()) {
        let _ = writeln!(out, "\nKill a node, and start it again:\n");
        let _ = writeln!(out, "  kill -9 {}", victim.pid);
        let _ = writeln!(out, "  {}", commands.start(data, &victim.name));
    }
    out.push_str("\nCtrl-C stops all nodes that were started here.\n\n");
    out
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn nodes(base: u16) -> Vec<NodeRecord> {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        (0..5)
            .map(|i| NodeRecord {
                name: format!("n{}", i + 1),
                pid: 1000 + u32::from(i),
                grpc: at(base + i),
                peer: at(base + 100 + i),
                web: at(8081 + i),
                metrics: at(9464 + i),
            })
            .collect()
    }

    #[test]
    fn it_tells_where_the_nodes_are_and_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let chatd = dir.path().join("target/release/chatd");
        let commands = Commands::new(&chatd, dir.path());
        let nodes = nodes(50051);
        let text = welcome(&nodes.iter().collect::<Vec<_>>(), Path::new("local-data"), &commands);
        for part in [
            "127.0.0.1:50055",
            "http://127.0.0.1:8081/",
            "  cargo run --release --bin chatctl -- register alice\n",
            "  kill -9 1001\n",
            "  target/release/chatd local --data local-data --start n2\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("--nodes"), "the default ports need no argument");
    }

    #[test]
    fn it_names_a_built_chatctl_and_unusual_ports() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chatctl"), "").unwrap();
        let commands = Commands::new(&dir.path().join("chatd"), dir.path());
        let nodes = nodes(20000);
        let text = welcome(&nodes.iter().take(2).collect::<Vec<_>>(), Path::new("d"), &commands);
        assert!(text.contains("  ./chatctl --nodes 127.0.0.1:20000,127.0.0.1:20001 register bob\n"), "{text}");
    }
}
