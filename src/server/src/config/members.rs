//! The first members of the cluster, and how a node becomes a member later.

use std::collections::BTreeSet;

use super::{
    addresses::is_host_and_port,
    checker::Checker,
    formats::{Format, Wrong},
    keys::PREFIX,
    table::Parsed,
};

/// The value of `JOIN` that waits for an invitation.
const INVITATION: &str = "invitation";
/// Most initial members. More voters make every write slower and nothing safer.
const INITIAL_NODES_MAX: usize = 15;
/// Longest name of a node. This is the limit of a DNS label, because names become host names.
const NAME_CHARS_MAX: usize = 63;

/// One of the first members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialNode {
    /// Its name.
    pub name: String,
    /// `host:port` of its peer listener, resolved on each connect.
    pub peer_address: String,
}

/// How a node becomes a member of a cluster that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// Asks these members to join: `host:port` of their peer listeners.
    Ask(Vec<String>),
    /// Waits until an operator adds it.
    Invitation,
}

/// The name of a node.
pub(super) struct NodeName;

impl Format for NodeName {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, Vec<Wrong>> {
        if is_name(text) { Ok(text.to_owned()) } else { Wrong::whole(text, "1-63 characters of [A-Za-z0-9_.-]") }
    }

    fn show(&self, value: &String) -> String {
        value.clone()
    }
}

pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// `name=host:port`, separated by commas. Names and addresses are unique.
pub(super) struct InitialNodes;

impl Format for InitialNodes {
    type Value = Vec<InitialNode>;

    fn parse(&self, text: &str) -> Result<Vec<InitialNode>, Vec<Wrong>> {
        let mut nodes: Vec<InitialNode> = Vec::new();
        let mut wrongs = Vec::new();
        let mut wrong = |given: &str, expected: String| wrongs.push(Wrong { given: given.to_owned(), expected });
        for item in text.split(',').map(str::trim) {
            match item.split_once('=') {
                Some((node, address)) if is_name(node) && is_host_and_port(address) => {
                    nodes.push(InitialNode { name: node.to_owned(), peer_address: address.to_owned() });
                }
                _ => wrong(item, "name=host:port for each node, separated by commas".to_owned()),
            }
        }
        let mut seen = BTreeSet::new();
        for word in nodes.iter().flat_map(|node| [&node.name, &node.peer_address]) {
            if !seen.insert(word) {
                wrong(word, "each name and each address once".to_owned());
            }
        }
        if nodes.len() > INITIAL_NODES_MAX {
            wrong(text, format!("at most {INITIAL_NODES_MAX} nodes"));
        }
        if wrongs.is_empty() { Ok(nodes) } else { Err(wrongs) }
    }

    fn show(&self, value: &Vec<InitialNode>) -> String {
        let nodes: Vec<String> = value.iter().map(|node| format!("{}={}", node.name, node.peer_address)).collect();
        nodes.join(",")
    }
}

/// `host:port`, separated by commas, or `invitation`.
pub(super) struct Joins;

impl Format for Joins {
    type Value = Join;

    fn parse(&self, text: &str) -> Result<Join, Vec<Wrong>> {
        if text == INVITATION {
            return Ok(Join::Invitation);
        }
        let addresses: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
        if addresses.len() <= INITIAL_NODES_MAX && addresses.iter().all(|address| is_host_and_port(address)) {
            return Ok(Join::Ask(addresses));
        }
        Wrong::whole(text, format!("1-{INITIAL_NODES_MAX} of host:port, separated by commas, or {INVITATION:?}"))
    }

    fn show(&self, value: &Join) -> String {
        match value {
            Join::Ask(addresses) => addresses.join(","),
            Join::Invitation => INVITATION.to_owned(),
        }
    }
}

impl Checker {
    /// Sets the default of the node's name: that of the host.
    pub(super) fn name(&mut self, parsed: &mut Parsed) {
        if !self.is_given("NAME") {
            parsed.name = self.parsed("NAME", &host_name(), &NodeName);
        }
    }

    /// Checks that this node is one of the first members, unless it comes later. Returns its entry among them.
    pub(super) fn own_entry(&mut self, parsed: &Parsed) -> Option<String> {
        const KEY: &str = "INITIAL_NODES";
        let nodes = parsed.initial_nodes.as_ref()?;
        if nodes.len().is_multiple_of(2) {
            self.warnings.push(format!(
                "{PREFIX}{KEY} has {} nodes: an odd number survives as many failures with one node less",
                nodes.len()
            ));
        }
        let name = parsed.name.as_ref()?;
        let own = nodes.iter().find(|node| node.name == *name);
        if own.is_none() && !self.is_given("JOIN") {
            let expected = format!("this node's name ({PREFIX}NAME is {name:?}) in the list, or {PREFIX}JOIN as well");
            self.mistake(KEY, &InitialNodes.show(nodes), expected);
        }
        own.map(|node| node.peer_address.clone())
    }

    /// Sets the default of the first members: this node alone, or none if it joins a cluster.
    pub(super) fn founders(&self, parsed: &mut Parsed) {
        let (false, Some(name), Some(address)) = (self.is_given("INITIAL_NODES"), &parsed.name, &parsed.peer_advertise)
        else {
            return;
        };
        let own = InitialNode { name: name.clone(), peer_address: address.clone() };
        parsed.initial_nodes = Some(if self.is_given("JOIN") { vec![] } else { vec![own] });
    }
}

/// The host's name according to the kernel.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
