//! Hostile callers against real nodes: each test carries out an attack and asserts the guarantees that hold during it.
//! Each test fails without the defense.
//!
//! The tests are numbered like the threats in `docs/security.md`. Nodes and clusters come from `support`. Every attack
//! is bounded in time. Tests wait for conditions.

mod accounts;
mod admission;
mod at_rest;
mod joining;
mod peers;
mod poison;
mod proxies;
mod space;
mod storm;
mod web;
mod work;
