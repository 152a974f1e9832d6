//! Injects one fault after another, each only when the cluster tolerates it, and repairs it before the next.

use std::{future, mem, time::Duration};

use tokio::{
    signal,
    time::{Instant, sleep},
};

use crate::{
    commands::drill::backend::{Backend, NodeAction},
    failure::Failure,
};
use client::{Client, NodeInfo, NodeList, NodeRole};
use terminal::tell;

/// Interval at which the cluster's state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time limit for the cluster to recover.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// Time limit for the user to follow an instruction.
const USER_TIMEOUT: Duration = Duration::from_secs(600);
/// Apply lag, in entries, up to which a node counts as caught up while others are written.
const LAG_MAX: u64 = 1000;

/// A step of the drill, with its times.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// The text for the user.
    pub(super) description: String,
    pub(super) began: Instant,
    /// Time at which the cluster had recovered, or the drill ended.
    pub(super) ended: Instant,
}

/// The nodes that a fault applies to.
#[derive(Debug, Clone, Copy)]
enum FaultTarget {
    Follower,
    Leader,
    LeaderAndFollower,
}

impl FaultTarget {
    fn count(self) -> u32 {
        if matches!(self, Self::LeaderAndFollower) { 2 } else { 1 }
    }
}

/// A running drill. See the module.
pub(super) struct Drill {
    cluster: Client,
    backend: Backend,
    hold: Duration,
    random: fastrand::Rng,
    steps: Vec<Step>,
    /// The actions that undo the current fault.
    pending_repairs: Vec<(NodeAction, String)>,
}

impl Drill {
    pub(super) fn new(cluster: Client, backend: Backend, hold: Duration, seed: u64) -> Self {
        Self {
            cluster,
            backend,
            hold,
            random: fastrand::Rng::with_seed(seed),
            steps: Vec::new(),
            pending_repairs: Vec::new(),
        }
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Injects all faults, until the end or until the user interrupts. Always repairs the current fault.
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        let result = tokio::select! {
            result = self.inject_all() => result,
            () = interrupted() => Err(Failure::Inconclusive("it was interrupted")),
        };
        let now = Instant::now();
        if let Some(step) = self.steps.last_mut().filter(|step| step.ended < step.began) {
            step.ended = now;
        }
        for (action, node) in mem::take(&mut self.pending_repairs) {
            self.backend.execute(action, &node).await?;
        }
        result
    }

    async fn inject_all(&mut self) -> Result<(), Failure> {
        self.wait_until_recovered("the cluster is whole before anything is broken").await?;
        self.begin("nothing is broken".to_owned());
        sleep(self.hold).await;
        self.end();
        self.fault(NodeAction::Kill, NodeAction::Start, FaultTarget::Follower).await?;
        self.fault(NodeAction::Kill, NodeAction::Start, FaultTarget::Leader).await?;
        self.fault(NodeAction::Kill, NodeAction::Start, FaultTarget::LeaderAndFollower).await?;
        self.fault(NodeAction::Pause, NodeAction::Resume, FaultTarget::Leader).await?;
        self.rolling_restart().await
    }

    /// Injects a fault into some nodes, waits, repairs it, and waits until the cluster has recovered.
    async fn fault(&mut self, inject: NodeAction, repair: NodeAction, target: FaultTarget) -> Result<(), Failure> {
        if !self.backend.supports(inject) {
            return Ok(());
        }
        let now = self.cluster.nodes().await?;
        let tolerated = now.failures_tolerated.unwrap_or(0);
        if tolerated < target.count() {
            tell!("left out: the loss of {} at once, as {tolerated} may fail", target.count());
            return Ok(());
        }
        let nodes = self.choose(&now, target)?;
        let description = match (target, inject) {
            (FaultTarget::Follower, _) => "a follower is killed",
            (FaultTarget::Leader, NodeAction::Pause) => "the leader stands still",
            (FaultTarget::Leader, _) => "the leader is killed",
            (FaultTarget::LeaderAndFollower, _) => "the leader and a follower are killed",
        };
        self.begin(format!("{description}: {}", nodes.join(", ")));
        for node in &nodes {
            self.pending_repairs.push((repair, node.clone()));
            self.backend.execute(inject, node).await?;
        }
        if self.backend.keeps_killed_down() {
            self.wait_until("the cluster notices", self.recovery_timeout(), |seen| {
                nodes.iter().all(|name| seen.nodes.iter().any(|node| node.name == *name && node.healthy != Some(true)))
            })
            .await?;
        }
        sleep(self.hold).await;
        while let Some((action, node)) = self.pending_repairs.last().cloned() {
            self.backend.execute(action, &node).await?;
            self.pending_repairs.pop();
        }
        self.wait_until_recovered("the cluster is whole again").await?;
        self.end();
        Ok(())
    }

    /// Restarts all nodes in order, one by one, the leader last.
    async fn rolling_restart(&mut self) -> Result<(), Failure> {
        self.begin("all are restarted, one after the other".to_owned());
        let now = self.cluster.nodes().await?;
        let (mut last, mut names) = (Vec::new(), Vec::new());
        for node in &now.nodes {
            if node.role == NodeRole::Leader { &mut last } else { &mut names }.push(node.name.clone());
        }
        names.append(&mut last);
        for name in names {
            self.backend.execute(NodeAction::Restart, &name).await?;
            if !self.backend.is_automatic() {
                // A user takes time: wait until the node is seen to stop before waiting for its return.
                let gone = |seen: &NodeList| seen.nodes.iter().any(|n| n.name == name && n.healthy == Some(false));
                self.wait_until("the node stops", USER_TIMEOUT, gone).await?;
            }
            self.wait_until_recovered("the cluster is whole again").await?;
        }
        self.end();
        Ok(())
    }

    /// Returns the time limit for the cluster to change after an action.
    fn recovery_timeout(&self) -> Duration {
        if self.backend.is_automatic() { RECOVERY_TIMEOUT } else { USER_TIMEOUT }
    }

    /// Waits until all nodes are healthy voters and have caught up; `what` describes that to the user.
    async fn wait_until_recovered(&self, what: &str) -> Result<(), Failure> {
        let well = |node: &NodeInfo| {
            node.healthy == Some(true) && node.voter && node.lag_entries.is_some_and(|lag| lag <= LAG_MAX)
        };
        let led = |seen: &NodeList| seen.nodes.iter().any(|node| node.role == NodeRole::Leader);
        self.wait_until(what, self.recovery_timeout(), |seen| led(seen) && seen.nodes.iter().all(well)).await
    }

    /// Polls the leader until the condition holds.
    async fn wait_until(&self, what: &str, limit: Duration, holds: impl Fn(&NodeList) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.cluster.nodes().await;
            match &seen {
                Ok(seen) if holds(seen) => return Ok(()),
                _ if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                Ok(seen) => {
                    let state = |node: &NodeInfo| {
                        let health = if node.healthy == Some(true) { "healthy" } else { "not healthy" };
                        format!("{} {health}", node.name)
                    };
                    let states: Vec<String> = seen.nodes.iter().map(state).collect();
                    return Err(Failure::Usage(format!(
                        "not within {} s: {what} ({})",
                        limit.as_secs(),
                        states.join(", ")
                    )));
                }
                Err(error) => {
                    return Err(Failure::Usage(format!("not within {} s: {what} ({error})", limit.as_secs())));
                }
            }
        }
    }

    fn choose(&mut self, now: &NodeList, target: FaultTarget) -> Result<Vec<String>, Failure> {
        let (leaders, followers): (Vec<&NodeInfo>, Vec<&NodeInfo>) =
            now.nodes.iter().filter(|node| node.voter).partition(|node| node.role == NodeRole::Leader);
        let leader = leaders.first().map(|node| node.name.clone());
        let at = self.random.usize(..followers.len().max(1));
        let follower = followers.get(at).map(|node| node.name.clone());
        let chosen = match target {
            FaultTarget::Follower => vec![follower],
            FaultTarget::Leader => vec![leader],
            FaultTarget::LeaderAndFollower => vec![leader, follower],
        };
        let chosen: Option<Vec<String>> = chosen.into_iter().collect();
        chosen.ok_or_else(|| Failure::Usage("there is no such node to break".to_owned()))
    }

    fn begin(&mut self, description: String) {
        tell!("{description}");
        let now = Instant::now();
        // The step is not over yet: see `run`.
        let ended = now.checked_sub(Duration::from_nanos(1)).unwrap_or(now);
        self.steps.push(Step { description, began: now, ended });
    }

    fn end(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.ended = Instant::now();
        }
    }
}

/// Completes when the user interrupts the drill.
async fn interrupted() {
    if signal::ctrl_c().await.is_err() {
        future::pending().await
    }
}
