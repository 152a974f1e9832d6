//! Five real `chatd` processes with faulty disks, faulty links and wrong clocks: nothing acknowledged is lost,
//! duplicated or read stale, the healthy nodes continue, and the faulty ones recover.
//!
//! A library that is loaded into the nodes injects faults into disks and clocks (`preload.c` next to the modules), and
//! proxies between the nodes inject link faults. Full volumes and stalled readers are real.

#[path = "faults/changes.rs"]
mod changes;
#[path = "faults/clocks.rs"]
mod clocks;
#[path = "faults/disks.rs"]
mod disks;
#[path = "faults/links.rs"]
mod links;
#[path = "faults/readers.rs"]
mod readers;
#[path = "faults/slow_disks.rs"]
mod slow_disks;
mod support;
#[path = "faults/volume.rs"]
mod volume;
