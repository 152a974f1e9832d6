//! What the fuzz targets share: the fixtures, how they are damaged, command sequences, and questions to a state.
//!
//! The targets are in `fuzz_targets/`, one for each group of decoders; each says what has to hold. `fuzz/run` builds
//! and runs them all.

pub mod commands;
pub mod edits;
pub mod fixtures;
pub mod questions;
pub mod scratch;
