//! The API's edge cases against a real node: one `chatd` process per test, as a cluster of one, and raw gRPC clients.
//!
//! Every test has its own process and data directory, so tests run in parallel. They wait for conditions with a
//! deadline that only a fault reaches.

mod accounts;
mod crowd;
mod deletions;
mod hostile;
mod input;
mod json;
mod messages;
mod node;
mod pages;
mod person;
mod privacy;
mod requests;
mod sessions;
mod subscriptions;
