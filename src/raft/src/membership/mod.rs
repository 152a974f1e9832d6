//! Membership changes of a running cluster.
//!
//! The leader makes all changes, one at a time, and each only if the membership is still the one that the decision was
//! based on (a precondition that Raft checks). A node joins as a learner, under an id that was never used before. When
//! it has caught up, the leader gives it a vote, and in the same change removes the vote of a member of the same name:
//! in this way a node that lost its disk replaces its old self. The leader checks the membership at intervals, so that
//! the next leader finishes a change that was left half done.
//!
//! Ids start at 16 and derive from the log index of the membership that is changed. A node gets its id only after the
//! change is committed, and no later change can start from the same index, so no id is used twice.
//!
//! Raft does not notify a node that was removed. A node without a leader asks the others whether it still belongs to
//! the cluster ([`crate::Node::removed`]).
//!
//! This module has what does not depend on a running node: the time limits, the join tokens, the rules for changes
//! (`plan`) and for moves (`moves`). Does not cover: making the changes (`node::membership`, `node::joining`,
//! `node::moves`), and when the leader checks the membership (`tasks::membership`).

pub(crate) mod moves;
pub(crate) mod plan;

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use chat::TokenHash;

/// Timeout of a change, which is two log entries. The current leader resumes one that takes longer.
pub(crate) const CHANGE_MAX: Duration = Duration::from_secs(5);
/// Timeout of a call to one node.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The hash of the bytes that the hex digits of a join token encode. An invalid token gives a hash that belongs to no
/// token.
pub(crate) fn join_token_hash(token: &str) -> TokenHash {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    let bytes: Vec<u8> = token.as_bytes().chunks(2).map_while(byte).collect();
    TokenHash(Sha256::digest(bytes).into())
}
