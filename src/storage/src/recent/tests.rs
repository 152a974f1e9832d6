//! What is recent, after any sequence of commits and crashes, and as seen by readers of any age.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rusqlite::StatementStatus;

use super::*;

/// Small, so that rounds end and conversations are written back all the time.
const SMALL: Limits = Limits { round_bytes: 400, conversations: 8 };
const CONVERSATIONS: u64 = 20;
/// Members of each conversation.
const MEMBERS: [AccountId; 2] = [AccountId(1), AccountId(2)];

/// All rows as they should be.
type Model = BTreeMap<ConversationId, (Head, [Mark; 2])>;

fn tables() -> Connection {
    let conn = Connection::open_in_memory().expect("open");
    let mut tables = "CREATE TABLE recent (id INTEGER PRIMARY KEY, changes BLOB NOT NULL) STRICT;
        CREATE TABLE account (id INTEGER PRIMARY KEY, username TEXT, deleted INTEGER);
        INSERT INTO account VALUES (1, 'one', 0), (2, 'two', 0);
        CREATE TABLE conversation (id INTEGER PRIMARY KEY, direct_low INTEGER, direct_high INTEGER,
            last_seq, last_message_revision, last_revision);
        CREATE TABLE member (conversation_id, account_id, delivered_seq, read_seq, sent, sent_read, gone, hidden,
            receipt_revision, receipt_ms, shown_seq, shown_revision, shown_ms);"
        .to_owned();
    for id in 1..=CONVERSATIONS {
        tables += &format!("INSERT INTO conversation VALUES ({id}, 1, 2, 0, 0, 0);");
        for account in MEMBERS {
            tables += &format!("INSERT INTO member VALUES ({id}, {account}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);");
        }
    }
    conn.execute_batch(&tables).expect("tables");
    conn
}

fn new_model() -> Model {
    (1..=CONVERSATIONS).map(|id| (ConversationId(id), (Head::default(), [Mark::default(); 2]))).collect()
}

/// A number for each column.
fn values(revision: u64) -> (Head, Mark) {
    let head = Head {
        last_seq: Seq(revision),
        last_message_revision: Revision(revision + 1),
        last_revision: Revision(revision + 2),
    };
    let mark = Mark {
        delivered: Seq(revision + 3),
        read: Seq(revision + 4),
        sent: revision + 5,
        sent_read: revision + 6,
        gone: revision + 7,
        hidden: revision + 8,
        receipt_revision: Revision(revision + 9),
        receipt_time: TimeMs(revision + 10),
        shown: Seq(revision + 11),
        shown_revision: Revision(revision + 12),
        shown_time: TimeMs(revision + 13),
    };
    (head, mark)
}

/// Changes the head and one mark of some conversations, as the applier would.
fn commit(conn: &Connection, recent: &mut Recent, model: &mut Model, revision: u64, changed: &[u64]) {
    let changed: BTreeSet<u64> = changed.iter().map(|id| id % CONVERSATIONS + 1).collect();
    let mut rows = Vec::new();
    for id in changed {
        let id = ConversationId(id);
        let earlier = recent.get(id);
        let (head, mark) = values(revision * 100 + id.0);
        let row = model.get_mut(&id).expect("there");
        row.0 = head;
        row.1[(revision % 2) as usize] = mark;
        let differs = |at: usize| {
            at == (revision % 2) as usize || earlier.as_ref().is_some_and(|earlier| earlier.mark(MEMBERS[at]).is_some())
        };
        let marks = [0, 1].into_iter().filter(|at| differs(*at)).map(|at| (MEMBERS[at], row.1[at])).collect();
        rows.push((id, RecentConversation { head, marks }));
    }
    let changes = recent.store(conn, rows).expect("stored");
    recent.publish(changes);
}

fn seen(conn: &Connection, get: impl Fn(ConversationId) -> Option<RecentConversation>) -> Model {
    let row = |id| {
        let recent = get(id);
        let row = conversation(conn, id, recent.as_ref()).expect("read").expect("there");
        let members = members(conn, id, recent.as_ref()).expect("read");
        assert_eq!(members.iter().map(|member| member.account).collect::<Vec<_>>(), MEMBERS);
        (id, (row.head, [members[0].mark, members[1].mark]))
    };
    (1..=CONVERSATIONS).map(|id| row(ConversationId(id))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_and_what_is_recent_are_the_rows_after_every_commit_and_every_start(
        commits in prop::collection::vec(prop::collection::vec(0..CONVERSATIONS, 0..6), 1..80),
        start_every in 1..20_usize,
    ) {
        let conn = tables();
        let (mut recent, mut model) = (Recent::read_with(&conn, SMALL).expect("read"), new_model());
        for (number, changed) in commits.iter().enumerate() {
            commit(&conn, &mut recent, &mut model, number as u64 + 1, changed);
            prop_assert_eq!(&seen(&conn, |id| recent.get(id)), &model);
            let rows = RecentRows::read(&conn).expect("read");
            prop_assert_eq!(&seen(&conn, |id| rows.get(id)), &model);
            if (number + 1) % start_every == 0 {
                recent = Recent::read_with(&conn, SMALL).expect("read");
                prop_assert_eq!(&seen(&conn, |id| recent.get(id)), &model);
            }
        }
        let changes = recent.write_all_back(&conn).expect("written");
        recent.publish(changes);
        prop_assert_eq!(&seen(&conn, |_| None), &model);
        prop_assert_eq!(table::bounds(&conn).expect("read"), (1, 1));
    }

    #[test]
    fn a_reader_sees_what_was_recent_when_it_began(
        steps in prop::collection::vec((prop::collection::vec(0..CONVERSATIONS, 0..6), 0..4_usize, 0..4_usize), 1..60),
    ) {
        let conn = tables();
        let (mut recent, mut model) = (Recent::read_with(&conn, SMALL).expect("read"), new_model());
        let mut readers: Vec<(RecentRows, Vec<Option<RecentConversation>>)> = Vec::new();
        let newest = |recent: &Recent| {
            (1..=CONVERSATIONS).map(|id| recent.get(ConversationId(id))).collect::<Vec<_>>()
        };
        for (number, (changed, begin, end)) in steps.into_iter().enumerate() {
            if begin == 0 {
                readers.push((recent.versions().now(), newest(&recent)));
            }
            commit(&conn, &mut recent, &mut model, number as u64 + 1, &changed);
            for (reader, expected) in &readers {
                let found: Vec<_> =
                    (1..=CONVERSATIONS).map(|id| reader.get(ConversationId(id))).collect();
                prop_assert_eq!(&found, expected);
            }
            if end < readers.len() {
                readers.swap_remove(end);
            }
        }
        drop(readers);
        // Without readers, a commit leaves no earlier version.
        commit(&conn, &mut recent, &mut model, 1000, &[1]);
        prop_assert_eq!(recent.versions().sizes(), (recent.versions().len(), 0));
    }
}

/// Commits changes of conversations that no table has, and starts again every few commits. Returns the largest numbers
/// of conversations and of rows of `recent`.
fn most(changed: impl Fn(u64) -> Vec<u64>, starts: u64) -> (usize, u64) {
    let conn = tables();
    let mut recent = Recent::read_with(&conn, SMALL).expect("read");
    let (mut conversations, mut rows) = (0, 0);
    for number in 1..2000 {
        let (head, mark) = values(number);
        let ids: BTreeSet<u64> = changed(number).into_iter().collect();
        let changed = |id| (ConversationId(id), RecentConversation { head, marks: [(MEMBERS[0], mark)].into() });
        let changes = recent.store(&conn, ids.into_iter().map(changed).collect()).expect("stored");
        recent.publish(changes);
        if number % starts == 0 {
            recent = Recent::read_with(&conn, SMALL).expect("read");
        }
        conversations = conversations.max(recent.versions().len());
        let Int(count) = conn.query_row("SELECT count(*) FROM recent", [], |row| row.get(0)).expect("count");
        rows = rows.max(count);
    }
    (conversations, rows)
}

#[test]
fn what_is_recent_is_bounded_also_with_new_conversations_and_many_starts() {
    let few = |number: u64| vec![number * 7 % 20, (number * 7 + 3) % 20, number * 11 % 20];
    let new = |number: u64| vec![number * 2, number * 2 + 1];
    let mixed = |number: u64| vec![number, number.saturating_sub(1), number * 31 % 400];
    for starts in [u64::MAX, 5] {
        for (what, (conversations, rows)) in
            [("few", most(few, starts)), ("new", most(new, starts)), ("mixed", most(mixed, starts))]
        {
            assert!(rows <= 60, "{what}, a start every {starts} commits: {rows} rows");
            assert!(conversations <= 120, "{what}, a start every {starts} commits: {conversations} conversations");
        }
    }
}

#[test]
fn damaged_rows_are_an_error() {
    for damaged in ["x'ff'", "x'0a0408012a00'", "x'0a0a08012a0208022a020801'", "x'0a0d080110ffffffffffffffffff01'"] {
        let conn = tables();
        conn.execute_batch(&format!("INSERT INTO recent VALUES (1, {damaged})")).expect("insert");
        let found = Recent::read_with(&conn, SMALL);
        match damaged {
            // A member without a number is the account 0, which is no member: it changes nothing.
            "x'0a0408012a00'" => assert_eq!(seen(&conn, |id| found.as_ref().expect("read").get(id)), new_model()),
            _ => assert!(found.expect_err("damaged").is_corruption(), "{damaged}"),
        }
    }
}

#[test]
fn a_statement_is_not_compiled_again_for_other_values() {
    let dir = tempfile::tempdir().expect("tempdir");
    let machine = crate::StateMachine::open(dir.path()).expect("open");
    let reader = crate::db::open_reader(&crate::db::database_path(dir.path())).expect("open");
    for id in 1..=3 {
        assert!(members(&reader, ConversationId(id), None).expect("read").is_empty());
    }
    let statement = reader.prepare_cached(rows::MEMBERS).expect("prepared");
    assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    assert_eq!(statement.get_status(StatementStatus::Run), 3);
    drop(machine);
}
