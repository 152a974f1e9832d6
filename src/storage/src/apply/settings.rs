//! The row of an account's privacy settings, which the state machine and the queries read alike.

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Context, StorageError};
use chat::{AccountId, Privacy};

/// The privacy settings of an account.
pub(crate) fn privacy(conn: &Connection, account: AccountId) -> Result<Privacy, StorageError> {
    let found = conn
        .prepare_cached("SELECT read_receipts, session_activity FROM privacy WHERE account_id = ?1")
        .and_then(|mut statement| {
            let read =
                |row: &rusqlite::Row<'_>| Ok(Privacy { read_receipts: row.get(0)?, session_activity: row.get(1)? });
            statement.query_row([account], read).optional()
        })
        .context("read privacy settings")?;
    Ok(found.unwrap_or_default())
}
