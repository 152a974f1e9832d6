//! Five real `chatd` processes with faulty disks, faulty links and wrong clocks: nothing acknowledged is lost,
//! duplicated or read stale, the healthy nodes continue, and the faulty ones recover.
//!
//! A library that is loaded into the nodes injects faults into disks and clocks (`preload.c` next to the modules), and
//! proxies between the nodes inject link faults. Full volumes and stalled readers are real.

mod changes;
mod clocks;
mod disks;
mod links;
mod readers;
mod slow_disks;
