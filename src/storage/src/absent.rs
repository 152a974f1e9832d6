//! Sets of messages that are hidden from one member of a conversation, or not counted as unread for it.
//!
//! A set is stored as bits in blocks of 64 seqs, each with its count. So any range is counted with one row for each 64
//! messages in it (a million messages: 16,000 short rows, about a millisecond), and a run of hidden messages is skipped
//! at the same rate. Invariants: a row has at least one bit, and `count` is the number of its bits.

use rusqlite::{Connection, OptionalExtension, params};

use super::db::Int;
use super::error::{Context, StorageError};
use chat::{AccountId, ConversationId, Seq};

/// The kind of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Messages that the member hid from itself.
    Hidden = 0,
    /// Messages of others that are tombstones, or that the member hid. They never count as unread. Messages of a member
    /// whose account is deleted do not count either, and need not be in the set.
    Gone = 1,
}

/// A set of one member in one conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Set {
    pub account: AccountId,
    pub conversation: ConversationId,
    pub kind: Kind,
}

fn block(seq: Seq) -> i64 {
    i64::try_from(seq.0 >> 6).unwrap_or(i64::MAX)
}

fn bit(seq: Seq) -> u64 {
    1 << (seq.0 & 63)
}

impl Set {
    /// Adds a message. Returns `false` if it was in the set already.
    pub(super) fn insert(self, conn: &Connection, seq: Seq) -> Result<bool, StorageError> {
        let sql = "INSERT INTO absent (account_id, conversation_id, kind, block, count, bits) \
                   VALUES (?1, ?2, ?3, ?4, 1, ?5) \
                   ON CONFLICT (account_id, conversation_id, kind, block) \
                   DO UPDATE SET count = count + 1, bits = bits | excluded.bits WHERE bits & excluded.bits = 0";
        let values = params![self.account, self.conversation, self.kind as i64, block(seq), bit(seq).cast_signed()];
        let changed = conn.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        Ok(changed.context("add to a set of messages")? > 0)
    }

    /// Whether a message is in the set.
    pub(super) fn contains(self, conn: &Connection, seq: Seq) -> Result<bool, StorageError> {
        Ok(self.bits(conn, block(seq))? & bit(seq) != 0)
    }

    fn bits(self, conn: &Connection, block: i64) -> Result<u64, StorageError> {
        let sql = "SELECT bits FROM absent WHERE account_id = ?1 AND conversation_id = ?2 AND kind = ?3 AND block = ?4";
        let values = params![self.account, self.conversation, self.kind as i64, block];
        let bits: Option<i64> = conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, |row| row.get(0)).optional())
            .context("read a set of messages")?;
        Ok(bits.unwrap_or(0).cast_unsigned())
    }

    /// Number of messages in the set with `after` < seq <= `up_to`.
    pub(super) fn count(self, conn: &Connection, after: Seq, up_to: Seq) -> Result<u64, StorageError> {
        if up_to <= after {
            return Ok(0);
        }
        let (first, last) = (block(after), block(up_to));
        // Bits up to and including a seq.
        let up_to_bit = |seq: Seq| u64::MAX >> (63 - (seq.0 & 63));
        if first == last {
            let bits = self.bits(conn, last)? & up_to_bit(up_to) & !up_to_bit(after);
            return Ok(u64::from(bits.count_ones()));
        }
        let begun = self.bits(conn, first)? & !up_to_bit(after);
        let ended = self.bits(conn, last)? & up_to_bit(up_to);
        let sql = "SELECT coalesce(sum(count), 0) FROM absent WHERE account_id = ?1 AND conversation_id = ?2 \
                   AND kind = ?3 AND block > ?4 AND block < ?5";
        let values = params![self.account, self.conversation, self.kind as i64, first, last];
        let whole: Int = conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, |row| row.get(0)))
            .context("count a set of messages")?;
        Ok(whole.0 + u64::from(begun.count_ones() + ended.count_ones()))
    }

    /// The seqs from `from` down to 1 that are not in the set, newest first, at most `limit`.
    pub(super) fn outside(self, conn: &Connection, from: Seq, limit: usize) -> Result<Vec<Seq>, StorageError> {
        let sql = "SELECT block, bits FROM absent WHERE account_id = ?1 AND conversation_id = ?2 AND kind = ?3 \
                   AND block <= ?4 ORDER BY block DESC";
        let read = || -> rusqlite::Result<Vec<Seq>> {
            let mut statement = conn.prepare_cached(sql)?;
            let mut rows = statement.query(params![self.account, self.conversation, self.kind as i64, block(from)])?;
            let mut next = rows.next()?.map(|row| Ok::<_, rusqlite::Error>((row.get(0)?, row.get(1)?))).transpose()?;
            let (mut seqs, mut seq) = (Vec::new(), from.0);
            while seq > 0 && seqs.len() < limit {
                let here = block(Seq(seq));
                // Rows come from the newest block to the oldest.
                while next.is_some_and(|(block, _): (i64, i64)| block > here) {
                    next = rows.next()?.map(|row| Ok::<_, rusqlite::Error>((row.get(0)?, row.get(1)?))).transpose()?;
                }
                let bits = next.filter(|(block, _)| *block == here).map_or(0, |(_, bits)| bits.cast_unsigned());
                if bits == u64::MAX {
                    seq = (seq & !63).saturating_sub(1);
                    continue;
                }
                if bits & bit(Seq(seq)) == 0 {
                    seqs.push(Seq(seq));
                }
                seq -= 1;
            }
            Ok(seqs)
        };
        read().context("look for visible messages")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn database() -> Connection {
        let conn = Connection::open_in_memory().expect("open");
        conn.execute_batch(
            "CREATE TABLE absent (account_id, conversation_id, kind, block, count, bits,
             PRIMARY KEY (account_id, conversation_id, kind, block)) WITHOUT ROWID",
        )
        .expect("create");
        conn
    }

    const SET: Set = Set { account: AccountId(1), conversation: ConversationId(2), kind: Kind::Hidden };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set(
            seqs in prop::collection::vec(1..300_u64, 0..200),
            run in (1..300_u64, 0..200_u64),
            (after, up_to) in (0..300_u64, 0..300_u64),
            limit in 1..20_usize,
        ) {
            let (conn, mut plain) = (database(), BTreeSet::new());
            let foreign = Set { kind: Kind::Gone, ..SET };
            foreign.insert(&conn, Seq(7)).expect("insert");
            for seq in seqs.into_iter().chain(run.0..run.0 + run.1) {
                prop_assert_eq!(SET.insert(&conn, Seq(seq)).expect("insert"), plain.insert(seq));
            }
            let expected = plain.iter().filter(|seq| **seq > after && **seq <= up_to).count() as u64;
            prop_assert_eq!(SET.count(&conn, Seq(after), Seq(up_to)).expect("count"), expected);
            prop_assert_eq!(SET.contains(&conn, Seq(up_to)).expect("look"), plain.contains(&up_to));
            let outside: Vec<Seq> =
                (1..=up_to).rev().filter(|seq| !plain.contains(seq)).take(limit).map(Seq).collect();
            prop_assert_eq!(SET.outside(&conn, Seq(up_to), limit).expect("look"), outside);
        }
    }
}
