//! The tables of `chat.db`, and whether a file has them.
//!
//! Measured, and the reason for the shape of `message`: rows in revision order (always appended), one unique index that
//! starts with the client's time-ordered id (mostly appended), and no index by conversation, which every send would change
//! in another place: messages are linked instead (`history`). Everything that is updated often is small:
//! `conversation`, `member`, and the single row of `state`.
//!
//! What a member has not read is not counted but kept: `(last_seq - sent) - (read_seq - sent_read) - gone`, the messages
//! of others, without those read, without those that are not there any more.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::{Context, StorageError};

/// "qcht": marks the file as ours.
pub(super) const APPLICATION_ID: i64 = 0x7163_6874;
/// Format that this version writes, and the newest it reads.
pub(super) const FORMAT: i64 = 1;

/// `deletion.kind`: tombstones for all members.
pub(super) const DELETION_FOR_EVERYONE: i64 = 1;
/// `deletion.kind`: hidden by `account_id` for itself.
pub(super) const DELETION_FOR_MEMBER: i64 = 2;
/// `deletion.kind`: `account_id` deleted the account.
pub(super) const DELETION_OF_ACCOUNT: i64 = 3;

const TABLES: &str = "
CREATE TABLE state (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    applied_term    INTEGER,                        -- all three NULL: nothing was applied yet
    applied_node    INTEGER,
    applied_index   INTEGER,
    membership      BLOB    NOT NULL,               -- log.v1.StoredMembership
    revision        INTEGER NOT NULL,
    clock_ms        INTEGER NOT NULL,
    digest          BLOB    NOT NULL,               -- of everything up to the revision
    digest_since    BLOB    NOT NULL                -- of what made no revision since; zero: nothing
) STRICT;

CREATE TABLE account (
    id              INTEGER PRIMARY KEY,            -- revision that made it
    username        TEXT    NOT NULL UNIQUE,        -- stays after a deletion
    password_hash   TEXT    NOT NULL,               -- empty after a deletion
    request_id      BLOB,
    created_ms      INTEGER NOT NULL,
    deleted         INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX account_request ON account (request_id) WHERE request_id IS NOT NULL;

CREATE TABLE session (
    id              INTEGER PRIMARY KEY,            -- revision that opened it
    token_hash      BLOB    NOT NULL UNIQUE,
    account_id      INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER NOT NULL
) STRICT;
CREATE INDEX session_account ON session (account_id);

CREATE TABLE conversation (
    id                      INTEGER PRIMARY KEY,    -- revision of its first message
    direct_low              INTEGER,                -- the two of a direct conversation, the smaller id first;
    direct_high             INTEGER,                -- equal: notes to oneself; NULL: not a direct conversation
    last_seq                INTEGER NOT NULL,
    last_message_revision   INTEGER NOT NULL,
    last_revision           INTEGER NOT NULL        -- of anything that happened in it
) STRICT;
CREATE UNIQUE INDEX conversation_direct ON conversation (direct_low, direct_high) WHERE direct_low IS NOT NULL;

CREATE TABLE member (
    conversation_id     INTEGER NOT NULL,
    account_id          INTEGER NOT NULL,
    delivered_seq       INTEGER NOT NULL,
    read_seq            INTEGER NOT NULL,
    sent                INTEGER NOT NULL,           -- messages of this member
    sent_read           INTEGER NOT NULL,           -- of these: up to read_seq
    gone                INTEGER NOT NULL,           -- of others, after read_seq: tombstones, or hidden by this member
    receipt_revision    INTEGER NOT NULL,           -- of the last move of a watermark; 0: none
    receipt_ms          INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, account_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX member_account ON member (account_id, conversation_id);

CREATE TABLE message (
    revision        INTEGER PRIMARY KEY,
    conversation_id INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    sender_id       INTEGER NOT NULL,
    client_id       BLOB    NOT NULL,
    time_ms         INTEGER NOT NULL,
    body            TEXT    NOT NULL,               -- empty when deleted
    deleted         INTEGER NOT NULL,
    previous        INTEGER NOT NULL,               -- revision of the message before it in the conversation; 0: none
    jump            INTEGER NOT NULL                -- the same for seq & (seq - 1); 0: none
) STRICT;
CREATE UNIQUE INDEX message_client ON message (client_id, sender_id);

CREATE TABLE rejected_send (
    client_id       BLOB    NOT NULL,
    sender_id       INTEGER NOT NULL,
    reason          INTEGER NOT NULL,               -- log.v1.Rejection
    PRIMARY KEY (client_id, sender_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE hidden (
    account_id      INTEGER NOT NULL,
    conversation_id INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    PRIMARY KEY (account_id, conversation_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE deletion (
    revision        INTEGER PRIMARY KEY,
    conversation_id INTEGER NOT NULL,
    kind            INTEGER NOT NULL,               -- 1 for everyone, 2 for the account, 3 of the account
    account_id      INTEGER NOT NULL,
    time_ms         INTEGER NOT NULL,
    seqs            BLOB    NOT NULL                -- 8 bytes each, little-endian; empty for kind 3
) STRICT;
CREATE INDEX deletion_conversation ON deletion (conversation_id);

INSERT INTO state (id, membership, revision, clock_ms, digest, digest_since)
    VALUES (1, x'', 0, 0, zeroblob(32), zeroblob(32));
";

/// Makes the tables in an empty file; checks a file that has some.
pub(super) fn create_or_check(conn: &mut Connection, path: &Path) -> Result<(), StorageError> {
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .context("read the schema of chat.db")?;
    if tables > 0 || application_id(conn)? != 0 {
        return check(conn, path);
    }
    let transaction =
        conn.transaction_with_behavior(TransactionBehavior::Immediate).context("begin making the tables")?;
    transaction.execute_batch(TABLES).context("make the tables")?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).context("mark chat.db")?;
    transaction.pragma_update(None, "user_version", FORMAT).context("mark the format of chat.db")?;
    transaction.commit().context("commit the tables")
}

/// Refuses files of other programs and of later versions.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<(), StorageError> {
    let id = application_id(conn)?;
    if id != APPLICATION_ID {
        let problem = format!("application id {id:#x}, not {APPLICATION_ID:#x}");
        return Err(StorageError::ForeignFile { path: path.to_owned(), problem });
    }
    let format: i64 =
        conn.pragma_query_value(None, "user_version", |row| row.get(0)).context("read the format of chat.db")?;
    if format > FORMAT {
        return Err(StorageError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT });
    }
    if format < 1 {
        return Err(StorageError::Corrupt(format!("format {format} does not exist")));
    }
    Ok(())
}

fn application_id(conn: &Connection) -> Result<i64, StorageError> {
    conn.pragma_query_value(None, "application_id", |row| row.get(0)).context("read the application id of chat.db")
}
