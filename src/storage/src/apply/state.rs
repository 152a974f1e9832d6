//! The row of the table `state`: what was applied, and what the state has that is in no other row.

use prost::Message as _;
use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    db::Int,
    digest::Chain,
    error::{Context, StorageError},
};
use chat::{Revision, TimeMs};
use proto::log::v1 as pb;

/// The part of the state that is not in the rows of the chat.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedState {
    /// The last applied entry.
    pub log_id: Option<pb::LogId>,
    /// The membership of the last entry that contained one.
    pub membership: pb::StoredMembership,
    /// The last assigned revision.
    pub revision: Revision,
    /// The replicated clock.
    pub clock: TimeMs,
    /// The digest of everything applied.
    pub chain: Chain,
}

/// Reads the row of the table `state`.
pub(crate) fn read_state(conn: &Connection) -> Result<AppliedState, StorageError> {
    let sql = "SELECT applied_term, applied_node, applied_index, membership, revision, clock_ms, digest, digest_since \
               FROM state";
    let row = conn
        .query_row(sql, [], |row| {
            let id: (Option<Int>, Option<Int>, Option<Int>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let chain = Chain { digest: row.get(6)?, since: row.get(7)? };
            Ok((id, row.get::<_, Vec<u8>>(3)?, row.get(4)?, row.get(5)?, chain))
        })
        .optional()
        .context("read what was applied")?;
    let (id, membership, revision, clock, chain) =
        row.ok_or_else(|| StorageError::Corrupt("the row of the state is missing".into()))?;
    let log_id = match id {
        (Some(term), Some(node), Some(index)) => Some(pb::LogId { term: term.0, node_id: node.0, index: index.0 }),
        (None, None, None) => None,
        _ => return Err(StorageError::Corrupt("the applied log id is incomplete".into())),
    };
    let membership = pb::StoredMembership::decode(membership.as_slice())
        .map_err(|error| StorageError::Corrupt(format!("the membership cannot be decoded: {error}")))?;
    Ok(AppliedState { log_id, membership, revision, clock, chain })
}

/// Writes the row of the table `state`.
pub(crate) fn write_state(conn: &Connection, state: &AppliedState) -> Result<(), StorageError> {
    let sql = "UPDATE state SET applied_term = ?1, applied_node = ?2, applied_index = ?3, membership = ?4, \
               revision = ?5, clock_ms = ?6, digest = ?7, digest_since = ?8";
    let id = state.log_id;
    let changed = conn
        .prepare_cached(sql)
        .and_then(|mut statement| {
            statement.execute(params![
                id.map(|id| Int(id.term)),
                id.map(|id| Int(id.node_id)),
                id.map(|id| Int(id.index)),
                state.membership.encode_to_vec(),
                state.revision,
                state.clock,
                state.chain.digest,
                state.chain.since,
            ])
        })
        .context("write what was applied")?;
    match changed {
        1 => Ok(()),
        _ => Err(StorageError::Corrupt("the row of the state is missing".into())),
    }
}
