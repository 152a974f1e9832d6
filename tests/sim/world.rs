//! The simulated cluster: seven hosts, five of which found it, and the driver's operations on them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use turmoil::Sim;

use super::{
    clock,
    dice::Dice,
    disk::{self, Crash},
    host::{Ports, Seat},
    invariants::{Look, Sight},
    people::QUOTA_MIB,
    worker::Latency,
};

/// Nodes that found the cluster.
pub const FOUNDERS: usize = 5;
/// Nodes that may join later.
pub const GUESTS: usize = 2;
const SEATS: usize = FOUNDERS + GUESTS;
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
    pub seats: Vec<Rc<Seat>>,
    pub standing: Vec<Standing>,
    /// Seats whose files were damaged: the nodes are expected to quarantine them.
    pub damaged: BTreeSet<usize>,
    dice: Dice,
    /// The index up to which each life of each seat was checked.
    looked: BTreeMap<(usize, u64), u64>,
}

impl World<'_> {
    /// Creates the cluster. The founders start with the first step.
    pub fn new(seed: u64, root: &Path, dice: &mut Dice) -> Self {
        clock::start(SEATS);
        disk::start(root, SEATS);
        let latency_ms = dice.range(1..15);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(Duration::from_millis(latency_ms))
            .tcp_capacity(1 << 16)
            .enable_random_order()
            .build();
        let usual_us = dice.pick(&[100, 1000, 5000, 20_000]);
        let ports = Ports::new(RefCell::new(vec![PEER_PORT; SEATS]));
        let kept = dice.pick(&[0, 5, 100, 20_000]);
        let seats: Vec<Rc<Seat>> =
            (0..SEATS).map(|number| Rc::new(seat(number, root, (usual_us, kept), &ports, dice))).collect();
        for seat in &seats[..FOUNDERS] {
            let seat = Rc::clone(seat);
            sim.host(seat.name(), move || {
                let seat = Rc::clone(&seat);
                async move {
                    seat.run().await;
                    Ok(())
                }
            });
        }
        let standing = (0..SEATS).map(|n| if n < FOUNDERS { Standing::Up } else { Standing::Out }).collect();
        Self { sim, seats, standing, damaged: BTreeSet::new(), dice: dice.split("world"), looked: BTreeMap::new() }
    }

    /// Runs one tick. Returns whether the clients are done.
    pub fn step(&mut self) -> Result<bool, String> {
        clock::advance(self.sim.elapsed());
        self.sim.step().map_err(|error| error.to_string())
    }

    pub fn up(&self) -> Vec<usize> {
        (0..SEATS).filter(|seat| self.standing[*seat] == Standing::Up).collect()
    }

    pub fn down(&self) -> Vec<usize> {
        (0..SEATS).filter(|seat| self.standing[*seat] == Standing::Down).collect()
    }

    /// Returns a guest that never joined.
    pub fn guest(&self) -> Option<usize> {
        (FOUNDERS..SEATS).find(|seat| self.standing[*seat] == Standing::Out && *self.seats[*seat].starts.borrow() == 0)
    }

    /// Takes a node down as `how` says. It loses its memory.
    pub fn crash(&mut self, seat: usize, how: Crash) {
        let name = self.seats[seat].name();
        // The node's files close with the tasks on its host, so no other task may hold them.
        self.seats[seat].node.lock().expect("not poisoned").take();
        self.seats[seat].orders.take();
        self.seats[seat].latency.stalled.store(false, Ordering::Relaxed);
        let sim = &mut self.sim;
        disk::crash(seat, how, &mut self.dice, || sim.crash(name));
        self.standing[seat] = Standing::Down;
    }

    /// Brings a node up, for the first time or again.
    pub fn start(&mut self, seat: usize) {
        let node = Rc::clone(&self.seats[seat]);
        self.standing[seat] = Standing::Up;
        node.ended.take();
        if seat >= FOUNDERS && *node.starts.borrow() == 0 {
            self.sim.host(node.name(), move || {
                let seat = Rc::clone(&node);
                async move {
                    seat.run().await;
                    Ok(())
                }
            });
        } else {
            self.sim.bounce(node.name());
        }
    }

    /// Makes a stopped node listen on another port from its next start on.
    pub fn relocate(&mut self, seat: usize) {
        let seat = &self.seats[seat];
        seat.ports.borrow_mut()[seat.number] += 1;
    }

    /// Returns the nodes that ended on their own, and their results. Removes them from their hosts.
    pub fn ended(&mut self) -> Vec<(usize, Result<(), String>)> {
        let mut ended = Vec::new();
        for seat in self.up() {
            let result = self.seats[seat].ended.take();
            if let Some(result) = result {
                self.crash(seat, Crash::Process);
                ended.push((seat, result));
            }
        }
        ended
    }

    /// Returns the names of all hosts that links may lead to.
    pub fn hosts(&self) -> Vec<String> {
        let known = |seat: &&Rc<Seat>| seat.number < FOUNDERS || *seat.starts.borrow() > 0;
        self.seats.iter().filter(known).map(|seat| seat.name()).collect()
    }

    /// Observes all running nodes.
    pub fn look(&mut self) -> Result<Look, String> {
        let mut sights = Vec::new();
        for seat in &self.seats {
            let Some(node) = seat.node.lock().expect("not poisoned").clone() else { continue };
            let (status, start) = (node.status(), *seat.starts.borrow());
            let (log, state) = node.files();
            // A node that is stopping because of its disk is not checked any more.
            let Ok(applied) = state.applied() else { continue };
            let from = self.looked.entry((seat.number, start)).or_default();
            let end = (status.committed_index + 1).min(from.saturating_add(ENTRIES_MAX));
            let committed = log.read(*from..end, usize::MAX).unwrap_or_default();
            *from = end.max(*from);
            sights.push(Sight { seat: seat.number, start, status, applied, committed, node });
        }
        let doubted = |seat: &&Rc<Seat>| !self.damaged.contains(&seat.number) && seat.dir.join("aside").exists();
        let moved_aside = self.seats.iter().filter(doubted).map(|seat| seat.number);
        Ok(Look { moved_aside: moved_aside.collect(), sights })
    }
}

fn seat(number: usize, root: &Path, (usual_us, kept): (u64, u64), ports: &Ports, dice: &mut Dice) -> Seat {
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
        // The free space of the simulating machine must not influence the simulation.
        ("CHAT_SPACE_RESERVE_MB".into(), "0".into()),
        ("CHAT_ACCOUNT_MIB_MAX".into(), QUOTA_MIB.to_string()),
        ("CHAT_LOG_ENTRIES_KEPT".into(), kept.to_string()),
        ("CHAT_DRAIN_TIMEOUT_MS".into(), "3000".into()),
    ];
    let latency = Latency::default();
    latency.usual_us.store(usual_us, Ordering::Relaxed);
    Seat {
        number,
        dir,
        config,
        ports: Rc::clone(ports),
        latency: Arc::new(latency),
        dice: RefCell::new(dice.split(&name)),
        node: Arc::new(Mutex::new(None)),
        ended: RefCell::new(None),
        stop: RefCell::new(watch::Sender::new(false)),
        orders: RefCell::new(None),
        starts: RefCell::new(0),
    }
}
