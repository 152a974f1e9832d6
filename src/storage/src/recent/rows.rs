//! Rows of `conversation` and `member`: what the tables have, and what is recent instead.

use std::{ops::ControlFlow, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Head, Mark, RecentConversation, RecentRows};
use crate::{
    db::Int,
    error::{Context as _, StorageError},
};
use chat::{AccountId, ConversationId};

/// The columns of a [`Head`], of the table `c`, in the order of [`Head::numbers`].
macro_rules! head {
    () => {
        "c.last_seq, c.last_message_revision, c.last_revision"
    };
}

/// The columns of a [`Mark`], of the table `m`, in the order of [`Mark::numbers`].
macro_rules! mark {
    () => {
        "m.delivered_seq, m.read_seq, m.sent, m.sent_read, m.gone, m.hidden, m.receipt_revision, m.receipt_ms, \
         m.shown_seq, m.shown_revision, m.shown_ms"
    };
}

/// The members of a conversation.
pub(super) const MEMBERS: &str = concat!(
    "SELECT m.account_id, a.username, a.deleted, ",
    mark!(),
    " FROM member m CROSS JOIN account a ON a.id = m.account_id WHERE m.conversation_id = ?1 ORDER BY m.account_id"
);

/// A row of `conversation`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConversationRow {
    pub is_direct: bool,
    pub head: Head,
}

/// A row of `member`, with what is in the row of its account.
#[derive(Debug, Clone)]
pub(crate) struct MemberRow {
    pub account: AccountId,
    pub username: Arc<str>,
    /// Whether the account was deleted.
    pub has_left: bool,
    pub mark: Mark,
    /// Whether the mark differs from the table.
    pub is_recent: bool,
}

/// The conversation with an id. `recent` is what differs from the tables.
pub(crate) fn conversation(
    conn: &Connection,
    id: ConversationId,
    recent: Option<&RecentConversation>,
) -> Result<Option<ConversationRow>, StorageError> {
    let sql = concat!("SELECT c.direct_low IS NOT NULL, ", head!(), " FROM conversation c WHERE c.id = ?1");
    let row = conn
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([id], |row| Ok((row.get(0)?, head_of(row, 1)?))).optional())
        .context("read a conversation")?;
    let newer = |head| recent.map_or(head, |recent| recent.head);
    Ok(row.map(|(is_direct, head)| ConversationRow { is_direct, head: newer(head) }))
}

/// The members of a conversation, sorted by account. `recent` is what differs from the tables.
pub(crate) fn members(
    conn: &Connection,
    id: ConversationId,
    recent: Option<&RecentConversation>,
) -> Result<Vec<MemberRow>, StorageError> {
    let read = |row: &Row<'_>| {
        let account = row.get(0)?;
        let newer = recent.and_then(|recent| recent.mark(account));
        let (mark, is_recent) = (newer.map_or_else(|| mark_of(row, 3), Ok)?, newer.is_some());
        Ok(MemberRow { account, username: row.get(1)?, has_left: row.get(2)?, mark, is_recent })
    };
    conn.prepare_cached(MEMBERS)
        .and_then(|mut statement| statement.query_map([id], read)?.collect())
        .context("read the members of a conversation")
}

impl RecentRows {
    /// The conversation with an id, and its members, sorted by account.
    pub fn conversation(
        &self,
        conn: &Connection,
        id: ConversationId,
    ) -> Result<Option<(ConversationRow, Vec<MemberRow>)>, StorageError> {
        let recent = self.get(id);
        let Some(row) = conversation(conn, id, recent.as_ref())? else { return Ok(None) };
        Ok(Some((row, members(conn, id, recent.as_ref())?)))
    }

    /// The members of a conversation, sorted by account.
    pub fn members(&self, conn: &Connection, id: ConversationId) -> Result<Vec<MemberRow>, StorageError> {
        members(conn, id, self.get(id).as_ref())
    }

    /// The mark of a member; `None` if the account is not one.
    pub fn mark(
        &self,
        conn: &Connection,
        id: ConversationId,
        account: AccountId,
    ) -> Result<Option<Mark>, StorageError> {
        if let Some(mark) = self.get(id).and_then(|recent| recent.mark(account)) {
            return Ok(Some(mark));
        }
        let sql = concat!("SELECT ", mark!(), " FROM member m WHERE m.conversation_id = ?1 AND m.account_id = ?2");
        conn.prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(params![id, account], |row| mark_of(row, 0)).optional())
            .context("read a member")
    }

    /// Visits the conversations of an account with an id after `after`, in the order of their ids, until `visit`
    /// breaks.
    pub fn each_head_of(
        &self,
        conn: &Connection,
        account: AccountId,
        after: ConversationId,
        mut visit: impl FnMut(ConversationId, Head) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let sql = concat!(
            "SELECT c.id, ",
            head!(),
            " FROM member m CROSS JOIN conversation c ON c.id = m.conversation_id \
             WHERE m.account_id = ?1 AND m.conversation_id > ?2 ORDER BY m.conversation_id"
        );
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = conn.prepare_cached(sql)?;
            let mut rows = statement.query(params![account, after])?;
            while let Some(row) = rows.next()? {
                let id = row.get(0)?;
                let head = self.get(id).map_or_else(|| head_of(row, 1), |recent| Ok(recent.head))?;
                if visit(id, head).is_break() {
                    break;
                }
            }
            Ok(())
        };
        read().context("read the conversations of an account")
    }

    /// Visits all conversations of an account: its mark, and the other one in a direct conversation.
    pub fn each_mark_of(
        &self,
        conn: &Connection,
        account: AccountId,
        mut visit: impl FnMut(Head, Mark, Option<AccountId>) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let sql = concat!(
            "SELECT c.id, c.direct_low + c.direct_high - ?1, ",
            head!(),
            ", ",
            mark!(),
            " FROM member m CROSS JOIN conversation c ON c.id = m.conversation_id WHERE m.account_id = ?1"
        );
        let mut statement = conn.prepare_cached(sql).context("read the conversations of an account")?;
        let mut rows = statement.query([account]).context("read the conversations of an account")?;
        while let Some(row) = rows.next().context("read the conversations of an account")? {
            let read = || Ok((row.get(0)?, row.get(1)?, head_of(row, 2)?, mark_of(row, 5)?));
            let (id, partner, head, mark) = read().context("read a conversation of an account")?;
            let recent = self.get(id);
            let newer = recent.as_ref().and_then(|recent| recent.mark(account));
            visit(recent.map_or(head, |recent| recent.head), newer.unwrap_or(mark), partner)?;
        }
        Ok(())
    }
}

fn head_of(row: &Row<'_>, from: usize) -> rusqlite::Result<Head> {
    numbers(row, from).map(Head::from_numbers)
}

fn mark_of(row: &Row<'_>, from: usize) -> rusqlite::Result<Mark> {
    numbers(row, from).map(Mark::from_numbers)
}

/// Numbers in columns that follow each other.
fn numbers<const N: usize>(row: &Row<'_>, from: usize) -> rusqlite::Result<[u64; N]> {
    let mut numbers = [0; N];
    for (at, number) in numbers.iter_mut().enumerate() {
        Int(*number) = row.get(from + at)?;
    }
    Ok(numbers)
}
