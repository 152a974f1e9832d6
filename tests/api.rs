//! The API's edges, against a real node: one `chatd` process per test, a cluster of itself, and raw gRPC clients.
//!
//! Every test has a process and a data directory of its own, so tests run side by side. They wait on conditions with a
//! deadline that only a fault reaches.

mod api {
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
}
