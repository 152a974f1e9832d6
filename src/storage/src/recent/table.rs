//! The table `recent`, and the encoding of its rows.

use prost::Message as _;
use rusqlite::{Connection, params};

use super::{Head, Mark, RecentConversation, Round};
use crate::{
    db::{Int, execute},
    error::{Context as _, StorageError},
};
use chat::{AccountId, ConversationId, Revision, Seq, TimeMs};
use proto::log::v1 as pb;

/// The oldest row, and the one after the newest.
pub(super) fn bounds(conn: &Connection) -> Result<(u64, u64), StorageError> {
    conn.query_row("SELECT coalesce(min(id), 1), coalesce(max(id), 0) + 1 FROM recent", [], |row| {
        Ok((row.get::<_, Int>(0)?.0, row.get::<_, Int>(1)?.0))
    })
    .context("read which rows are recent")
}

/// Appends a row, and returns the size of its content in bytes.
pub(super) fn append(
    conn: &Connection,
    row: u64,
    round: Round,
    changed: &[(ConversationId, RecentConversation)],
) -> Result<usize, StorageError> {
    let Round { cursor, end, began, written_before } = round;
    let round = Some(pb::RecentRound { cursor: cursor.0, end: end.0, began, written_before });
    let conversations = changed.iter().map(|(id, conversation)| encode(*id, conversation)).collect();
    let changes = pb::RecentRows { conversations, round }.encode_to_vec();
    execute(conn, "INSERT INTO recent (id, changes) VALUES (?1, ?2)", params![Int(row), changes])
        .context("store recent rows")?;
    Ok(changes.len())
}

/// Reads all rows, the oldest first. Returns the round of the newest.
pub(super) fn read(
    conn: &Connection,
    mut take: impl FnMut(ConversationId, RecentConversation),
) -> Result<Option<Round>, StorageError> {
    let mut round = None;
    if failpoints::is_active(failpoints::RECENT_FORGOTTEN) {
        return Ok(round);
    }
    let mut statement = conn.prepare_cached("SELECT changes FROM recent ORDER BY id").context("read recent rows")?;
    let mut rows = statement.query([]).context("read recent rows")?;
    while let Some(row) = rows.next().context("read recent rows")? {
        let changes = row.get_ref(0).and_then(|value| Ok(value.as_blob()?)).context("read recent rows")?;
        let changes = pb::RecentRows::decode(changes)
            .map_err(|error| StorageError::Corrupt(format!("recent rows cannot be decoded: {error}")))?;
        for conversation in changes.conversations {
            let (id, conversation) = decode(conversation)?;
            take(id, conversation);
        }
        round = changes.round.map(|round| Round {
            cursor: ConversationId(round.cursor),
            end: ConversationId(round.end),
            began: round.began,
            written_before: round.written_before,
        });
    }
    Ok(round)
}

fn encode(id: ConversationId, conversation: &RecentConversation) -> pb::RecentConversation {
    let RecentConversation { head, marks } = conversation;
    pb::RecentConversation {
        conversation_id: id.0,
        last_seq: head.last_seq.0,
        last_message_revision: head.last_message_revision.0,
        last_revision: head.last_revision.0,
        members: marks.iter().map(|(account, mark)| encode_mark(*account, mark)).collect(),
    }
}

fn encode_mark(account: AccountId, mark: &Mark) -> pb::RecentMember {
    pb::RecentMember {
        account_id: account.0,
        delivered_seq: mark.delivered.0,
        read_seq: mark.read.0,
        sent: mark.sent,
        sent_read: mark.sent_read,
        gone: mark.gone,
        hidden: mark.hidden,
        receipt_revision: mark.receipt_revision.0,
        receipt_ms: mark.receipt_time.0,
        shown_seq: mark.shown.0,
        shown_revision: mark.shown_revision.0,
        shown_ms: mark.shown_time.0,
    }
}

fn decode(conversation: pb::RecentConversation) -> Result<(ConversationId, RecentConversation), StorageError> {
    let id = conversation.conversation_id;
    let damaged = |problem| Err(StorageError::Corrupt(format!("recent conversation {id}: {problem}")));
    if !conversation.members.is_sorted_by(|one, next| one.account_id < next.account_id) {
        return damaged("its members are out of order");
    }
    let head = Head {
        last_seq: Seq(conversation.last_seq),
        last_message_revision: Revision(conversation.last_message_revision),
        last_revision: Revision(conversation.last_revision),
    };
    let marks: Box<[_]> =
        conversation.members.iter().map(|member| (AccountId(member.account_id), decode_mark(member))).collect();
    let of_members = marks.iter().flat_map(|(account, mark)| mark.numbers().into_iter().chain([account.0]));
    if !head.numbers().into_iter().chain([id]).chain(of_members).all(|number| i64::try_from(number).is_ok()) {
        return damaged("a number is larger than any in a table");
    }
    Ok((ConversationId(id), RecentConversation { head, marks }))
}

fn decode_mark(member: &pb::RecentMember) -> Mark {
    Mark {
        delivered: Seq(member.delivered_seq),
        read: Seq(member.read_seq),
        sent: member.sent,
        sent_read: member.sent_read,
        gone: member.gone,
        hidden: member.hidden,
        receipt_revision: Revision(member.receipt_revision),
        receipt_time: TimeMs(member.receipt_ms),
        shown: Seq(member.shown_seq),
        shown_revision: Revision(member.shown_revision),
        shown_time: TimeMs(member.shown_ms),
    }
}
