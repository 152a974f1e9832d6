//! One run: the cluster, its clients, the faults and the verdict.

use std::{cell::RefCell, path::Path, rc::Rc, time::Duration};

use client::{ClientError, Options};
use storage::{Readers, SharedState, StorageError, open_file};
use tempfile::TempDir;
use verify::{checker, history::History, workload};

use super::{
    disk::Crash,
    entropy,
    faults::{Faults, leader},
    host::dialer,
    member::Contradictions,
    people,
    rng::Rng,
    world::World,
};
use support::invariants::{self, Invariant, NodeSnapshot, Observation};

/// Interval at which all nodes are checked, in ticks.
const LOOK_TICKS: u64 = 10;
/// Time limit until the cluster is bootstrapped and the accounts are registered.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Time limit for the clients to finish, once the faults have ended.
const FINISH_MAX: Duration = Duration::from_secs(180);
/// Time limit after that until all deleted accounts are erased.
const ERASED_MAX: Duration = Duration::from_secs(60);
/// Time limit after that until all nodes have caught up.
const LEVEL_MAX: Duration = Duration::from_secs(60);

/// Time limit for finding the damage to a disk, and for replacing the node.
const SCRUBBED_MAX: Duration = Duration::from_secs(60);
/// Time after which the last fault no longer makes a leader step down: its lapses of the lease are forgotten.
const AFTERMATH: Duration = Duration::from_millis(1500);
/// Number of times that all connections break although all nodes are well.
const RESETS: u32 = 3;
/// Time after each of them.
const RESET_INTERVAL: Duration = Duration::from_millis(400);
/// Time limit for the replacement of a leader whose process ended: less than the lease and an election timeout.
const FAILOVER_MAX: Duration = Duration::from_millis(600);

/// The result of a run.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The violations; empty for a good run.
    pub violations: Vec<String>,
    /// A hash of everything that was observed: the same for the same seed.
    pub trace: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub events: u64,
    pub faults: u64,
    /// Duration in simulated time.
    pub took: Duration,
}

impl Verdict {
    /// A summary of the run in one line.
    pub fn line(&self) -> String {
        format!(
            "{} acknowledged, {} unknown, {} reads, {} events, {} faults in {:?}, trace {:016x}",
            self.acknowledged, self.unknown, self.reads, self.events, self.faults, self.took, self.trace
        )
    }
}

struct Run<'a> {
    world: World<'a>,
    invariants: Vec<Box<dyn Invariant>>,
    verdict: Verdict,
    ticks: u64,
}

/// Creates the directory for a run's disks, in memory if possible. If a run is in another process, its parent creates
/// the directory, because a run that panics or is killed cannot remove it.
pub fn disks() -> TempDir {
    let root = tempfile::Builder::new().prefix("quorum-sim-").tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    root.expect("a directory for the simulated disks")
}

/// Runs a seed, with its disks in an empty directory.
pub fn run(seed: u64, disks: &Path) -> Verdict {
    let mut rng = Rng::new(seed);
    entropy::start(rng.split("entropy"));
    let world = World::new(seed, disks, &mut rng);
    let mut run = Run { world, invariants: invariants::all(), verdict: Verdict::default(), ticks: 0 };
    if let Err(violation) = run.play(&mut rng) {
        run.verdict.violations.push(violation);
    }
    run.verdict.took = run.world.sim.elapsed();
    // The nodes' files have to be closed before they are removed.
    let Run { world, verdict, .. } = run;
    drop(world);
    verdict
}

type Recorded = Rc<RefCell<Option<Result<History, ClientError>>>>;

impl Run<'_> {
    fn play(&mut self, rng: &mut Rng) -> Result<(), String> {
        let found = Contradictions::default();
        let history = self.start_clients(rng, &found);
        let founded = |observation: &Observation| observation.nodes.iter().any(|seen| seen.applied.revision.0 >= 6);
        let mut faults = Faults::new(rng, found);
        self.until("people are registered", SETTLE_MAX, &mut faults, |_, observation| founded(observation))?;
        while faults.more(self.world.sim.elapsed()) {
            self.tick()?;
            faults.act(&mut self.world)?;
        }
        faults.heal(&mut self.world);
        let recorded = Rc::clone(&history);
        let end = self.world.sim.elapsed() + FINISH_MAX;
        while recorded.borrow().is_none() {
            if self.world.sim.elapsed() > end {
                return Err(format!(
                    "the clients are not done {FINISH_MAX:?} after the last fault: {}",
                    self.describe()
                ));
            }
            self.tick()?;
            faults.mind(&mut self.world)?;
        }
        self.verdict.faults = faults.count();
        self.until("deleted accounts are erased", ERASED_MAX, &mut faults, erased)?;
        self.until("all nodes are level", LEVEL_MAX, &mut faults, level)?;
        self.until("no disk is damaged any more", SCRUBBED_MAX, &mut faults, |world, _| world.is_intact())?;
        self.pass(AFTERMATH, &mut faults)?;
        self.until("all nodes follow one leader", LEVEL_MAX, &mut faults, led)?;
        self.keeps_its_leader(&mut faults)?;
        self.replaces_its_leader(&mut faults)?;
        self.until("all nodes are level again", LEVEL_MAX, &mut faults, level)?;
        self.observe()?;
        same_messages(&self.world)?;
        self.check_history(history)
    }

    fn start_clients(&mut self, rng: &mut Rng, found: &Contradictions) -> Recorded {
        let recorded: Recorded = Rc::default();
        let plan = workload::Plan { clients: rng.range(3..7) as u32, duration: rng.ms(4000..12_000), seed: rng.next() };
        let (lasts, others) = (plan.duration, rng.split("people"));
        let addresses: Vec<String> = (1..=super::world::FOUNDERS).map(|n| format!("n{n}:50051")).collect();
        let options = Options { deadline: Duration::from_secs(30), dialer: dialer(), ..Options::default() };
        let (sink, found) = (Rc::clone(&recorded), std::sync::Arc::clone(found));
        self.world.sim.client("client", async move {
            let people = people::run(addresses.clone(), options.clone(), lasts, others, found);
            let (result, ()) = tokio::join!(workload::run(addresses, options, plan), people);
            sink.replace(Some(result));
            Ok(())
        });
        recorded
    }

    /// Lets this time pass.
    fn pass(&mut self, time: Duration, faults: &mut Faults) -> Result<(), String> {
        let end = self.world.sim.elapsed() + time;
        while self.world.sim.elapsed() < end {
            self.tick()?;
            faults.mind(&mut self.world)?;
        }
        Ok(())
    }

    /// Runs one tick, and a check at every interval.
    fn tick(&mut self) -> Result<(), String> {
        self.world.step()?;
        self.ticks += 1;
        if self.ticks.is_multiple_of(LOOK_TICKS) {
            self.observe()?;
        }
        Ok(())
    }

    fn observe(&mut self) -> Result<Observation, String> {
        let observation = self.world.observe()?;
        for invariant in &mut self.invariants {
            invariant.observe(&observation).map_err(|wrong| format!("{}: {wrong}", invariant.name()))?;
        }
        for seen in &observation.nodes {
            let status = &seen.status;
            let seen = [
                seen.slot as u64,
                status.term,
                status.role as u64,
                status.last_log_index,
                status.committed_index,
                seen.applied.revision.0,
                u64::from(seen.applied.chain.digest.0[0]),
                self.ticks,
            ];
            for number in seen {
                self.verdict.trace = (self.verdict.trace ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
            }
        }
        Ok(observation)
    }

    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        faults: &mut Faults,
        mut done: impl FnMut(&World<'_>, &Observation) -> bool,
    ) -> Result<(), String> {
        let end = self.world.sim.elapsed() + limit;
        loop {
            self.world.step()?;
            self.ticks += 1;
            faults.mind(&mut self.world)?;
            if self.ticks.is_multiple_of(LOOK_TICKS) {
                let observation = self.observe()?;
                if done(&self.world, &observation) {
                    return Ok(());
                }
            }
            if self.world.sim.elapsed() > end {
                return Err(format!("not within {limit:?}: {what}: {}", self.describe()));
            }
        }
    }

    /// Checks that a leader that is well keeps its term, although all connections break.
    fn keeps_its_leader(&mut self, faults: &mut Faults) -> Result<(), String> {
        let term = |observation: &Observation| observation.nodes.iter().map(|seen| seen.status.term).max();
        let before = term(&self.observe()?);
        for _ in 0..RESETS {
            self.world.slots.iter().for_each(|slot| slot.resets.reset());
            self.pass(RESET_INTERVAL, faults)?;
        }
        let after = term(&self.observe()?);
        if before != after {
            return Err(format!("a leader that is well was replaced: term {before:?}, then {after:?}"));
        }
        Ok(())
    }

    /// Checks that a leader whose process ends is replaced before any timeout, and brings it back.
    fn replaces_its_leader(&mut self, faults: &mut Faults) -> Result<(), String> {
        let Some(slot) = leader(&self.world) else { return Err("no node leads".into()) };
        self.world.crash(slot, Crash::Process);
        self.until("a dead leader is replaced", FAILOVER_MAX, faults, |world, _| leader(world).is_some())?;
        self.world.start(slot);
        Ok(())
    }

    fn check_history(&mut self, history: Recorded) -> Result<(), String> {
        let history = history.take().expect("the clients are done").map_err(|error| format!("clients: {error}"))?;
        let report = checker::check(&history);
        (self.verdict.acknowledged, self.verdict.unknown) = (report.acknowledged, report.unknown);
        (self.verdict.reads, self.verdict.events) = (report.reads, report.events);
        for invariant in &mut self.invariants {
            if let Err(wrong) = invariant.check_history(&report) {
                self.verdict.violations.push(format!("{}: {wrong}", invariant.name()));
            }
        }
        report.proved_nothing().map_or(Ok(()), |why| Err(format!("nothing was proven: {why}")))
    }

    /// Describes the state of all nodes, for the report of a failure.
    fn describe(&mut self) -> String {
        let Ok(observation) = self.world.observe() else { return String::new() };
        let line = |seen: &NodeSnapshot| {
            let status = &seen.status;
            let members: Vec<String> =
                status.members.iter().map(|m| format!("{}{}", m.node_id, if m.voter { "" } else { "L" })).collect();
            format!(
                "\n  n{} id {} {:?} term {} last {} committed {} applied {} revision {} members {}",
                seen.slot + 1,
                status.node_id,
                status.role,
                status.term,
                status.last_log_index,
                status.committed_index,
                status.applied_index,
                seen.applied.revision,
                members.join(",")
            )
        };
        format!("standing {:?}{}", self.world.standing, observation.nodes.iter().map(line).collect::<String>())
    }
}

/// Whether all nodes run that should, and have applied all entries.
fn level(world: &World<'_>, observation: &Observation) -> bool {
    let up = world.up();
    let mut states = observation.nodes.iter().map(|seen| (seen.applied.revision, seen.status.applied_index));
    let first = states.next();
    observation.nodes.len() == up.len()
        && world.down().is_empty()
        && states.all(|state| Some(state) == first)
        && observation.nodes.iter().all(|seen| seen.status.last_log_index == seen.status.applied_index)
}

/// Whether all nodes have the same term, and the same leader.
fn led(_: &World<'_>, observation: &Observation) -> bool {
    let leader = |seen: &NodeSnapshot| seen.status.leader.as_ref().map(|peer| (seen.status.term, peer.node_id));
    let mut leaders = observation.nodes.iter().map(leader);
    leaders.next().flatten().is_some_and(|first| leaders.all(|leader| leader == Some(first)))
}

/// Whether no running node has a deletion with work left.
fn erased(world: &World<'_>, _: &Observation) -> bool {
    let left = |(_, state): &(usize, SharedState)| {
        let next = Readers::of(state.clone(), 1).and_then(|readers| readers.read(|query| query.next_erasure()));
        !matches!(next, Ok(None))
    };
    let states = world.states();
    !states.is_empty() && !states.iter().any(left)
}

/// Checks that all nodes have the same messages. The digest does not detect corruption on disk.
fn same_messages(world: &World<'_>) -> Result<(), String> {
    let mut first: Option<(usize, Vec<Message>)> = None;
    for (own, state) in world.states() {
        let messages = messages(&state).map_err(|error| format!("n{} cannot be read: {error}", own + 1))?;
        let (slot, known) = first.get_or_insert_with(|| (own, messages.clone()));
        if let Some((one, other)) = known.iter().zip(&messages).find(|(one, other)| one != other) {
            return Err(format!("n{} has the message {one:?}, and n{} {other:?}", *slot + 1, own + 1));
        }
        if known.len() != messages.len() {
            return Err(format!("n{} and n{} have different numbers of messages", *slot + 1, own + 1));
        }
    }
    Ok(())
}

/// Revision and body.
type Message = (u64, String);

fn messages(state: &SharedState) -> Result<Vec<Message>, StorageError> {
    state.commit_staged()?;
    let file = open_file(&state.directory().join("chat.db"))?;
    let mut statement =
        file.prepare("SELECT revision, body FROM message ORDER BY revision").expect("there is the table");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("no parameters");
    Ok(rows.collect::<rusqlite::Result<_>>().expect("readable"))
}
