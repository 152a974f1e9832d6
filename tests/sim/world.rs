//! The simulated cluster: seven hosts, five of which found it, and the driver's operations on them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use storage::SharedState;
use tokio::sync::watch;
use turmoil::Sim;

use super::{
    clock,
    disk::{self, Crash},
    host::{NodeSlot, Ports},
    people::QUOTA_MIB,
    resets::Resets,
    rng::Rng,
    worker::Latency,
};
use support::invariants::{NodeSnapshot, Observation};

/// Nodes that found the cluster.
pub const FOUNDERS: usize = 5;
/// Nodes that may join later.
pub const GUESTS: usize = 2;
const SLOTS: usize = FOUNDERS + GUESTS;
/// The peer port of nodes until they move.
const PEER_PORT: u16 = 50_052;
const TICK: Duration = Duration::from_millis(1);
/// Maximum number of entries checked per node at a time.
const ENTRIES_MAX: u64 = 500;

/// The state of a node as the driver knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The node runs, or is about to.
    Up,
    /// The node was taken down, and will be restarted.
    Down,
    /// The node never joined, or was removed.
    Out,
}

pub struct World<'a> {
    pub sim: Sim<'a>,
    pub slots: Vec<Rc<NodeSlot>>,
    pub standing: Vec<Standing>,
    /// Slots whose files were damaged: the nodes are expected to quarantine them.
    pub damaged: BTreeSet<usize>,
    rng: Rng,
    /// The index up to which each life of each slot was checked.
    looked: BTreeMap<(usize, u64), u64>,
}

impl World<'_> {
    /// Creates the cluster. The founders start with the first step.
    pub fn new(seed: u64, root: &Path, rng: &mut Rng) -> Self {
        clock::start(SLOTS);
        disk::start(root, SLOTS);
        let latency_ms = rng.range(1..15);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(Duration::from_millis(latency_ms))
            .tcp_capacity(1 << 16)
            .enable_random_order()
            .build();
        let usual_us = rng.pick(&[100, 1000, 5000, 20_000]);
        let ports = Ports::new(RefCell::new(vec![PEER_PORT; SLOTS]));
        let kept = rng.pick(&[0, 5, 100, 20_000]);
        let slots: Vec<Rc<NodeSlot>> =
            (0..SLOTS).map(|number| Rc::new(slot(number, root, (usual_us, kept), &ports, rng))).collect();
        for slot in &slots[..FOUNDERS] {
            let slot = Rc::clone(slot);
            sim.host(slot.name(), move || {
                let slot = Rc::clone(&slot);
                async move {
                    slot.run().await;
                    Ok(())
                }
            });
        }
        let standing = (0..SLOTS).map(|n| if n < FOUNDERS { Standing::Up } else { Standing::Out }).collect();
        Self { sim, slots, standing, damaged: BTreeSet::new(), rng: rng.split("world"), looked: BTreeMap::new() }
    }

    /// Runs one tick. Returns whether the clients are done.
    pub fn step(&mut self) -> Result<bool, String> {
        clock::advance(self.sim.elapsed());
        self.sim.step().map_err(|error| error.to_string())
    }

    pub fn up(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.standing[*slot] == Standing::Up).collect()
    }

    pub fn down(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.standing[*slot] == Standing::Down).collect()
    }

    /// Returns a guest that never joined.
    pub fn guest(&self) -> Option<usize> {
        (FOUNDERS..SLOTS).find(|slot| self.standing[*slot] == Standing::Out && *self.slots[*slot].starts.borrow() == 0)
    }

    /// Takes a node down as `how` says. It loses its memory.
    pub fn crash(&mut self, slot: usize, how: Crash) {
        let name = self.slots[slot].name();
        // The node's files close with the tasks on its host, so no other task may hold them.
        self.slots[slot].node.lock().expect("not poisoned").take();
        self.slots[slot].orders.take();
        self.slots[slot].latency.stalled.store(false, Ordering::Relaxed);
        let sim = &mut self.sim;
        disk::crash(slot, how, &mut self.rng, || sim.crash(name));
        self.standing[slot] = Standing::Down;
    }

    /// Brings a node up, for the first time or again.
    pub fn start(&mut self, slot: usize) {
        let node = Rc::clone(&self.slots[slot]);
        self.standing[slot] = Standing::Up;
        node.ended.take();
        if slot >= FOUNDERS && *node.starts.borrow() == 0 {
            self.sim.host(node.name(), move || {
                let slot = Rc::clone(&node);
                async move {
                    slot.run().await;
                    Ok(())
                }
            });
        } else {
            self.sim.bounce(node.name());
        }
    }

    /// Makes a stopped node listen on another port from its next start on.
    pub fn relocate(&mut self, slot: usize) {
        let slot = &self.slots[slot];
        slot.ports.borrow_mut()[slot.number] += 1;
    }

    /// Returns the nodes that ended on their own, and their results. Removes them from their hosts.
    pub fn ended(&mut self) -> Vec<(usize, Result<(), String>)> {
        let mut ended = Vec::new();
        for slot in self.up() {
            let result = self.slots[slot].ended.take();
            if let Some(result) = result {
                self.crash(slot, Crash::Process);
                ended.push((slot, result));
            }
        }
        ended
    }

    /// Returns the names of all hosts that links may lead to.
    pub fn hosts(&self) -> Vec<String> {
        let known = |slot: &&Rc<NodeSlot>| slot.number < FOUNDERS || *slot.starts.borrow() > 0;
        self.slots.iter().filter(known).map(|slot| slot.name()).collect()
    }

    /// The states of the running nodes, with the numbers of their slots.
    pub fn states(&self) -> Vec<(usize, SharedState)> {
        let state = |slot: &Rc<NodeSlot>| {
            let node = slot.node.lock().expect("not poisoned").clone()?;
            Some((slot.number, node.files().1.clone()))
        };
        self.slots.iter().filter_map(state).collect()
    }

    /// Whether each damaged node that is still a member has moved its files aside.
    pub fn is_intact(&self) -> bool {
        let is_out = |slot: &usize| matches!(self.standing[*slot], Standing::Out);
        let mut members = self.damaged.iter().filter(|slot| !is_out(slot));
        members.all(|slot| self.slots[*slot].dir.join("aside").exists())
    }

    /// Observes all running nodes.
    pub fn observe(&mut self) -> Result<Observation, String> {
        let mut nodes = Vec::new();
        for slot in &self.slots {
            let Some(node) = slot.node.lock().expect("not poisoned").clone() else { continue };
            let (status, start) = (node.status(), *slot.starts.borrow());
            let (log, state) = node.files();
            // A node that is stopping because of its disk is not checked any more.
            let Ok(applied) = state.applied() else { continue };
            let from = self.looked.entry((slot.number, start)).or_default();
            let end = (status.committed_index + 1).min(from.saturating_add(ENTRIES_MAX));
            let committed = log.read(*from..end, usize::MAX).unwrap_or_default();
            *from = end.max(*from);
            nodes.push(NodeSnapshot {
                slot: slot.number,
                start,
                status,
                applied,
                committed,
                log: Box::new(log.clone()),
            });
        }
        let quarantined =
            |slot: &&Rc<NodeSlot>| !self.damaged.contains(&slot.number) && slot.dir.join("aside").exists();
        let moved_aside = self.slots.iter().filter(quarantined).map(|slot| slot.number);
        Ok(Observation { moved_aside: moved_aside.collect(), nodes })
    }
}

fn slot(number: usize, root: &Path, (usual_us, kept): (u64, u64), ports: &Ports, rng: &mut Rng) -> NodeSlot {
    let name = format!("n{}", number + 1);
    let dir = root.join(&name);
    let config = vec![
        ("CHAT_NAME".to_owned(), name.clone()),
        ("CHAT_DATA_DIR".into(), dir.display().to_string()),
        // The simulated network has IPv4 alone.
        ("CHAT_LISTEN".into(), "0.0.0.0:50051".into()),
        // The simulated network has no TLS.
        ("CHAT_INSECURE_PEERS".into(), "1".into()),
        ("CHAT_EXPECTED_NODES".into(), "n*".into()),
        ("CHAT_DIGEST_INTERVAL_S".into(), "2".into()),
        ("CHAT_SCRUB_INTERVAL_S".into(), "5".into()),
        // The free space of the simulating machine must not influence the simulation.
        ("CHAT_SPACE_RESERVE_MB".into(), "0".into()),
        ("CHAT_ACCOUNT_MIB_MAX".into(), QUOTA_MIB.to_string()),
        ("CHAT_LOG_ENTRIES_KEPT".into(), kept.to_string()),
        ("CHAT_DRAIN_TIMEOUT_MS".into(), "3000".into()),
    ];
    let latency = Latency::default();
    latency.usual_us.store(usual_us, Ordering::Relaxed);
    NodeSlot {
        number,
        dir,
        config,
        ports: Rc::clone(ports),
        latency: Arc::new(latency),
        resets: Resets::default(),
        rng: RefCell::new(rng.split(&name)),
        node: Arc::new(Mutex::new(None)),
        ended: RefCell::new(None),
        stop: RefCell::new(watch::Sender::new(false)),
        orders: RefCell::new(None),
        starts: RefCell::new(0),
    }
}
