//! Commands on a real file: restarts, refusals, the clock, absurd numbers.

use super::*;
use crate::chat::limits::SESSIONS_PER_ACCOUNT_MAX;
use crate::chat::{ClientId, Destination, ReceiptItem, Seq, TokenHash};

fn entry(index: u64, commands: &[(u64, Command)]) -> AppliedEntry {
    let proposals = commands
        .iter()
        .map(|(time_ms, command)| pb::Proposal {
            time_ms: *time_ms,
            traceparent: String::new(),
            command: Some(codec::encode_command(command)),
        })
        .collect();
    batch(index, &pb::Batch { proposals })
}

fn batch(index: u64, batch: &pb::Batch) -> AppliedEntry {
    AppliedEntry { log_id: log_id(index), payload: AppliedPayload::Batch(batch.encode_to_vec().into()) }
}

fn log_id(index: u64) -> pb::LogId {
    pb::LogId { term: 1, node_id: 1, index }
}

fn create(name: &str) -> (u64, Command) {
    let command = Command::CreateAccount { username: name.into(), password_hash: "hash".into(), request_id: None };
    (1000, command)
}

fn login(account: u64, token: u8) -> (u64, Command) {
    let command =
        Command::OpenSession { account: AccountId(account), token_hash: TokenHash([token; 32]), lifetime_ms: 1 << 40 };
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

/// Accounts 1 and 2, sessions 3 and 4.
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

#[test]
fn an_unknown_command_leaves_no_trace_of_its_call() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    start(&mut machine);
    let before = machine.applied().clone();
    let unknown = pb::Proposal { time_ms: 9999, command: Some(pb::Command { kind: None }), ..Default::default() };
    let absent = pb::Proposal { time_ms: 9999, command: None, ..Default::default() };
    let garbage = AppliedEntry { log_id: log_id(3), payload: AppliedPayload::Batch(Bytes::from_static(b"\xff\xff")) };
    for bad in
        [batch(3, &pb::Batch { proposals: vec![unknown] }), batch(3, &pb::Batch { proposals: vec![absent] }), garbage]
    {
        // What came before it in the same call is undone, in the tables and in the caches.
        let error = machine.apply(vec![entry(2, &[send(3, "bob", 1)]), bad]).expect_err("unknown");
        assert!(matches!(error, StorageError::UnknownCommand(_)), "{error}");
        assert_eq!(machine.applied(), &before);
        assert_eq!((rows(&machine, "message"), rows(&machine, "conversation")), (0, 0));
    }
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
    // Beyond what the database can hold it stands still instead of failing for ever.
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
    Connection::open(&path).and_then(|conn| conn.pragma_update(None, "user_version", 2)).expect("set");
    assert!(matches!(refused(dir.path()), StorageError::NewerFormat { found: 2, known: 1, .. }));

    std::fs::write(&path, vec![7; 8192]).expect("write");
    assert!(refused(dir.path()).is_corruption());
}
