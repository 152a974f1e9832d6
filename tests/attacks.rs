//! Hostile callers against real nodes: each test carries out an attack and asserts what the service keeps while it
//! lasts. Without the defense the test fails.
//!
//! The tests are numbered like the threats in `docs/security.md`. Nodes and clusters come from `support`. Every attack
//! is bounded in time; tests wait on conditions.

mod attacks {
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
}
mod support;
