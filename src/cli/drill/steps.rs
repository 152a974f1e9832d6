//! Injects one fault after another, each only when the cluster tolerates it, and repairs it before the next.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    super::{ctl::Failure, say::tell},
    backend::{Act, Backend},
    interrupted,
};
use crate::client::{
    Client,
    random::Random,
    types::{ListNodesResponse, NodeInfo, NodeRole},
};

/// Interval at which the cluster's state is polled.
const LOOK: Duration = Duration::from_millis(250);
/// Time limit for the cluster to recover.
const MEND_MAX: Duration = Duration::from_secs(180);
/// Time limit for the user to follow an instruction.
const USER_MAX: Duration = Duration::from_secs(600);
/// Apply lag, in entries, up to which a node counts as caught up while others are written.
const LAG_MAX: u64 = 1000;

/// A step of the drill, with its times.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Description of the step.
    pub(super) what: String,
    pub(super) began: Instant,
    /// Time at which the cluster had recovered, or the drill ended.
    pub(super) ended: Instant,
}

/// The nodes that a fault applies to.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Follower,
    Leader,
    LeaderAndFollower,
}

impl Whom {
    fn count(self) -> u32 {
        if matches!(self, Self::LeaderAndFollower) { 2 } else { 1 }
    }
}

/// A running drill. See the module.
pub(super) struct Drill {
    cluster: Client,
    backend: Backend,
    hold: Duration,
    random: Random,
    steps: Vec<Step>,
    /// The actions that undo the current fault.
    broken: Vec<(Act, String)>,
}

impl Drill {
    pub(super) fn new(cluster: Client, backend: Backend, hold: Duration, seed: u64) -> Self {
        Self { cluster, backend, hold, random: Random::seeded(seed), steps: Vec::new(), broken: Vec::new() }
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Injects all faults, until the end or until the user interrupts. Always repairs the current fault.
    pub(super) async fn play(&mut self) -> Result<(), Failure> {
        let result = tokio::select! {
            result = self.faults() => result,
            () = interrupted() => Err(Failure::Inconclusive("it was interrupted")),
        };
        let now = Instant::now();
        if let Some(step) = self.steps.last_mut().filter(|step| step.ended < step.began) {
            step.ended = now;
        }
        for (act, node) in std::mem::take(&mut self.broken) {
            self.backend.act(act, &node).await?;
        }
        result
    }

    async fn faults(&mut self) -> Result<(), Failure> {
        self.whole("the cluster is whole before anything is broken").await?;
        self.begin("nothing is broken".to_owned());
        sleep(self.hold).await;
        self.end();
        self.fault(Act::Kill, Act::Start, Whom::Follower).await?;
        self.fault(Act::Kill, Act::Start, Whom::Leader).await?;
        self.fault(Act::Kill, Act::Start, Whom::LeaderAndFollower).await?;
        self.fault(Act::Pause, Act::Resume, Whom::Leader).await?;
        self.rolling().await
    }

    /// Injects a fault into some nodes, waits, repairs it, and waits until the cluster has recovered.
    async fn fault(&mut self, breaks: Act, mends: Act, whom: Whom) -> Result<(), Failure> {
        if !self.backend.can(breaks) {
            return Ok(());
        }
        let now = self.cluster.nodes().await?;
        let tolerated = now.failures_tolerated.unwrap_or(0);
        if tolerated < whom.count() {
            tell!("left out: the loss of {} at once, as {tolerated} may fail", whom.count());
            return Ok(());
        }
        let nodes = self.choose(&now, whom)?;
        let what = match (whom, breaks) {
            (Whom::Follower, _) => "a follower is killed",
            (Whom::Leader, Act::Pause) => "the leader stands still",
            (Whom::Leader, _) => "the leader is killed",
            (Whom::LeaderAndFollower, _) => "the leader and a follower are killed",
        };
        self.begin(format!("{what}: {}", nodes.join(", ")));
        for node in &nodes {
            self.broken.push((mends, node.clone()));
            self.backend.act(breaks, node).await?;
        }
        if self.backend.keeps_dead() {
            self.until("the cluster notices", self.patience(), |seen| {
                nodes.iter().all(|name| seen.nodes.iter().any(|node| node.name == *name && node.healthy != Some(true)))
            })
            .await?;
        }
        sleep(self.hold).await;
        while let Some((act, node)) = self.broken.last().cloned() {
            self.backend.act(act, &node).await?;
            self.broken.pop();
        }
        self.whole("the cluster is whole again").await?;
        self.end();
        Ok(())
    }

    /// Restarts all nodes in order, one by one, the leader last.
    async fn rolling(&mut self) -> Result<(), Failure> {
        self.begin("all are restarted, one after the other".to_owned());
        let now = self.cluster.nodes().await?;
        let (mut last, mut names) = (Vec::new(), Vec::new());
        for node in &now.nodes {
            if node.role() == NodeRole::Leader { &mut last } else { &mut names }.push(node.name.clone());
        }
        names.append(&mut last);
        for name in names {
            self.backend.act(Act::Restart, &name).await?;
            if !self.backend.acts_alone() {
                // A user takes time: wait until the node is seen to stop before waiting for its return.
                let gone =
                    |seen: &ListNodesResponse| seen.nodes.iter().any(|n| n.name == name && n.healthy == Some(false));
                self.until("the node stops", USER_MAX, gone).await?;
            }
            self.whole("the cluster is whole again").await?;
        }
        self.end();
        Ok(())
    }

    fn patience(&self) -> Duration {
        if self.backend.acts_alone() { MEND_MAX } else { USER_MAX }
    }

    /// Waits until all nodes are healthy voters and have caught up.
    async fn whole(&self, what: &str) -> Result<(), Failure> {
        let well = |node: &NodeInfo| {
            node.healthy == Some(true) && node.voter && node.lag_entries.is_some_and(|lag| lag <= LAG_MAX)
        };
        let led = |seen: &ListNodesResponse| seen.nodes.iter().any(|node| node.role() == NodeRole::Leader);
        self.until(what, self.patience(), |seen| led(seen) && seen.nodes.iter().all(well)).await
    }

    /// Polls the leader until the condition holds.
    async fn until(
        &self,
        what: &str,
        patience: Duration,
        look: impl Fn(&ListNodesResponse) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.cluster.nodes().await;
            match &seen {
                Ok(seen) if look(seen) => return Ok(()),
                _ if Instant::now() < deadline => sleep(LOOK).await,
                Ok(seen) => {
                    let state = |node: &NodeInfo| {
                        let health = if node.healthy == Some(true) { "healthy" } else { "not healthy" };
                        format!("{} {health}", node.name)
                    };
                    let states: Vec<String> = seen.nodes.iter().map(state).collect();
                    return Err(Failure::Usage(format!(
                        "not within {} s: {what} ({})",
                        patience.as_secs(),
                        states.join(", ")
                    )));
                }
                Err(error) => {
                    return Err(Failure::Usage(format!("not within {} s: {what} ({error})", patience.as_secs())));
                }
            }
        }
    }

    fn choose(&mut self, now: &ListNodesResponse, whom: Whom) -> Result<Vec<String>, Failure> {
        let (leaders, followers): (Vec<&NodeInfo>, Vec<&NodeInfo>) =
            now.nodes.iter().filter(|node| node.voter).partition(|node| node.role() == NodeRole::Leader);
        let leader = leaders.first().map(|node| node.name.clone());
        let at = self.random.below(followers.len().max(1) as u64) as usize;
        let follower = followers.get(at).map(|node| node.name.clone());
        let chosen = match whom {
            Whom::Follower => vec![follower],
            Whom::Leader => vec![leader],
            Whom::LeaderAndFollower => vec![leader, follower],
        };
        let chosen: Option<Vec<String>> = chosen.into_iter().collect();
        chosen.ok_or_else(|| Failure::Usage("there is no such node to break".to_owned()))
    }

    fn begin(&mut self, what: String) {
        tell!("{what}");
        let now = Instant::now();
        // The step is not over yet: see `play`.
        let ended = now.checked_sub(Duration::from_nanos(1)).unwrap_or(now);
        self.steps.push(Step { what, began: now, ended });
    }

    fn end(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.ended = Instant::now();
        }
    }
}
