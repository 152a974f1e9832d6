//! Raft on real ports and real files, in one process; and openraft's own conformance suite on our stores.

mod cluster;
mod safety;
mod suite;
