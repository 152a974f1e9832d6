//! Faults of the disks: stalled, failing, lost and damaged ones.
//!
//! Invariant: at most one disk is lost or damaged at a time, and `Faults::lost` names its slot. It is cleared when the
//! node votes under another id.

use std::path::Path;

use storage::open_file;
use support::{rot, wal};

use super::{Faults, Later, RETURN_MAX, leader, links::mend};
use crate::{
    disk::{self, Crash},
    world::{FOUNDERS, World},
};

impl Faults {
    pub(super) fn stall(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        self.say(world, &format!("the disk of n{} stalls", slot + 1));
        stall(world, slot, true);
        self.plan(world, 50..3000, Later::Unstall(slot));
    }

    pub(super) fn bad_disk(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world).filter(|_| world.down().is_empty()) else { return };
        self.say(world, &format!("the disk of n{} fails", slot + 1));
        disk::set_error(slot, Some(self.rng.pick(&[libc::EIO, libc::ENOSPC])));
        if !self.expected.contains(&slot) {
            self.expected.push(slot);
        }
    }

    pub(super) fn lose_disk(&mut self, world: &mut World<'_>) {
        let whole = world.down().is_empty() && self.lost.is_none() && self.removed.is_none();
        let Some(slot) = self.victim(world).filter(|_| whole) else { return };
        let id = world.slots[slot].node.lock().expect("not poisoned").as_ref().map(|node| node.status().node_id);
        let Some(id) = id else { return };
        self.take_down(world, slot, Crash::Power, 50..3000);
        self.say(world, &format!("n{} loses its disk", slot + 1));
        std::fs::remove_dir_all(&world.slots[slot].dir).expect("the directory is there");
        self.lost = Some((slot, id));
    }

    /// Partitions two followers away, so that entries acknowledged from now on are on three disks.
    pub(super) fn part_for_damage(&mut self, world: &mut World<'_>) {
        let whole = world.down().is_empty() && self.lost.is_none() && self.removed.is_none();
        let Some(leader) = leader(world).filter(|_| whole) else { return };
        let Some((_, mut rng)) = self.damage.take() else { return };
        let mut followers: Vec<usize> = (0..FOUNDERS).filter(|slot| *slot != leader).collect();
        rng.shuffle(&mut followers);
        let [hurt, _, one, other] = followers[..] else { return };
        mend(world);
        self.say(world, &format!("n{} and n{} are cut off", one + 1, other + 1));
        for away in [one, other].map(|slot| world.slots[slot].name()) {
            for name in world.hosts().into_iter().filter(|name| *name != away) {
                world.sim.partition(away.as_str(), name.as_str());
            }
        }
        let at = world.sim.elapsed() + rng.ms(300..1500);
        // No other fault happens meanwhile.
        self.next = at + RETURN_MAX;
        self.end = self.end.max(Some(self.next));
        self.later.insert((at, rng.next()), Later::Damage([hurt, one, other]));
    }

    pub(super) fn damage_log(&mut self, world: &mut World<'_>, slots: [usize; 3]) {
        let id = world.slots[slots[0]].node.lock().expect("not poisoned").as_ref().map(|node| node.status().node_id);
        let all_up = (0..FOUNDERS).all(|slot| world.up().contains(&slot));
        let whole = all_up && self.lost.is_none() && self.removed.is_none();
        let Some(id) = id.filter(|_| whole) else { return mend(world) };
        for slot in world.up() {
            let back = if slots.contains(&slot) { 50..300 } else { 3000..RETURN_MAX.as_millis() as u64 };
            self.take_down(world, slot, Crash::Process, back);
        }
        mend(world);
        let wal = world.slots[slots[0]].dir.join("log.db-wal");
        if wal::flip_a_bit(&wal, self.rng.range(0..8) as usize) {
            self.say(world, &format!("the log of n{} is damaged", slots[0] + 1));
            world.damaged.insert(slots[0]);
            self.lost = Some((slots[0], id));
        }
    }

    /// Stops a node in order, so that its file contains everything.
    pub(super) fn stop_for_rot(&mut self, world: &mut World<'_>) {
        let whole = world.down().is_empty() && self.lost.is_none() && self.removed.is_none() && self.rotting.is_none();
        let Some((_, mut rng)) = self.rot.take_if(|_| whole) else { return };
        let slot = rng.range(0..FOUNDERS as u64) as usize;
        let id = world.slots[slot].node.lock().expect("not poisoned").as_ref().map(|node| node.status().node_id);
        let Some(id) = id else { return };
        self.say(world, &format!("stop n{}, whose state will rot", slot + 1));
        if !self.expected.contains(&slot) {
            self.expected.push(slot);
        }
        world.slots[slot].stop.borrow().send_replace(true);
        // No other disk is lost until this one has been replaced.
        self.lost = Some((slot, id));
        self.rotting = Some((slot, rng));
    }

    /// Changes a letter of a message, which SQLite does not detect, or a byte that perhaps nobody reads.
    pub(super) fn rot_state(&mut self, world: &mut World<'_>, stopped_in_order: bool) {
        let Some((slot, mut rng)) = self.rotting.take() else { return };
        let path = world.slots[slot].dir.join("chat.db");
        let (what, change): (_, fn(&Path, u64) -> bool) = match rng.chance(50) {
            true => ("letter", rot::change_a_letter),
            false => ("byte", rot::change_a_byte),
        };
        match stopped_in_order && checkpoint(&path) && change(&path, rng.next()) {
            true => {
                self.say(world, &format!("a {what} in the state of n{} changes", slot + 1));
                world.damaged.insert(slot);
            }
            false => self.lost = None,
        }
    }

    /// Ends the loss of a disk when the node votes under a new id.
    pub(super) fn note_replacement(&mut self, world: &World<'_>) {
        let Some((slot, old)) = self.lost else { return };
        let node = world.slots[slot].node.lock().expect("not poisoned");
        let replaced = node.as_ref().map(|node| node.status()).is_some_and(|status| {
            status.node_id != old
                && status.members.iter().any(|member| member.node_id == status.node_id && member.voter)
                && !status.members.iter().any(|member| member.node_id == old)
        });
        if replaced {
            self.lost = None;
        }
    }
}

pub(super) fn stall(world: &World<'_>, slot: usize, stalled: bool) {
    world.slots[slot].latency.stalled.store(stalled, std::sync::atomic::Ordering::Relaxed);
}

/// Moves the content of the write-ahead log into the file. A stopped node does so when the last task on its host
/// releases the files, which happens later in the simulation. False: the file is being read.
fn checkpoint(state: &Path) -> bool {
    let file = open_file(state).expect("opens");
    let busy = file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i32>(0));
    busy.expect("a checkpoint") == 0
}
