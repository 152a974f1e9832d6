//! Raft on real ports and real files, in one process; and openraft's own conformance suite on our stores.

pub(crate) mod cluster;
mod members;
mod poison;
mod retained;
mod safety;
mod suite;
