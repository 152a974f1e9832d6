//! What the storage promises to its callers and to later versions: the effect of commands, and the formats on disk.
//!
//! `rules` compares the state machine with a model, `transcripts` with stories that people can read, and `fixtures`
//! with the files that the first version wrote.

// By the name that all other crates call it.
extern crate quorum_chat_storage as storage;

mod fixtures;
mod rules;
mod tables;
mod transcripts;
