//! Five real `chatd` processes with bad disks, bad links and wrong clocks: nothing acknowledged is lost, doubled or
//! read stale, the healthy ones go on, and who was broken comes back.
//!
//! Disks and clocks are broken by a library that is loaded into the nodes (`preload.c` beside the modules), links by
//! proxies between them; full volumes and readers that do not read are real ones.

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
