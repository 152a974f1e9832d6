//! Faults of the network: partitions, deaf and mute nodes, slow links, and connections that break. [`mend`] ends those
//! that last.

use std::time::Duration;

use super::{Faults, Later};
use crate::world::World;

impl Faults {
    pub(super) fn partition(&mut self, world: &mut World<'_>) {
        let mut hosts = world.hosts();
        hosts.push("client".to_owned());
        self.rng.shuffle(&mut hosts);
        let cut = self.rng.range(1..hosts.len() as u64) as usize;
        let (one, other) = hosts.split_at(cut);
        self.say(world, &format!("partition {one:?} from {other:?}"));
        for a in one {
            other.iter().for_each(|b| world.sim.partition(a.as_str(), b.as_str()));
        }
        self.plan(world, 200..4000, Later::Mend);
    }

    pub(super) fn one_way(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        let (name, deaf) = (world.slots[slot].name(), self.rng.chance(50));
        self.say(world, &format!("{name} is {}", if deaf { "deaf" } else { "mute" }));
        for other in world.hosts().into_iter().filter(|other| *other != name) {
            let (from, to) = if deaf { (&other, &name) } else { (&name, &other) };
            world.sim.partition_oneway(from.as_str(), to.as_str());
        }
        self.plan(world, 200..4000, Later::Mend);
    }

    pub(super) fn reset(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        self.say(world, &format!("the connections of n{} break", slot + 1));
        world.slots[slot].resets.reset();
    }

    pub(super) fn slow_link(&mut self, world: &mut World<'_>) {
        let Some(slot) = self.victim(world) else { return };
        let (name, delay) = (world.slots[slot].name(), self.rng.ms(20..400));
        self.say(world, &format!("{name} is {delay:?} away"));
        for other in world.hosts().into_iter().filter(|other| *other != name) {
            world.sim.set_link_max_message_latency(name.as_str(), other.as_str(), delay);
        }
        self.plan(world, 200..4000, Later::Mend);
    }
}

/// Restores all links, at the usual speed.
pub(super) fn mend(world: &mut World<'_>) {
    let mut hosts = world.hosts();
    hosts.push("client".to_owned());
    for (at, a) in hosts.iter().enumerate() {
        for b in &hosts[at + 1..] {
            world.sim.repair(a.as_str(), b.as_str());
            world.sim.set_link_max_message_latency(a.as_str(), b.as_str(), Duration::from_millis(10));
        }
    }
}
