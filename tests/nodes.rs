//! Whole nodes and clusters: real `chatd` processes, and `chatctl` as people call it.
//!
//! `api` asks one node, `attacks` are hostile callers, `cluster` kills and stops nodes, and `faults` breaks their
//! disks, links and clocks. The harness is the crate `support`.

mod api;
mod attacks;
mod cluster;
mod faults;
