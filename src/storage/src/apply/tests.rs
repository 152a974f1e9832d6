//! Commands on a real file: restarts, rejections, the clock, out-of-range numbers.

mod caches;
mod cost;

use prost::Message as _;

use super::*;
use crate::{codec, db::Int, digest::Chain};
use chat::limits::SESSIONS_PER_ACCOUNT_MAX;
use chat::{AccountCommand, ClientId, Command, Destination, ReceiptItem, Rejection, Seq, TokenHash};

fn entry(index: u64, commands: &[(u64, Command)]) -> AppliedEntry {
    let proposals = commands
        .iter()
        .map(|(time_ms, command)| pb::Proposal {
            time_ms: *time_ms,
            traceparent: String::new(),
            command: Some(codec::encode_command(command)),
        })
        .collect();
    batch(index, &pb::Batch { proposals, ..Default::default() })
}

fn batch(index: u64, batch: &pb::Batch) -> AppliedEntry {
    AppliedEntry { log_id: log_id(index), payload: AppliedPayload::Batch(batch.encode_to_vec().into()) }
}

fn log_id(index: u64) -> pb::LogId {
    pb::LogId { term: 1, node_id: 1, index }
}

fn create(name: &str) -> (u64, Command) {
    let command = Command::CreateAccount {
        username: name.into(),
        password_hash: "hash".into(),
        request_id: None,
        invitation: None,
    };
    (1000, command)
}

fn login(account: u64, token: u8) -> (u64, Command) {
    let command = Command::OpenSession {
        account: AccountId(account),
        token_hash: TokenHash([token; 32]),
        lifetime_ms: 1 << 40,
        login: chat::Login::default(),
    };
    (1000, command)
}

fn send(session: u64, to: &str, client: u8) -> (u64, Command) {
    let command = Command::SendMessage {
        session: SessionId(session),
        to: Destination::Person(to.into()),
        client_id: ClientId([client; 16]),
        body: "hi".into(),
    };
    (1000, command)
}

/// Creates the accounts 1 and 2 and the sessions 3 and 4.
fn start(machine: &mut StateMachine) {
    let commands = [create("alice"), create("bob"), login(1, 1), login(2, 2)];
    machine.apply(vec![entry(1, &commands)]).expect("apply");
}

fn rows(machine: &StateMachine, table: &str) -> i64 {
    let conn = machine.conn.as_ref().expect("open");
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("count")
}

#[test]
fn an_empty_directory_has_nothing_applied() {
    let dir = tempfile::tempdir().expect("tempdir");
    let machine = StateMachine::open(&dir.path().join("new")).expect("open");
    let expected = AppliedState {
        log_id: None,
        membership: pb::StoredMembership::default(),
        revision: Revision(0),
        clock: TimeMs(0),
        chain: Chain::default(),
    };
    assert_eq!(machine.applied(), &expected);
}

#[test]
fn blank_and_membership_entries_are_kept_across_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    let membership = pb::Membership { voters: vec![pb::VoterSet { node_ids: vec![1, 2, 3] }], nodes: vec![] };
    let entries = vec![
        AppliedEntry { log_id: log_id(1), payload: AppliedPayload::Blank },
        AppliedEntry { log_id: log_id(2), payload: AppliedPayload::Membership(membership.clone()) },
        AppliedEntry { log_id: log_id(3), payload: AppliedPayload::Blank },
    ];
    let applied = machine.apply(entries).expect("apply");
    assert_eq!(applied.outcomes, vec![vec![], vec![], vec![]]);
    drop(machine);
    let machine = StateMachine::open(dir.path()).expect("open");
    assert_eq!(machine.applied().log_id, Some(log_id(3)));
    let stored = pb::StoredMembership { log_id: Some(log_id(2)), membership: Some(membership) };
    assert_eq!(machine.applied().membership, stored);
}

/// A batch of one proposal whose command is field 99 with an empty message, like a command of a later version.
fn later(index: u64) -> AppliedEntry {
    let bytes = Bytes::from_static(&[0x0a, 0x05, 0x1a, 0x03, 0x9a, 0x06, 0x00]);
    AppliedEntry { log_id: log_id(index), payload: AppliedPayload::Batch(bytes) }
}

#[test]
fn an_unknown_command_leaves_no_trace_of_its_call() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let before = machine.applied().clone();
    // Everything applied before it in the same call is rolled back, in the tables and in the caches.
    let error = machine.apply(vec![entry(2, &[send(3, "bob", 1)]), later(3)]).expect_err("unknown");
    assert!(matches!(&error, StorageError::UnknownCommand(text) if text.contains("entry 3")), "{error}");
    assert_eq!(machine.applied(), &before);
    assert_eq!((rows(&machine, "message"), rows(&machine, "conversation")), (0, 0));
    let applied = machine.apply(vec![entry(2, &[send(3, "bob", 1)])]).expect("apply");
    assert!(matches!(&applied.outcomes[0][0], Outcome::MessageSent(sent) if !sent.repeated && sent.seq == Seq(1)));
}

#[test]
fn an_entry_is_not_applied_twice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let error = machine.apply(vec![entry(1, &[create("carol")])]).expect_err("applied already");
    assert!(matches!(error, StorageError::OutOfOrder { found: 1, applied: 1 }), "{error}");
    assert_eq!(rows(&machine, "account"), 2);
}

#[test]
fn the_clock_never_runs_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let at = |time, (_, command)| (time, command);
    let applied =
        machine.apply(vec![entry(2, &[at(5000, send(3, "bob", 1)), at(10, send(3, "bob", 2))])]).expect("apply");
    let times: Vec<u64> = applied.events.iter().map(|event| event.time.0).collect();
    assert_eq!(times, [5000, 5000]);
    assert_eq!(applied.clock, TimeMs(5000));
    // Beyond the largest time that the database can store, the clock stands still instead of failing permanently.
    machine.apply(vec![entry(3, &[at(u64::MAX, send(3, "bob", 3))])]).expect("apply");
    machine.apply(vec![entry(4, &[at(u64::MAX, login(1, 9))])]).expect("apply");
}

#[test]
fn absurd_numbers_are_unknown_ids() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let delete = Command::DeleteMessages { session: SessionId(3), messages: vec![0, u64::MAX], for_everyone: true };
    let receipt = |session, conversation| ReceiptItem {
        session: SessionId(session),
        conversation: ConversationId(conversation),
        up_to: Seq(u64::MAX),
        read: true,
    };
    let receipts = Command::Receipts(vec![receipt(u64::MAX, 1), receipt(3, u64::MAX)]);
    let applied = machine.apply(vec![entry(2, &[(0, delete), (0, receipts), login(u64::MAX, 5)])]).expect("apply");
    assert_eq!(
        applied.outcomes[0],
        [
            Outcome::MessagesDeleted { deleted: 0, ignored: 2, revision: Revision(4) },
            Outcome::ReceiptsApplied(vec![Err(Rejection::SessionUnknown), Err(Rejection::ConversationUnknown)]),
            Outcome::Rejected(Rejection::AccountUnknown),
        ]
    );
}

#[test]
fn the_oldest_session_makes_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let logins: Vec<_> = (0..SESSIONS_PER_ACCOUNT_MAX as u8).map(|n| login(1, 100 + n)).collect();
    let applied = machine.apply(vec![entry(2, &logins)]).expect("apply");
    assert_eq!(applied.closed_sessions, [SessionId(3)]);
    let applied = machine.apply(vec![entry(3, &[send(3, "bob", 1)])]).expect("apply");
    assert_eq!(applied.outcomes[0], [Outcome::Rejected(Rejection::SessionUnknown)]);
    assert_eq!(rows(&machine, "session") as usize, SESSIONS_PER_ACCOUNT_MAX + 1);
}

#[test]
fn a_session_that_is_in_use_makes_no_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let logins: Vec<_> = (1..SESSIONS_PER_ACCOUNT_MAX as u8).map(|n| login(1, 100 + n)).collect();
    let full = machine.apply(vec![entry(2, &logins)]).expect("apply");
    assert_eq!(full.closed_sessions, []);
    let touch = Command::Account(AccountCommand::TouchSessions(vec![SessionId(3)]));
    let applied = machine.apply(vec![entry(3, &[(2000, touch), login(1, 99)])]).expect("apply");
    assert_eq!(applied.closed_sessions, [SessionId(5)], "made after session 3, and not used since");
}

#[test]
fn a_token_opens_one_session() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let applied = machine.apply(vec![entry(2, &[login(1, 1), login(2, 1)])]).expect("apply");
    assert!(matches!(applied.outcomes[0][0], Outcome::SessionOpened { session: SessionId(3), .. }));
    assert_eq!(applied.outcomes[0][1], Outcome::Rejected(Rejection::ClientIdReused));
    assert_eq!(applied.revision, Revision(4));
}

#[test]
fn files_of_others_and_of_later_versions_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = db::database_path(dir.path());
    let foreign = Connection::open(&path).expect("open");
    foreign.execute_batch("CREATE TABLE recipe (id INTEGER)").expect("create");
    drop(foreign);
    let refused = |dir: &Path| StateMachine::open(dir).err().expect("refused");
    assert!(matches!(refused(dir.path()), StorageError::ForeignFile { .. }));

    std::fs::remove_file(&path).expect("remove");
    drop(StateMachine::open(dir.path()).expect("open"));
    let conn = crate::open_file(&path).expect("open");
    conn.pragma_update(None, "user_version", 4).expect("set");
    drop(conn);
    assert!(matches!(refused(dir.path()), StorageError::NewerFormat { found: 4, known: 3, .. }));

    std::fs::write(&path, vec![7; 8192]).expect("write");
    assert!(refused(dir.path()).is_corruption());
}

/// A batch with malformed commands at several positions.
fn poisoned(index: u64) -> AppliedEntry {
    let (time_ms, good) = send(3, "bob", 1);
    let good = pb::Proposal { time_ms, command: Some(codec::encode_command(&good)), ..Default::default() };
    let proposals = vec![
        pb::Proposal { time_ms: u64::MAX, command: None, ..Default::default() },
        good,
        pb::Proposal { time_ms: u64::MAX, command: Some(pb::Command { kind: None }), ..Default::default() },
    ];
    batch(index, &pb::Batch { proposals, ..Default::default() })
}

#[test]
fn what_is_no_command_is_rejected_alone_and_is_in_the_digest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let before = machine.applied().clone();
    let garbage = AppliedEntry { log_id: log_id(2), payload: AppliedPayload::Batch(Bytes::from_static(b"garbage")) };
    let applied = machine.apply(vec![garbage]).expect("goes on");
    assert_eq!(applied.outcomes, [[Outcome::Rejected(Rejection::Malformed)]]);
    assert_eq!((applied.malformed, applied.malformed_shown[0].index), (1, 2));
    let after = machine.applied().clone();
    assert_eq!((after.revision, after.clock, after.chain.digest), (before.revision, before.clock, before.chain.digest));
    assert_ne!(after.chain.since, before.chain.since, "the next revision has it in its digest");

    let applied = machine.apply(vec![poisoned(3)]).expect("goes on");
    let rejected = Outcome::Rejected(Rejection::Malformed);
    assert!(matches!(&applied.outcomes[0][..], [a, Outcome::MessageSent(_), b] if *a == rejected && *b == rejected));
    let positions: Vec<usize> = applied.malformed_shown.iter().map(|malformed| malformed.position).collect();
    assert_eq!((positions, applied.clock), (vec![0, 2], before.clock));

    // The same in another batching and with other bytes results in another digest.
    let other = tempfile::tempdir().expect("tempdir");
    let mut second = StateMachine::open(other.path()).expect("open");
    start(&mut second);
    let other = AppliedEntry { log_id: log_id(2), payload: AppliedPayload::Batch(Bytes::from_static(b"rubbish")) };
    second.apply(vec![other, poisoned(3)]).expect("goes on");
    assert_ne!(second.applied().chain, machine.applied().chain);
}

fn issue(time: u64, token: u8) -> (u64, Command) {
    (time, Command::IssueJoinToken { token_hash: TokenHash([token; 32]), lifetime_ms: 1000 })
}

fn redeem(time: u64, token: u8, admission: u64) -> (u64, Command) {
    (time, Command::RedeemJoinToken { token_hash: TokenHash([token; 32]), admission })
}

#[test]
fn a_join_token_admits_one_node_within_its_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    let invalid = Outcome::Rejected(Rejection::JoinTokenInvalid);
    let issued = |ms| Outcome::JoinTokenIssued { expires_at: TimeMs(ms) };
    let commands = [
        redeem(1000, 1, 7),
        issue(1000, 1),
        // A repeat of the same command.
        issue(1100, 1),
        redeem(1100, 1, 0),
        redeem(1100, 1, u64::MAX),
        redeem(1200, 1, u64::MAX),
        redeem(1200, 1, 7),
        issue(1300, 2),
        // The first token has expired on the replicated clock.
        redeem(2000, 1, u64::MAX),
        redeem(2000, 2, 7),
        redeem(2300, 2, 7),
    ];
    let used = Outcome::JoinTokenRedeemed;
    let expected = [
        invalid.clone(),
        issued(2000),
        issued(2000),
        invalid.clone(),
        used.clone(),
        used.clone(),
        invalid.clone(),
        issued(2300),
        invalid.clone(),
        used,
        invalid,
    ];
    let applied = machine.apply(vec![entry(1, &commands)]).expect("apply");
    assert_eq!(applied.outcomes, [expected.to_vec()]);
    assert_eq!(applied.revision, Revision(0));
    assert_eq!(rows(&machine, "join_token"), 0);
}

#[test]
fn join_tokens_are_bounded_and_make_room_when_they_expire() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    let many: Vec<_> = (0..=64).map(|token| issue(1000, token)).collect();
    let applied = machine.apply(vec![entry(1, &many)]).expect("apply");
    let full = Outcome::Rejected(Rejection::JoinTokensFull);
    assert_eq!(applied.outcomes[0].iter().filter(|outcome| **outcome == full).count(), 1);
    assert_eq!(applied.outcomes[0].last(), Some(&full));
    assert_eq!(rows(&machine, "join_token"), 64);
    machine.apply(vec![entry(2, &[issue(2000, 65)])]).expect("apply");
    assert_eq!(rows(&machine, "join_token"), 1);
}

fn set_privacy(session: u64, read_receipts: Option<bool>, session_activity: Option<bool>) -> Command {
    let change = chat::PrivacyChange { read_receipts, session_activity };
    Command::Account(AccountCommand::SetPrivacy { session: SessionId(session), change })
}

#[test]
fn without_activity_no_row_tells_when_a_session_was_used() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    let open = |account, token: u8, idle_ms| Command::OpenSession {
        account: AccountId(account),
        token_hash: TokenHash([token; 32]),
        lifetime_ms: 100_000,
        login: chat::Login { idle_ms, ..Default::default() },
    };
    let touch = || Command::Account(AccountCommand::TouchSessions([3, 4, 5, 6].map(SessionId).to_vec()));
    // Two sessions of alice, one of them with an idle timeout; a third that has ended at 2000; one session of bob.
    let opened = [(1000, open(1, 1, 0)), (1000, open(1, 2, 5000)), (1000, open(1, 3, 500)), (1000, open(2, 4, 5000))];
    machine.apply(vec![entry(1, &[&[create("alice"), create("bob")][..], &opened[..]].concat())]).expect("apply");
    let times = |machine: &StateMachine| -> Vec<(u64, u64, u64)> {
        let conn = machine.conn.as_ref().expect("open");
        let mut statement = conn.prepare("SELECT id, used_ms, ends_ms FROM session ORDER BY id").expect("prepare");
        let read =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, Int>(0)?.0, row.get::<_, Int>(1)?.0, row.get::<_, Int>(2)?.0));
        statement.query_map([], read).expect("query").map(Result::unwrap).collect()
    };
    machine.apply(vec![entry(2, &[(2000, touch())])]).expect("apply");
    let touched = [(3, 2000, 101_000), (4, 2000, 7000), (5, 1000, 1500), (6, 2000, 7000)];
    assert_eq!(times(&machine), touched);
    let off = machine.apply(vec![entry(3, &[(3000, set_privacy(3, None, Some(false)))])]).expect("apply");
    assert_eq!(off.closed_sessions, [SessionId(5)]);
    let forgotten = [(3, 1000, 101_000), (4, 1000, 8000), (6, 2000, 7000)];
    assert_eq!(times(&machine), forgotten);
    machine.apply(vec![entry(4, &[(4000, touch())])]).expect("apply");
    assert_eq!(times(&machine), [forgotten[0], forgotten[1], (6, 4000, 9000)]);
    assert_eq!(rows(&machine, "privacy"), 1);
    // Default settings need no row.
    machine.apply(vec![entry(5, &[(5000, set_privacy(3, None, Some(true))), (5000, touch())])]).expect("apply");
    assert_eq!(times(&machine), [(3, 5000, 101_000), (4, 5000, 10_000), (6, 5000, 10_000)]);
    assert_eq!(rows(&machine, "privacy"), 0);
}

#[test]
fn the_write_ahead_log_starts_over_unless_a_reader_needs_it() {
    const WAL_MAX: u64 = 5000 * 4096;
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let mut index = 2;
    let mut grow = |machine: &mut StateMachine, commits: u64| {
        for _ in 0..commits {
            let (time, mut command) = send(3, "bob", 0);
            if let Command::SendMessage { client_id, body, .. } = &mut command {
                (*client_id, *body) = (ClientId(u128::from(index).to_be_bytes()), "x".repeat(60_000));
            }
            machine.apply(vec![entry(index, &[(time, command)])]).expect("apply");
            index += 1;
        }
        std::fs::metadata(db::write_ahead_log_path(dir.path())).expect("there").len()
    };
    assert!(grow(&mut machine, 600) < WAL_MAX, "36 MB were written");
    let reader = db::open_reader(&db::database_path(dir.path())).expect("open");
    reader.execute_batch("BEGIN; SELECT 1 FROM state").expect("read");
    assert!(grow(&mut machine, 600) > WAL_MAX, "the reader sees what was there");
    reader.execute_batch("COMMIT").expect("ended");
    let before = grow(&mut machine, 1);
    assert_eq!(grow(&mut machine, 300), before, "it is used again from its beginning");
}
