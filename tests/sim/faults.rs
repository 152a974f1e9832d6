//! Fault injection: the faults of a run and their times, chosen from the seed.
//!
//! No chosen fault exceeds what the cluster guarantees to survive. At most one disk at a time is lost (until its node
//! has been replaced), has its log damaged, or has its state changed. Every other crash keeps what was flushed.
//! Simultaneous power failures of all nodes are among the faults.
//!
//! This file owns the times, and the faults of processes, clocks and members. `links` has the faults of the network,
//! `disks` those of the disks.

mod disks;
mod links;

use std::{collections::BTreeMap, time::Duration};

use disks::stall;
use links::mend;
use raft::Role;
use tokio::time::Instant;

use super::{
    clock,
    disk::{self, Crash},
    member::{self, Contradictions},
    rng::Rng,
    world::{FOUNDERS, Standing, World},
};

/// Time after a damage by which the last node is back.
const RETURN_MAX: Duration = Duration::from_millis(4000);
/// Time limit for an operator's call.
const ORDER_MAX: Duration = Duration::from_secs(5);

/// A scheduled action.
#[derive(Debug)]
enum Later {
    Start(usize),
    /// All links work again.
    Mend,
    /// A disk answers again.
    Unstall(usize),
    /// All nodes are killed, and the log of the first of these slots loses its end. That slot is back before all nodes
    /// except the others listed here.
    Damage([usize; 3]),
}

pub struct Faults {
    rng: Rng,
    next: Duration,
    /// Set by the first action.
    end: Option<Duration>,
    lasts: Duration,
    later: BTreeMap<(Duration, u64), Later>,
    count: u64,
    /// Slots whose end is expected, because they were stopped, removed, or given a bad disk.
    expected: Vec<usize>,
    /// A slot that lost its disk and has not been replaced yet, with its old id.
    lost: Option<(usize, u64)>,
    removed: Option<usize>,
    /// Time at which a node's log is damaged, in some runs once.
    damage: Option<(Duration, Rng)>,
    /// Time at which a byte of a stopped node's state changes, in some runs once.
    rot: Option<(Duration, Rng)>,
    /// The slot that is being stopped for that.
    rotting: Option<(usize, Rng)>,
    /// Contradictions found by the tasks of a dishonest member.
    found: Contradictions,
    log: bool,
}

impl Faults {
    pub fn new(all: &mut Rng, found: Contradictions) -> Self {
        let mut rng = all.split("faults");
        let lasts = rng.ms(4000..12_000);
        let mut own = all.split("damage");
        let damage = own.chance(25).then(|| (own.ms(0..1500), own));
        let mut own = all.split("rot");
        let rot = own.chance(25).then(|| (own.ms(500..4000), own));
        let log = std::env::var_os("SIM_LOG").is_some();
        Self {
            rng,
            next: Duration::ZERO,
            end: None,
            lasts,
            later: BTreeMap::new(),
            count: 0,
            expected: Vec::new(),
            lost: None,
            removed: None,
            damage,
            rot,
            rotting: None,
            found,
            log,
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there are more faults to come.
    pub fn more(&mut self, now: Duration) -> bool {
        now < *self.end.get_or_insert(now + self.lasts)
    }

    /// Executes the actions that are due.
    pub fn act(&mut self, world: &mut World<'_>) -> Result<(), String> {
        self.mind(world)?;
        let now = world.sim.elapsed();
        if now >= self.next {
            self.next = now + self.rng.ms(50..1200);
            self.choose(world);
        }
        let began = self.end.map_or(now, |end| end - self.lasts);
        if self.damage.as_ref().is_some_and(|(after, _)| began + *after <= now) {
            self.part_for_damage(world);
        }
        if self.rot.as_ref().is_some_and(|(after, _)| began + *after <= now) {
            self.stop_for_rot(world);
        }
        Ok(())
    }

    /// Completes only what was begun: restarts nodes that ended, and reports nodes that ended unexpectedly.
    pub fn mind(&mut self, world: &mut World<'_>) -> Result<(), String> {
        for (slot, result) in world.ended() {
            let expected = self.expected.iter().position(|expected| *expected == slot);
            self.say(world, &format!("n{} ended: {result:?}", slot + 1));
            if self.rotting.as_ref().is_some_and(|(stopped, _)| *stopped == slot) {
                self.rot_state(world, result.is_ok());
            }
            match expected {
                Some(at) => drop(self.expected.swap_remove(at)),
                // It has read the page that was damaged. The next start moves the files aside.
                None if world.damaged.contains(&slot) && is_damage(&result) => {}
                // It was down when it was removed.
                None if self.removed == Some(slot) => {}
                None => return Err(format!("n{} ended by itself: {result:?}", slot + 1)),
            }
            if self.removed == Some(slot) {
                world.standing[slot] = Standing::Out;
            } else {
                self.plan(world, 100..2000, Later::Start(slot));
            }
        }
        if let Some(found) = self.found.lock().expect("not poisoned").first() {
            return Err(found.clone());
        }
        self.note_replacement(world);
        let now = world.sim.elapsed();
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Later::Start(slot) => {
                    if self.rng.chance(10) {
                        self.relocate(world, slot);
                    }
                    self.say(world, &format!("start n{}", slot + 1));
                    world.start(slot);
                }
                Later::Mend => mend(world),
                Later::Unstall(slot) => stall(world, slot, false),
                Later::Damage(slots) => self.damage_log(world, slots),
            }
        }
        Ok(())
    }

    /// Ends all faults.
    pub fn heal(&mut self, world: &mut World<'_>) {
        self.say(world, "heal");
        mend(world);
        self.later.clear();
        for slot in 0..world.slots.len() {
            stall(world, slot, false);
            disk::set_error(slot, None);
        }
        for slot in world.down() {
            world.start(slot);
        }
    }

    fn say(&self, world: &World<'_>, what: &str) {
        if self.log {
            eprintln!("== {:?} {what}", world.sim.elapsed());
        }
    }

    fn plan(&mut self, world: &World<'_>, after_ms: std::ops::Range<u64>, what: Later) {
        let at = world.sim.elapsed() + self.rng.ms(after_ms);
        self.later.insert((at, self.rng.next()), what);
    }

    fn choose(&mut self, world: &mut World<'_>) {
        self.count += 1;
        match self.rng.range(0..100) {
            0..18 => self.kill(world),
            18..21 => self.power_failure(world),
            21..29 => self.stop(world),
            29..43 => self.partition(world),
            43..50 => self.one_way(world),
            50..56 => self.slow_link(world),
            56..64 => self.stall(world),
            64..68 => self.bad_disk(world),
            68..74 => self.wrong_clock(world),
            74..78 => self.lose_disk(world),
            78..82 => self.change_members(world),
            82..86 => self.transfer(world),
            86..90 => self.append_malformed(world),
            90..93 => self.forward_unfit(world),
            93..98 => self.snapshot(world),
            _ => self.reset(world),
        }
    }

    fn how(&mut self) -> Crash {
        self.rng.pick(&[Crash::Process, Crash::Power, Crash::Torn])
    }

    /// Picks a running node: the leader in about half of the cases.
    fn victim(&mut self, world: &World<'_>) -> Option<usize> {
        let up = world.up();
        match leader(world) {
            Some(leader) if self.rng.chance(50) => Some(leader),
            _ if up.is_empty() => None,
            _ => Some(self.rng.pick(&up)),
        }
    }

    fn kill(&mut self, world: &mut World<'_>) {
        let room = 2usize.saturating_sub(world.down().len());
        for _ in 0..self.rng.range(1..3).min(room as u64) {
            let (Some(slot), how) = (self.victim(world), self.how()) else { return };
            self.take_down(world, slot, how, 50..4000);
        }
    }

    fn take_down(&mut self, world: &mut World<'_>, slot: usize, how: Crash, for_ms: std::ops::Range<u64>) {
        self.say(world, &format!("crash n{} {how:?}", slot + 1));
        // In half of the cases the connections do not close, because a machine without power sends nothing.
        let silent = how != Crash::Process && self.rng.chance(50);
        let others: Vec<String> = world.hosts().into_iter().filter(|name| *name != world.slots[slot].name()).collect();
        if silent {
            others.iter().for_each(|other| world.sim.partition(world.slots[slot].name(), other.as_str()));
        }
        self.expected.retain(|expected| *expected != slot);
        world.crash(slot, how);
        if silent {
            others.iter().for_each(|other| world.sim.repair(world.slots[slot].name(), other.as_str()));
        }
        self.plan(world, for_ms, Later::Start(slot));
    }

    fn power_failure(&mut self, world: &mut World<'_>) {
        let how = self.rng.pick(&[Crash::Power, Crash::Torn]);
        for slot in world.up() {
            self.take_down(world, slot, how, 50..1500);
        }
        // All nodes return with other addresses, so no node is where the others expect it.
        if self.rng.chance(30) {
            for slot in world.down() {
                self.relocate(world, slot);
            }
        }
    }

    fn relocate(&mut self, world: &mut World<'_>, slot: usize) {
        self.say(world, &format!("n{} moves", slot + 1));
        world.relocate(slot);
    }

    fn stop(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world).filter(|_| world.down().len() < 2) else { return };
        self.say(world, &format!("stop n{}", slot + 1));
        if !self.expected.contains(&slot) {
            self.expected.push(slot);
        }
        world.slots[slot].stop.borrow().send_replace(true);
    }

    fn wrong_clock(&mut self, world: &mut World<'_>) {
        let slot = self.rng.range(0..FOUNDERS as u64) as usize;
        let hours = self.rng.range(0..49) as i64 - 24;
        self.say(world, &format!("the clock of n{} is {hours} h wrong", slot + 1));
        clock::set_error(slot, hours * 3_600_000);
    }

    fn change_members(&mut self, world: &mut World<'_>) {
        if let Some(guest) = world.guest().filter(|_| self.rng.chance(60)) {
            self.say(world, &format!("n{} comes", guest + 1));
            world.start(guest);
            return;
        }
        if self.lost.is_some() || self.removed.is_some() || world.down().len() > 1 {
            return;
        }
        let (Some(slot), Some(asked)) = (self.victim(world), self.victim(world)) else { return };
        let name = world.slots[slot].name();
        self.say(world, &format!("remove {name}"));
        self.removed = Some(slot);
        self.expected.push(slot);
        world.slots[asked].order(move |node| {
            tokio::spawn(async move {
                // If it fails, the node stays.
                let _ = node.remove_member(&name, Instant::now() + ORDER_MAX).await;
            });
        });
    }

    fn transfer(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        self.say(world, "transfer leadership");
        world.slots[slot].order(|node| {
            tokio::spawn(async move {
                let _ = node.transfer_leadership(None, Instant::now() + ORDER_MAX).await;
            });
        });
    }

    fn append_malformed(&mut self, world: &mut World<'_>) {
        let Some(slot) = leader(world) else { return };
        self.say(world, &format!("n{} appends malformed entries", slot + 1));
        world.slots[slot].order(member::append_malformed(&mut self.rng, &self.found));
    }

    fn forward_unfit(&mut self, world: &mut World<'_>) {
        let up = world.up();
        if up.is_empty() {
            return;
        }
        let slot = self.rng.pick(&up);
        self.say(world, &format!("n{} forwards unfit commands", slot + 1));
        world.slots[slot].order(member::forward_unfit(&mut self.rng, &self.found));
    }

    fn snapshot(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        self.say(world, &format!("snapshot on n{}", slot + 1));
        world.slots[slot].order(|node| {
            tokio::spawn(async move {
                let _ = node.snapshot(Instant::now() + ORDER_MAX).await;
            });
        });
    }
}

/// Finds a node that believes to be the leader.
pub fn leader(world: &World<'_>) -> Option<usize> {
    let leads = |slot: &usize| {
        let node = world.slots[*slot].node.lock().expect("not poisoned");
        node.as_ref().is_some_and(|node| node.status().role == Role::Leader)
    };
    world.up().into_iter().find(leads)
}

fn is_damage(result: &Result<(), String>) -> bool {
    result.as_ref().is_err_and(|error| error.contains("does not match its checksum"))
}
