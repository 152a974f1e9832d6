//! The tables of `chat.db`, and the check that a file has them.
//!
//! Measurements led to the shape of `message`: rows in revision order (always appended), one unique index that starts
//! with the client's time-ordered id (mostly appended), and no index by conversation, which every send would change in
//! another place. Messages are linked instead (`history`). Columns that change with every message are small, and are
//! written to `conversation` and `member` later (`recent`).
//!
//! Unread messages are not counted by a scan. Their number for a member is
//! `(last_seq - sent) - (read_seq - sent_read) - gone`: the messages of others, minus those read, minus those deleted
//! or hidden.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::{Context, StorageError};

/// "qcht": marks the file as ours.
pub(super) const APPLICATION_ID: i64 = 0x7163_6874;
/// Format that this version writes, and the newest that it reads. Files of earlier formats are upgraded when the writer
/// opens them. Older versions refuse the upgraded files and snapshots, so there is no way back.
pub(super) const FORMAT: i64 = 3;

/// `deletion.kind`: messages became tombstones for all members.
pub(super) const DELETION_FOR_EVERYONE: i64 = 1;
/// `deletion.kind`: `account_id` hid messages from itself.
pub(super) const DELETION_FOR_MEMBER: i64 = 2;
/// `deletion.kind`: `account_id` deleted its account.
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

/// Upgrade from format 1 to 2. It also runs for a new file, so that both have the same tables. It must be a pure
/// function of the rows, because every node upgrades its own copy of the state. `apply::read_state` also reads
/// snapshots of format 1, which lack these tables and columns.
const UPGRADE_TO_2: &str = "
-- Ordinal of the message among those of its sender in the conversation: what makes any range countable by two look-ups.
ALTER TABLE message ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;
UPDATE message SET sent = counted.ordinal FROM (
    SELECT revision AS id, row_number() OVER (PARTITION BY conversation_id, sender_id ORDER BY revision) AS ordinal
    FROM message
) AS counted WHERE counted.id = message.revision;

-- Messages that the member hid from itself.
ALTER TABLE member ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;
UPDATE member SET hidden = (
    SELECT count(*) FROM hidden WHERE hidden.account_id = member.account_id
        AND hidden.conversation_id = member.conversation_id
) WHERE account_id IN (SELECT account_id FROM hidden);

-- What a member does not see, or does not count: a set of seqs, as one bit for each in blocks of 64.
CREATE TABLE absent (
    account_id      INTEGER NOT NULL,
    conversation_id INTEGER NOT NULL,
    kind            INTEGER NOT NULL,               -- 0 hidden by the member; 1 of others, and a tombstone or hidden
    block           INTEGER NOT NULL,               -- seq / 64
    count           INTEGER NOT NULL,               -- bits that are set
    bits            INTEGER NOT NULL,               -- 1 << (seq % 64)
    PRIMARY KEY (account_id, conversation_id, kind, block)
) STRICT, WITHOUT ROWID;
INSERT INTO absent (account_id, conversation_id, kind, block, count, bits)
    SELECT account_id, conversation_id, 0, seq >> 6, count(*), sum(1 << (seq & 63)) FROM hidden
    GROUP BY account_id, conversation_id, seq >> 6;
INSERT INTO absent (account_id, conversation_id, kind, block, count, bits)
    SELECT account_id, conversation_id, 1, seq >> 6, count(*), sum(1 << (seq & 63)) FROM (
        SELECT member.account_id, member.conversation_id, message.seq FROM message
            CROSS JOIN member ON member.conversation_id = message.conversation_id
                AND member.account_id <> message.sender_id
            WHERE message.deleted = 1 OR EXISTS (
                SELECT 1 FROM hidden WHERE hidden.account_id = member.account_id
                    AND hidden.conversation_id = message.conversation_id AND hidden.seq = message.seq
            )
    ) GROUP BY account_id, conversation_id, seq >> 6;

-- What the other members see of a member that keeps read receipts to itself.
ALTER TABLE member ADD COLUMN shown_seq INTEGER NOT NULL DEFAULT 0;         -- read_seq as others see it
ALTER TABLE member ADD COLUMN shown_revision INTEGER NOT NULL DEFAULT 0;    -- of the last move that others see; 0: none
ALTER TABLE member ADD COLUMN shown_ms INTEGER NOT NULL DEFAULT 0;
UPDATE member SET shown_seq = read_seq, shown_revision = receipt_revision, shown_ms = receipt_ms;

-- Privacy settings of accounts; one without a row has the defaults, which are on.
CREATE TABLE privacy (
    account_id          INTEGER PRIMARY KEY,
    read_receipts       INTEGER NOT NULL,           -- they are exchanged with others
    session_activity    INTEGER NOT NULL            -- the use of sessions is noted
) STRICT;

-- What an account has stored.
CREATE TABLE usage (
    account_id      INTEGER PRIMARY KEY,
    messages        INTEGER NOT NULL,               -- that are not deleted
    bytes           INTEGER NOT NULL                -- of bodies, and 64 for each that is deleted
) STRICT;
INSERT INTO usage (account_id, messages, bytes)
    SELECT sender_id, sum(deleted = 0), sum(octet_length(body) + 64 * (deleted <> 0)) FROM message GROUP BY sender_id;

-- Accounts that were deleted and whose conversations and messages are yet to be worked through, in bounded steps.
CREATE TABLE erasure (
    account_id      INTEGER PRIMARY KEY,
    stage           INTEGER NOT NULL,               -- 0: members are told; 1: bodies are overwritten
    conversation_id INTEGER NOT NULL,               -- the last one that was begun; 0: none
    revision        INTEGER NOT NULL                -- the next message there; 0: none is left
) STRICT;

-- Revision that set the password; 0: the one that made the account.
ALTER TABLE account ADD COLUMN password_revision INTEGER NOT NULL DEFAULT 0;
-- An operator has forbidden its logins.
ALTER TABLE account ADD COLUMN disabled INTEGER NOT NULL DEFAULT 0;
-- Milliseconds without use after which it ends; 0: only expires_ms ends it.
ALTER TABLE session ADD COLUMN idle_ms INTEGER NOT NULL DEFAULT 0;
-- When it was last noted as used.
ALTER TABLE session ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
-- When it ends if it is not used again: at most expires_ms.
ALTER TABLE session ADD COLUMN ends_ms INTEGER NOT NULL DEFAULT 0;
-- Hash of the token of the device that logged in.
ALTER TABLE session ADD COLUMN device BLOB;
UPDATE session SET used_ms = created_ms, ends_ms = expires_ms;
CREATE INDEX session_end ON session (ends_ms);

CREATE TABLE device (
    account_id      INTEGER NOT NULL,
    token_hash      BLOB    NOT NULL,
    used_revision   INTEGER NOT NULL,               -- of its last login
    PRIMARY KEY (account_id, token_hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE invitation (
    id              INTEGER PRIMARY KEY,            -- revision that made it
    code_hash       BLOB    NOT NULL UNIQUE,
    uses            INTEGER NOT NULL,               -- accounts that it allows
    used            INTEGER NOT NULL,               -- accounts that it made
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER NOT NULL
) STRICT;
CREATE INDEX invitation_end ON invitation (expires_ms);

-- Settings of the cluster; one that is missing has its default.
CREATE TABLE setting (
    name            TEXT    PRIMARY KEY,
    value           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Permissions for nodes that the cluster does not know.
CREATE TABLE join_token (
    token_hash      BLOB    PRIMARY KEY,
    expires_ms      INTEGER NOT NULL,
    admission       BLOB    NOT NULL                -- of the node that has used it: 8 bytes; zero: none
) STRICT, WITHOUT ROWID;
";

/// Upgrade from format 2 to 3.
const UPGRADE_TO_3: &str = "
-- What changes with every message and is not yet in `conversation` and `member`: one row for each commit that changed
-- any of it.
CREATE TABLE recent (
    id              INTEGER PRIMARY KEY,
    changes         BLOB    NOT NULL                -- log.v1.RecentRows
) STRICT;
";

/// Creates the tables in an empty file, and checks and upgrades a file that has tables.
pub(super) fn create_or_check(conn: &mut Connection, path: &Path) -> Result<(), StorageError> {
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .context("read the schema of chat.db")?;
    let is_new = tables == 0 && application_id(conn)? == 0;
    let format = if is_new { 0 } else { check(conn, path)? };
    if format == FORMAT {
        return Ok(());
    }
    let transaction =
        conn.transaction_with_behavior(TransactionBehavior::Immediate).context("begin making the tables")?;
    if is_new {
        transaction.execute_batch(TABLES).context("make the tables")?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).context("mark chat.db")?;
    }
    if format < 2 {
        transaction.execute_batch(UPGRADE_TO_2).context("upgrade the tables to format 2")?;
    }
    transaction.execute_batch(UPGRADE_TO_3).context("upgrade the tables to format 3")?;
    transaction.pragma_update(None, "user_version", FORMAT).context("mark the format of chat.db")?;
    transaction.commit().context("commit the tables")
}

/// Rejects files of other programs and of later versions. Returns the format of the file.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<i64, StorageError> {
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
    Ok(format)
}

fn application_id(conn: &Connection) -> Result<i64, StorageError> {
    conn.pragma_query_value(None, "application_id", |row| row.get(0)).context("read the application id of chat.db")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(conn: &Connection) -> Vec<(String, String)> {
        let mut statement = conn.prepare("SELECT name, ifnull(sql, '') FROM sqlite_schema ORDER BY name").unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    }

    fn format(conn: &Connection) -> i64 {
        conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_upgraded_file_has_the_tables_of_a_new_one() {
        let path = Path::new("chat.db");
        let mut new = Connection::open_in_memory().unwrap();
        create_or_check(&mut new, path).unwrap();
        for earlier in [1, 2] {
            let mut old = Connection::open_in_memory().unwrap();
            old.execute_batch(TABLES).unwrap();
            if earlier == 2 {
                old.execute_batch(UPGRADE_TO_2).unwrap();
            }
            old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            old.pragma_update(None, "user_version", earlier).unwrap();
            create_or_check(&mut old, path).unwrap();
            assert_eq!(definitions(&old), definitions(&new));
            assert_eq!((format(&old), format(&new)), (FORMAT, FORMAT));
            // A second call changes nothing.
            create_or_check(&mut old, path).unwrap();
        }
    }
}
