//! The nodes that a client knows: their addresses and connections, the leader, and the nodes to avoid.
//!
//! Addresses given by the caller are never dropped. Addresses listed by the cluster are added and removed with its
//! answers. They may be names that resolve only inside the cluster's network; then only the given addresses are of use.
//! A node that failed is avoided for a while, and longer for each consecutive failure. It is still used when all others
//! are avoided too.
//!
//! Connections are lazy and reconnect automatically. Does not cover: retries, which are in `retry`.

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

use super::{ClientError, Options, random};
use net::dial::{ConnectTimeouts, MeasuredChannel, RoundTrip};
use proto::{
    Channel,
    chat::v1::{
        GetLeaderRequest, GetLeaderResponse, ListNodesRequest, ListNodesResponse, NodeInfo,
        cluster_service_client::ClusterServiceClient,
    },
};

/// Maximum number of nodes to remember.
const NODES_MAX: usize = 64;
/// Time that a node has to name the leader, in addition to the network round trip. Short, so that a hung node does not
/// delay the answers of the others.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// Time that a node is avoided after its first failure; doubled for each consecutive one.
const AVOID_MIN: Duration = Duration::from_secs(1);
const AVOID_MAX: Duration = Duration::from_secs(10);
/// Interval at which a busy client asks whether its leader still leads. Needed because followers forward silently.
const LEADER_REFRESH: Duration = Duration::from_secs(2);
/// Interval at which a busy client asks for the list of nodes.
const LIST_REFRESH: Duration = Duration::from_secs(30);

/// The node that an attempt goes to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: Arc<str>,
    pub(crate) channel: Channel,
    round_trip: Arc<RoundTrip>,
}

impl Target {
    /// Returns the timeout for an answer that the node may take `own` to produce.
    pub(crate) fn time_for(&self, own: Duration) -> Duration {
        over_round_trip(&self.round_trip, own)
    }

    /// Returns the error for a node that did not answer in time.
    pub(crate) fn silence(&self) -> ClientError {
        ClientError::local(Code::DeadlineExceeded, format!("{} did not answer in time", self.address))
    }
}

/// Returns `own` plus twice the round trip, because round trips vary.
fn over_round_trip(round_trip: &RoundTrip, own: Duration) -> Duration {
    own.saturating_add(round_trip.latest().saturating_mul(2))
}

/// The nodes that a client knows. See the [module](self).
pub(crate) struct Nodes {
    options: Options,
    state: Mutex<State>,
    /// Held while a task looks for the leader, so that the other tasks wait for its result.
    finding: tokio::sync::Mutex<()>,
    refreshing: AtomicBool,
}

struct State {
    known: Vec<Known>,
    /// Position of the node to try first when no leader is known.
    turn: usize,
    leader: Option<Arc<str>>,
    /// Term of the last known leader.
    term: u64,
    /// Term of a leader that failed. Another leader of this term is accepted only when no node knows a newer one.
    lost_term: Option<u64>,
    leader_asked: Instant,
    list_asked: Instant,
}

struct Known {
    address: Arc<str>,
    given: bool,
    channel: Option<(Channel, Arc<RoundTrip>)>,
    failures: u32,
    avoid_until: Option<Instant>,
}

impl Known {
    fn new(address: &str, given: bool) -> Self {
        Self { address: address.into(), given, channel: None, failures: 0, avoid_until: None }
    }

    fn avoided(&self, now: Instant) -> bool {
        self.avoid_until.is_some_and(|until| until > now)
    }
}

/// Opens a channel to `address` (host:port) with the settings that the whole client shares.
pub(crate) fn channel(address: &str, options: &Options) -> Result<MeasuredChannel, ClientError> {
    let timeouts = ConnectTimeouts { per_call: options.connect_timeout, total: options.deadline };
    Ok(options.dialer.channel(endpoint(address)?, timeouts))
}

/// Returns the endpoint for `address`, with the connection settings.
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
        // A dead connection is detected within seven seconds. A connection with a round trip of 1.5 s, and occasionally
        // twice that, stays open.
        .http2_keep_alive_interval(Duration::from_secs(4))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true))
}

impl Nodes {
    /// Creates the set of nodes at `addresses`. Does not connect yet.
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
        let turn = random::generator().usize(..known.len());
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
        // Every change of the state is complete when it is made, so a panic elsewhere cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the target of the next attempt: the leader if known, otherwise a node that is not avoided, otherwise the
    /// node whose avoidance ends first.
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
        let (channel, round_trip) = node.channel.get_or_insert_with(|| {
            // Listed addresses are checked when they are learned, and the caller's addresses in `new`.
            let opened = channel(&node.address, &self.options).expect("addresses are checked when they are added");
            (opened.channel.into(), opened.round_trip)
        });
        Target { address: node.address.clone(), channel: channel.clone(), round_trip: Arc::clone(round_trip) }
    }

    /// Records that a call to this node was answered.
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

    /// Asks a working node for the leader, and for the list of nodes if `list`. Runs in the background.
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

    /// Records that this node failed, so that it is avoided for a while.
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

    /// Records that this node reported no leader, or an unreachable one. The client forgets the leader that it knew,
    /// and prefers another node for the next attempt.
    pub(crate) fn suspect_leader(&self, address: &Arc<str>) {
        let mut state = self.state();
        let count = state.known.len();
        if state.leader.is_some() {
            state.lose_leader();
        }
        if state.known.get(state.turn).is_some_and(|node| node.address == *address) {
            state.turn = (state.turn + 1) % count;
        }
    }

    /// Looks for the leader by asking all nodes at once, unless one is known. Finding none is not an error: the next
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
            // A node that hangs would only delay the result. Avoided nodes are asked when there are no others.
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

    /// Returns the time limit for all nodes together to name the leader.
    fn probe_time(&self) -> Duration {
        let state = self.state();
        let ways = state
            .known
            .iter()
            .filter_map(|node| node.channel.as_ref())
            .map(|(_, round_trip)| over_round_trip(round_trip, PROBE_TIMEOUT));
        ways.max().unwrap_or(PROBE_TIMEOUT)
    }

    /// Asks one node for the list of nodes, and remembers it.
    pub(crate) async fn list(&self, target: &Target, limit: Duration) -> Result<ListNodesResponse, ClientError> {
        let mut client = ClusterServiceClient::new(target.channel.clone());
        let mut request = tonic::Request::new(ListNodesRequest {});
        request.set_timeout(limit);
        // Tonic applies the same timeout, but its error does not name the node. Both are reported as the same error.
        let answer =
            timeout(limit, client.list_nodes(request)).await.map_err(|_| target.silence())?.map_err(ClientError::from);
        let answer = answer.map_err(|error| if error.is_silence() { target.silence() } else { error })?.into_inner();
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

    /// Returns all nodes, for requests that go to each of them.
    pub(crate) fn all(&self) -> Vec<Target> {
        let mut state = self.state();
        state.known.iter_mut().map(|node| self.connection(node)).collect()
    }

    /// Returns the address of the leader, if known.
    pub(crate) fn leader(&self) -> Option<Arc<str>> {
        self.state().leader.clone()
    }
}

impl State {
    /// Adds a node that the cluster named, and returns its index. `None`: its address is invalid, or there are too many
    /// nodes.
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
    async fn a_suspected_leader_moves_on_to_the_next_node() {
        let nodes = nodes(&["a:1", "b:1"]);
        let first = nodes.target();
        nodes.suspect_leader(&first.address);
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
