//! The nodes that a client knows: their addresses, their connections, which one leads, which ones to avoid.
//!
//! The addresses that the caller gave are never forgotten; those that the cluster lists come and go with its answers
//! (they may be names that only resolve inside of the cluster's network: then the given ones do all the work). A node
//! that failed is avoided for a while, longer each time in a row, and is still used when there is nothing better.
//!
//! Connections are lazy and reconnect by themselves. Nothing here retries a call: that is `retry`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, transport::Endpoint};

use super::{ClientError, Options, random::Random, retry::silence};
use crate::{
    net::dial::{Line, Patience, Way},
    proto::{
        Channel,
        chat::v1::{
            GetLeaderRequest, GetLeaderResponse, ListNodesRequest, ListNodesResponse, NodeInfo,
            cluster_service_client::ClusterServiceClient,
        },
    },
};

/// Most nodes that are remembered.
const NODES_MAX: usize = 64;
/// How long a node has to say who leads, beside the time of the way. Short: a hung node must not hold up the others' answers.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a node is avoided after a failure; doubled for each further one.
const AVOID_MIN: Duration = Duration::from_secs(1);
const AVOID_MAX: Duration = Duration::from_secs(10);
/// How often a busy client asks whether its leader still leads (a follower forwards silently).
const LEADER_REFRESH: Duration = Duration::from_secs(2);
/// How often a busy client asks for the list of nodes.
const LIST_REFRESH: Duration = Duration::from_secs(30);

/// A node to send something to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: Arc<str>,
    pub(crate) channel: Channel,
    way: Arc<Way>,
}

impl Target {
    /// How long an answer may take for which the node has `own`.
    pub(crate) fn time_for(&self, own: Duration) -> Duration {
        time_over(&self.way, own)
    }
}

/// `own`, and the way there and back. Twice, as it is not the same each time.
fn time_over(way: &Way, own: Duration) -> Duration {
    own.saturating_add(way.round_trip().saturating_mul(2))
}

/// See the module.
pub(crate) struct Nodes {
    options: Options,
    state: Mutex<State>,
    /// Held while somebody looks for the leader: the others wait for what is found.
    finding: tokio::sync::Mutex<()>,
    refreshing: AtomicBool,
}

struct State {
    known: Vec<Known>,
    /// Where to start looking when no leader is known.
    turn: usize,
    leader: Option<Arc<str>>,
    /// Term of the last leader known.
    term: u64,
    /// A leader of this term failed: another one of it is believed only when no node knows a newer one.
    lost_term: Option<u64>,
    leader_asked: Instant,
    list_asked: Instant,
}

struct Known {
    address: Arc<str>,
    given: bool,
    line: Option<(Channel, Arc<Way>)>,
    failures: u32,
    avoid_until: Option<Instant>,
}

impl Known {
    fn new(address: &str, given: bool) -> Self {
        Self { address: address.into(), given, line: None, failures: 0, avoid_until: None }
    }

    fn avoided(&self, now: Instant) -> bool {
        self.avoid_until.is_some_and(|until| until > now)
    }
}

/// A line to `address` (host:port), with the settings that all of the client shares.
pub(crate) fn line(address: &str, options: &Options) -> Result<Line, ClientError> {
    let patience = Patience { call: options.connect_timeout, all: options.deadline };
    Ok(options.dialer.line(endpoint(address)?, patience))
}

/// Where `address` is, and the settings of connections.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, ClientError> {
    let address = address.strip_prefix("http://").unwrap_or(address);
    let invalid = || ClientError {
        field: Some("nodes".to_owned()),
        ..ClientError::local(Code::InvalidArgument, format!("nodes: {address:?} is not an address (host:port)"))
    };
    if address.is_empty() || address.contains('/') || !address.contains(':') {
        return Err(invalid());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| invalid())?;
    Ok(endpoint
        // A connection whose other end vanished without a word is noticed within seven seconds; one whose round trip takes 1.5 s,
        // and twice as much now and then, has not vanished.
        .http2_keep_alive_interval(Duration::from_secs(4))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true))
}

impl Nodes {
    /// Knows `addresses`. Nothing is connected yet.
    pub(crate) fn new(addresses: impl IntoIterator<Item = String>, options: Options) -> Result<Self, ClientError> {
        let mut known: Vec<Known> = Vec::new();
        for address in addresses {
            let address = address.trim();
            let address = address.strip_prefix("http://").unwrap_or(address);
            endpoint(address)?;
            if !known.iter().any(|node| &*node.address == address) {
                known.push(Known::new(address, true));
            }
        }
        if known.is_empty() || known.len() > NODES_MAX {
            let message = format!("nodes: give 1-{NODES_MAX} addresses");
            return Err(ClientError::local(Code::InvalidArgument, message));
        }
        let turn = Random::new().below(known.len() as u64) as usize;
        let now = Instant::now();
        let state = State { known, turn, leader: None, term: 0, lost_term: None, leader_asked: now, list_asked: now };
        Ok(Self {
            options,
            state: Mutex::new(state),
            finding: tokio::sync::Mutex::new(()),
            refreshing: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete when it is made: a panic elsewhere cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the next attempt goes: the leader, or another node that did not just fail, or the one that failed
    /// longest ago.
    pub(crate) fn target(&self) -> Target {
        let now = Instant::now();
        let mut state = self.state();
        let leader = state.leader.clone();
        let count = state.known.len();
        let turn = state.turn;
        let order = (0..count).map(|i| (turn + i) % count);
        let known = &state.known;
        let index = leader
            .and_then(|leader| known.iter().position(|node| node.address == leader))
            .or_else(|| order.clone().find(|i| !known[*i].avoided(now)))
            .or_else(|| order.min_by_key(|i| known[*i].avoid_until))
            .unwrap_or(0);
        self.connection(&mut state.known[index])
    }

    fn connection(&self, node: &mut Known) -> Target {
        let (channel, way) = node.line.get_or_insert_with(|| {
            // The list of the cluster is checked when it is learned, as are the caller's addresses.
            let line = line(&node.address, &self.options).expect("addresses are checked when they are added");
            (line.channel.into(), line.way)
        });
        Target { address: node.address.clone(), channel: channel.clone(), way: Arc::clone(way) }
    }

    /// A call to this node was answered.
    pub(crate) fn worked(self: &Arc<Self>, target: &Target) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(node) = state.known.iter_mut().find(|node| node.address == target.address) {
            node.failures = 0;
            node.avoid_until = None;
        }
        let leader_due = now.duration_since(state.leader_asked) >= LEADER_REFRESH;
        let list_due = now.duration_since(state.list_asked) >= LIST_REFRESH;
        if !leader_due && !list_due {
            return;
        }
        state.leader_asked = now;
        if list_due {
            state.list_asked = now;
        }
        drop(state);
        if !self.refreshing.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().refresh(target.clone(), list_due));
        }
    }

    /// Asks a node that works, beside the calls, who leads and who there is.
    async fn refresh(self: Arc<Self>, target: Target, list: bool) {
        if let Ok(answer) = ask_leader(&target).await {
            self.learn_leader(answer);
        }
        if list {
            // Best effort: the next refresh asks again.
            let _ = self.list(&target, self.options.attempt_timeout).await;
        }
        self.refreshing.store(false, Ordering::Relaxed);
    }

    fn learn_leader(&self, answer: GetLeaderResponse) {
        let Some(leader) = answer.leader else { return };
        let now = Instant::now();
        let mut state = self.state();
        if answer.term < state.term {
            return;
        }
        if let Some(index) = state.add(&leader)
            && !state.known[index].avoided(now)
        {
            state.leader = Some(state.known[index].address.clone());
            state.term = answer.term;
            state.lost_term = None;
        }
    }

    /// This node failed: avoid it for a while.
    pub(crate) fn failed(&self, address: &Arc<str>) {
        let mut state = self.state();
        let count = state.known.len();
        if let Some(index) = state.known.iter().position(|node| node.address == *address) {
            let node = &mut state.known[index];
            let avoid = AVOID_MIN.saturating_mul(1 << node.failures.min(5)).min(AVOID_MAX);
            node.failures = node.failures.saturating_add(1);
            node.avoid_until = Some(Instant::now() + avoid);
            if index == state.turn {
                state.turn = (index + 1) % count;
            }
        }
        if state.leader.as_ref() == Some(address) {
            state.lose_leader();
        }
    }

    /// This node said that there is no leader, or that it was not reached. When it is the one believed to lead, it
    /// no longer is; when it is a follower, the next attempt goes to another.
    pub(crate) fn doubt_leader(&self, address: &Arc<str>) {
        let mut state = self.state();
        let count = state.known.len();
        if state.leader.is_some() {
            state.lose_leader();
        }
        if state.known.get(state.turn).is_some_and(|node| node.address == *address) {
            state.turn = (state.turn + 1) % count;
        }
    }

    /// Looks for the leader, when none is known: asks all nodes at once. Finding none is not an error: the next
    /// attempt then goes to any node.
    pub(crate) async fn find_leader(&self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + self.probe_time());
        let Ok(_guard) = timeout_at(deadline, self.finding.lock()).await else { return };
        if self.state().leader.is_some() {
            return;
        }
        let targets: Vec<Target> = {
            let now = Instant::now();
            let mut state = self.state();
            // A node that hangs would only make the others' answers wait; without others it is asked as well.
            let any = state.known.iter().any(|node| !node.avoided(now));
            let asked = state.known.iter_mut().filter(|node| !any || !node.avoided(now));
            asked.map(|node| self.connection(node)).collect()
        };
        let mut answers: FuturesUnordered<_> = targets.iter().map(ask_leader).collect();
        let mut newest: Option<GetLeaderResponse> = None;
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
            let Ok(answer) = answer else { continue };
            let better = newest.as_ref().is_none_or(|best| answer.term > best.term);
            if better {
                let enough = self.state().lost_term.is_none_or(|lost| answer.term > lost);
                newest = Some(answer);
                if enough {
                    break;
                }
            }
        }
        if let Some(answer) = newest {
            self.learn_leader(answer);
        }
    }

    /// How long all nodes together have to say who leads.
    fn probe_time(&self) -> Duration {
        let state = self.state();
        let ways =
            state.known.iter().filter_map(|node| node.line.as_ref()).map(|(_, way)| time_over(way, PROBE_TIMEOUT));
        ways.max().unwrap_or(PROBE_TIMEOUT)
    }

    /// Asks one node for the list of nodes, and remembers it.
    pub(crate) async fn list(&self, target: &Target, limit: Duration) -> Result<ListNodesResponse, ClientError> {
        let mut client = ClusterServiceClient::new(target.channel.clone());
        let mut request = tonic::Request::new(ListNodesRequest {});
        request.set_timeout(limit);
        // Tonic watches the time, too, and says only that it is over: whose silence it was has to be told, whoever is first.
        let answer =
            timeout(limit, client.list_nodes(request)).await.map_err(|_| silence(target))?.map_err(ClientError::from);
        let answer = answer.map_err(|error| if error.is_silence() { silence(target) } else { error })?.into_inner();
        self.learn_nodes(&answer);
        Ok(answer)
    }

    pub(crate) fn learn_nodes(&self, answer: &ListNodesResponse) {
        let mut state = self.state();
        let listed = |address: &str| answer.nodes.iter().any(|node| node.client_address == address);
        let current = state.known.get(state.turn).map(|node| node.address.clone());
        state.known.retain(|node| node.given || listed(&node.address));
        for node in &answer.nodes {
            state.add(node);
        }
        let turn = state.known.iter().position(|node| Some(&node.address) == current.as_ref());
        state.turn = turn.unwrap_or(0);
    }

    /// All connections, to ask every node the same.
    pub(crate) fn all(&self) -> Vec<Target> {
        let mut state = self.state();
        state.known.iter_mut().map(|node| self.connection(node)).collect()
    }

    /// Address of the leader, as far as known.
    pub(crate) fn leader(&self) -> Option<Arc<str>> {
        self.state().leader.clone()
    }
}

impl State {
    /// Adds a node that the cluster named; its index, unless its address is of no use.
    fn add(&mut self, node: &NodeInfo) -> Option<usize> {
        let address = node.client_address.as_str();
        if let Some(index) = self.known.iter().position(|known| &*known.address == address) {
            return Some(index);
        }
        if self.known.len() >= NODES_MAX || endpoint(address).is_err() {
            return None;
        }
        self.known.push(Known::new(address, false));
        Some(self.known.len() - 1)
    }

    fn lose_leader(&mut self) {
        self.leader = None;
        self.lost_term = Some(self.term);
    }
}

async fn ask_leader(target: &Target) -> Result<GetLeaderResponse, tonic::Status> {
    let mut client = ClusterServiceClient::new(target.channel.clone());
    let limit = target.time_for(PROBE_TIMEOUT);
    let mut request = tonic::Request::new(GetLeaderRequest {});
    request.set_timeout(limit);
    match timeout(limit, client.get_leader(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(addresses: &[&str]) -> Arc<Nodes> {
        let addresses = addresses.iter().map(|a| a.to_string());
        Arc::new(Nodes::new(addresses, Options::default()).expect("good addresses"))
    }

    fn leads(address: &str, term: u64) -> GetLeaderResponse {
        let leader = NodeInfo { client_address: address.to_owned(), ..NodeInfo::default() };
        GetLeaderResponse { leader: Some(leader), term }
    }

    #[tokio::test]
    async fn the_leader_is_preferred_until_it_fails() {
        let nodes = nodes(&["a:1", "b:1", "c:1"]);
        nodes.learn_leader(leads("d:1", 3));
        assert_eq!(&*nodes.target().address, "d:1", "a leader outside of the given addresses is learned");
        nodes.failed(&"d:1".into());
        assert_eq!(nodes.leader(), None);
        assert_ne!(&*nodes.target().address, "d:1");
        nodes.learn_leader(leads("d:1", 3));
        assert_eq!(nodes.leader(), None, "a node that just failed is not believed to lead");
        nodes.learn_leader(leads("b:1", 2));
        assert_eq!(nodes.leader(), None, "nor the leader of an older term");
        nodes.learn_leader(leads("b:1", 4));
        assert_eq!(&*nodes.target().address, "b:1");
    }

    #[tokio::test]
    async fn failed_nodes_are_avoided_but_used_when_there_is_nothing_else() {
        let nodes = nodes(&["a:1", "b:1"]);
        let first = nodes.target();
        nodes.failed(&first.address);
        let second = nodes.target();
        assert_ne!(first.address, second.address);
        nodes.failed(&second.address);
        assert_eq!(nodes.target().address, first.address, "the one that failed longest ago");
        nodes.worked(&second);
        assert_eq!(nodes.target().address, second.address);
    }

    #[tokio::test]
    async fn a_doubtful_answer_moves_on_to_the_next_node() {
        let nodes = nodes(&["a:1", "b:1"]);
        let first = nodes.target();
        nodes.doubt_leader(&first.address);
        assert_ne!(nodes.target().address, first.address);
    }

    #[tokio::test]
    async fn the_given_addresses_stay_and_the_listed_ones_follow_the_list() {
        let nodes = nodes(&["a:1"]);
        let listed = |names: &[&str]| ListNodesResponse {
            nodes: names.iter().map(|n| NodeInfo { client_address: n.to_string(), ..NodeInfo::default() }).collect(),
            ..ListNodesResponse::default()
        };
        nodes.learn_nodes(&listed(&["x:1", "y:1", "", "no port"]));
        let addresses = |nodes: &Nodes| nodes.all().iter().map(|t| t.address.to_string()).collect::<Vec<_>>();
        assert_eq!(addresses(&nodes), ["a:1", "x:1", "y:1"]);
        nodes.learn_nodes(&listed(&["y:1"]));
        assert_eq!(addresses(&nodes), ["a:1", "y:1"]);
    }

    #[test]
    fn bad_addresses_are_named() {
        for bad in ["", "nohost", "a:1/path", "a b:1"] {
            let error = Nodes::new([bad.to_owned()], Options::default()).err().expect(bad);
            assert_eq!(error.field.as_deref(), Some("nodes"));
        }
        assert!(Nodes::new([], Options::default()).is_err());
        assert!(Nodes::new(["http://a:1".to_owned(), "[::1]:5".to_owned()], Options::default()).is_ok());
    }
}
