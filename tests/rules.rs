//! The rules of the state machine on random commands, compared with a simple model: in any batching, after a restart
//! and after a snapshot.

#[path = "rules/model.rs"]
mod model;

use std::path::Path;

use model::Model;
use proptest::prelude::*;
use prost::Message as _;
use quorum_chat::chat::*;
use quorum_chat::proto::log::v1 as pb;
use quorum_chat::storage::{AppliedEntry, AppliedPayload, MessageProgress, Readers, StateMachine, codec};
use rusqlite::types::Value;

/// A command with references to existing objects: the nth session, conversation, message.
#[derive(Debug, Clone)]
enum Op {
    Create { name: usize, request: Option<u8>, invitation: Option<u8> },
    Open { account: usize, token: u8, lifetime_ms: u64, idle_ms: u64, device: Option<u8> },
    ChangePassword { session: usize, verified: u64, hash: u8 },
    Operate(Operation, usize),
    Revoke { session: usize, target: usize },
    Touch(Vec<usize>),
    Privacy { session: usize, change: PrivacyChange },
    Registration(Registration),
    Invite { code: u8, uses: u32, lifetime_ms: u64 },
    RevokeInvitation { nth: usize },
    RemoveExpired { before: u64, limit: u32 },
    Close { session: usize, all: bool },
    DeleteAccount { session: usize },
    BeginAccountDeletion { session: usize },
    Erase { account: usize, limit: u32 },
    SendTo { session: usize, name: usize, client: u8, body: u8 },
    SendIn { session: usize, conversation: usize, client: u8, body: u8 },
    Receipts(Vec<(usize, usize, u64, bool)>),
    Delete { session: usize, messages: Vec<usize>, for_everyone: bool },
    IssueJoinToken { token: u8, lifetime_ms: u64 },
    RedeemJoinToken { token: u8, admission: u64 },
}

/// An operator's action on an account.
#[derive(Debug, Clone, Copy)]
enum Operation {
    ResetPassword(u8),
    SetDisabled(bool),
    EndSessions,
    Purge,
}

const NAMES: [&str; 4] = ["ann", "bob", "cem", "dora"];

fn op() -> impl Strategy<Value = Op> {
    let receipt = (0..8_usize, 0..5_usize, prop_oneof![0..6_u64, Just(u64::MAX)], any::<bool>());
    prop_oneof![
        2 => (0..4_usize, prop::option::of(0..3_u8), prop::option::of(0..3_u8))
            .prop_map(|(name, request, invitation)| Op::Create { name, request, invitation }),
        3 => (0..5_usize, any::<u8>(), 50..2000_u64, prop_oneof![Just(0_u64), 20..500_u64], prop::option::of(0..40_u8))
            .prop_map(|(account, token, lifetime_ms, idle_ms, device)| {
                Op::Open { account, token, lifetime_ms, idle_ms, device }
            }),
        3 => op_on_accounts(),
        1 => (0..8_usize, any::<bool>()).prop_map(|(session, all)| Op::Close { session, all }),
        1 => (0..8_usize).prop_map(|session| Op::DeleteAccount { session }),
        1 => (0..8_usize).prop_map(|session| Op::BeginAccountDeletion { session }),
        3 => (0..4_usize, 0..7_u32).prop_map(|(account, limit)| Op::Erase { account, limit }),
        8 => (0..8_usize, 0..4_usize, 0..24_u8, 0..2_u8)
            .prop_map(|(session, name, client, body)| Op::SendTo { session, name, client, body }),
        4 => (0..8_usize, 0..5_usize, 0..24_u8, 0..2_u8)
            .prop_map(|(session, conversation, client, body)| Op::SendIn { session, conversation, client, body }),
        4 => prop::collection::vec(receipt, 1..4).prop_map(Op::Receipts),
        3 => (0..8_usize, prop::collection::vec(0..12_usize, 1..5), any::<bool>())
            .prop_map(|(session, messages, for_everyone)| Op::Delete { session, messages, for_everyone }),
        1 => (0..3_u8, 1..100_u64).prop_map(|(token, lifetime_ms)| Op::IssueJoinToken { token, lifetime_ms }),
        2 => (0..3_u8, 0..3_u64).prop_map(|(token, admission)| Op::RedeemJoinToken { token, admission }),
    ]
}

/// Commands about accounts, sessions, invitations and settings.
fn op_on_accounts() -> impl Strategy<Value = Op> {
    let operation = prop_oneof![
        2 => (0..3_u8).prop_map(Operation::ResetPassword),
        2 => any::<bool>().prop_map(Operation::SetDisabled),
        1 => Just(Operation::EndSessions),
        1 => Just(Operation::Purge),
    ];
    let registration = prop_oneof![2 => Just(Registration::Open), 2 => Just(Registration::Invitation), 1 => Just(Registration::Closed)];
    prop_oneof![
        2 => (0..8_usize, prop_oneof![Just(0_u64), 1..80_u64], 0..3_u8)
            .prop_map(|(session, verified, hash)| Op::ChangePassword { session, verified, hash }),
        2 => (operation, 0..4_usize).prop_map(|(operation, name)| Op::Operate(operation, name)),
        1 => (0..8_usize, 0..8_usize).prop_map(|(session, target)| Op::Revoke { session, target }),
        2 => prop::collection::vec(0..8_usize, 1..5).prop_map(Op::Touch),
        3 => op_on_privacy(0..8_usize),
        1 => registration.prop_map(Op::Registration),
        1 => (0..3_u8, 0..3_u32, 10..500_u64)
            .prop_map(|(code, uses, lifetime_ms)| Op::Invite { code, uses, lifetime_ms }),
        1 => (0..4_usize).prop_map(|nth| Op::RevokeInvitation { nth }),
        2 => (900..2500_u64, 0..3_u32).prop_map(|(before, limit)| Op::RemoveExpired { before, limit }),
    ]
}

fn op_on_privacy(session: std::ops::Range<usize>) -> impl Strategy<Value = Op> {
    let change = (any::<Option<bool>>(), any::<Option<bool>>());
    let change = change.prop_map(|(read_receipts, session_activity)| PrivacyChange { read_receipts, session_activity });
    (session, change).prop_map(|(session, change)| Op::Privacy { session, change })
}

/// Commands of two people in one conversation, which get deep into its history.
fn op_of_two() -> impl Strategy<Value = Op> {
    let receipt = (0..2_usize, Just(0_usize), 0..20_u64, any::<bool>());
    prop_oneof![
        8 => (0..2_usize, any::<u8>(), 0..2_u8)
            .prop_map(|(session, client, body)| Op::SendIn { session, conversation: 0, client, body }),
        4 => prop::collection::vec(receipt, 1..3).prop_map(Op::Receipts),
        1 => op_on_privacy(0..2),
        4 => (0..2_usize, prop::collection::vec(0..20_usize, 1..4), any::<bool>())
            .prop_map(|(session, messages, for_everyone)| Op::Delete { session, messages, for_everyone }),
    ]
}

fn erase() -> impl Strategy<Value = Op> {
    (0..2_usize, 1..7_u32).prop_map(|(account, limit)| Op::Erase { account, limit })
}

/// Random commands, each with a step of the clock before it, after a prefix that makes them effective.
fn ops() -> impl Strategy<Value = Vec<(i64, Op)>> {
    let of_all = prop::collection::vec((-20..40_i64, op()), 1..60);
    let of_two = prop::collection::vec((-5..5_i64, op_of_two()), 1..60);
    let deletion = prop::option::of((0..2_usize, any::<bool>()));
    let after = prop::collection::vec((-5..5_i64, prop_oneof![op_of_two(), erase()]), 0..12);
    let of_two = (of_two, deletion, after).prop_map(|(mut ops, deletion, after)| {
        ops.insert(0, (1, Op::SendTo { session: 0, name: 1, client: 0, body: 0 }));
        ops.extend(deletion.map(|(session, at_once)| match at_once {
            true => (1, Op::DeleteAccount { session }),
            false => (1, Op::BeginAccountDeletion { session }),
        }));
        ops.extend(after);
        ops
    });
    prop_oneof![of_all, of_two].prop_map(|mut ops| {
        let mut all = Vec::new();
        for account in 0..3 {
            all.push((1, Op::Create { name: account, request: None, invitation: None }));
            all.push((1, Op::Open { account, token: account as u8, lifetime_ms: 1500, idle_ms: 0, device: None }));
        }
        all.append(&mut ops);
        all
    })
}

/// The ids assigned so far.
#[derive(Default)]
struct Given {
    accounts: Vec<AccountId>,
    sessions: Vec<SessionId>,
    conversations: Vec<ConversationId>,
    messages: Vec<u64>,
    invitations: Vec<Revision>,
}

impl Given {
    fn command(&self, op: &Op) -> Command {
        // Objects that do not exist (yet) are referenced too.
        let session = |n: &usize| self.sessions.get(*n).copied().unwrap_or(SessionId(u64::MAX));
        let conversation = |n: &usize| self.conversations.get(*n).copied().unwrap_or(ConversationId(77_777));
        let client_id = |n: u8| ClientId([n; 16]);
        match op {
            Op::Create { name, request, invitation } => Command::CreateAccount {
                username: NAMES[*name].into(),
                password_hash: "hash".into(),
                request_id: request.map(client_id),
                invitation: invitation.map(|code| TokenHash([code; 32])),
            },
            Op::Open { account, token, lifetime_ms, idle_ms, device } => Command::OpenSession {
                account: self.accounts.get(*account).copied().unwrap_or(AccountId(u64::MAX)),
                token_hash: TokenHash([*token; 32]),
                lifetime_ms: *lifetime_ms,
                login: Login {
                    idle_ms: *idle_ms,
                    // Valid until the password is changed. Every third one is not checked.
                    password_revision: (token % 3 != 0).then_some(Revision(0)),
                    device: device.map(|device| TokenHash([device; 32])),
                    rehash: (token % 16 == 1).then(|| "rehashed".to_owned()),
                },
            },
            Op::ChangePassword { .. }
            | Op::Operate(..)
            | Op::Revoke { .. }
            | Op::Touch(_)
            | Op::Privacy { .. }
            | Op::Registration(_)
            | Op::Invite { .. }
            | Op::RevokeInvitation { .. }
            | Op::RemoveExpired { .. } => Command::Account(self.account_command(op)),
            Op::Close { session: n, all } => Command::CloseSession { session: session(n), all: *all },
            Op::BeginAccountDeletion { session: n } => Command::BeginAccountDeletion { session: session(n) },
            Op::Erase { account, limit } => Command::EraseAccount {
                account: self.accounts.get(*account).copied().unwrap_or(AccountId(u64::MAX)),
                limit: *limit,
            },
            Op::DeleteAccount { session: n } => Command::DeleteAccount { session: session(n) },
            Op::SendTo { session: n, name, client, body } => Command::SendMessage {
                session: session(n),
                to: Destination::Person(NAMES[*name].into()),
                client_id: client_id(*client),
                body: format!("body {body}"),
            },
            Op::SendIn { session: n, conversation: c, client, body } => Command::SendMessage {
                session: session(n),
                to: Destination::Conversation(conversation(c)),
                client_id: client_id(*client),
                body: format!("body {body}"),
            },
            Op::Receipts(items) => {
                let item = |(n, c, up_to, read): &(usize, usize, u64, bool)| ReceiptItem {
                    session: session(n),
                    conversation: conversation(c),
                    up_to: Seq(*up_to),
                    read: *read,
                };
                Command::Receipts(items.iter().map(item).collect())
            }
            Op::IssueJoinToken { token, lifetime_ms } => {
                Command::IssueJoinToken { token_hash: TokenHash([*token; 32]), lifetime_ms: *lifetime_ms }
            }
            Op::RedeemJoinToken { token, admission } => {
                Command::RedeemJoinToken { token_hash: TokenHash([*token; 32]), admission: *admission }
            }
            Op::Delete { session: n, messages, for_everyone } => Command::DeleteMessages {
                session: session(n),
                messages: messages.iter().map(|m| self.messages.get(*m).copied().unwrap_or(u64::MAX)).collect(),
                for_everyone: *for_everyone,
            },
        }
    }

    fn account_command(&self, op: &Op) -> AccountCommand {
        let session = |n: &usize| self.sessions.get(*n).copied().unwrap_or(SessionId(u64::MAX));
        match op {
            Op::ChangePassword { session: n, verified, hash } => AccountCommand::ChangePassword {
                session: session(n),
                password_revision: Revision(*verified),
                password_hash: format!("hash {hash}"),
            },
            Op::Operate(operation, name) => {
                let username = NAMES[*name].to_owned();
                match operation {
                    Operation::ResetPassword(hash) => {
                        AccountCommand::ResetPassword { username, password_hash: format!("hash {hash}") }
                    }
                    Operation::SetDisabled(disabled) => AccountCommand::SetDisabled { username, disabled: *disabled },
                    Operation::EndSessions => AccountCommand::EndSessions { username },
                    Operation::Purge => AccountCommand::Purge { username },
                }
            }
            Op::Revoke { session: n, target } => {
                AccountCommand::RevokeSession { session: session(n), target: session(target) }
            }
            Op::Touch(sessions) => AccountCommand::TouchSessions(sessions.iter().map(session).collect()),
            Op::Privacy { session: n, change } => AccountCommand::SetPrivacy { session: session(n), change: *change },
            Op::Registration(registration) => AccountCommand::SetRegistration(*registration),
            Op::Invite { code, uses, lifetime_ms } => AccountCommand::CreateInvitation {
                code_hash: TokenHash([*code; 32]),
                uses: *uses,
                lifetime_ms: *lifetime_ms,
            },
            Op::RevokeInvitation { nth } => {
                let invitation = self.invitations.get(*nth).copied().unwrap_or(Revision(77_777));
                AccountCommand::RevokeInvitation { invitation }
            }
            Op::RemoveExpired { before, limit } => {
                AccountCommand::RemoveExpired { before: TimeMs(*before), limit: *limit }
            }
            other => unreachable!("{other:?} is about something else"),
        }
    }

    fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::InvitationCreated { revision, .. } => self.invitations.push(*revision),
            Outcome::AccountCreated { account, repeated: false, .. } => self.accounts.push(*account),
            Outcome::SessionOpened { session, .. } if !self.sessions.contains(session) => self.sessions.push(*session),
            Outcome::MessageSent(sent) if !sent.repeated => {
                self.messages.push(sent.revision.0);
                if sent.seq == Seq(1) {
                    self.conversations.push(sent.conversation);
                }
            }
            _ => {}
        }
    }
}

/// The proposals, with the results by the model.
struct Script {
    proposals: Vec<pb::Proposal>,
    outcomes: Vec<Outcome>,
    quota: (u64, u64),
    model: Model,
}

/// The quota of an account: usually unlimited.
fn quota() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![2 => Just((0, 0)), 1 => (3..9_u64, Just(0)), 1 => (Just(0), 20..400_u64)]
}

fn script(ops: &[(i64, Op)], quota: (u64, u64)) -> Script {
    let (mut model, mut given, mut time) = (Model { quota, ..Model::default() }, Given::default(), 1000_i64);
    let (mut proposals, mut outcomes) = (Vec::new(), Vec::new());
    for (step, op) in ops {
        time += step;
        let command = given.command(op);
        let outcome = model.apply(TimeMs(time as u64), &command);
        given.note(&outcome);
        let (time_ms, command) = (time as u64, Some(codec::encode_command(&command)));
        proposals.push(pb::Proposal { time_ms, traceparent: String::new(), command });
        outcomes.push(outcome);
    }
    Script { proposals, outcomes, quota, model }
}

/// The results of a state machine.
#[derive(Debug, Default, PartialEq)]
struct Said {
    outcomes: Vec<Outcome>,
    events: Vec<Event>,
    closed: Vec<SessionId>,
}

/// Applies entries without committing.
fn stage(machine: &mut StateMachine, said: &mut Said, entries: &[AppliedEntry]) {
    let applied = machine.stage(entries.to_vec()).expect("stage");
    said.outcomes.extend(applied.outcomes.into_iter().flatten());
    said.events.extend(applied.events.iter().map(|event| (**event).clone()));
    said.closed.extend(applied.closed_sessions);
    assert_eq!((applied.revision, applied.clock), (machine.applied().revision, machine.applied().clock));
}

/// Entries of one to three proposals, divided by the numbers in `cuts`.
fn entries(proposals: &[pb::Proposal], (quota_messages, quota_bytes): (u64, u64), cuts: &[usize]) -> Vec<AppliedEntry> {
    let (mut rest, mut cuts, mut entries) = (proposals, cuts.iter().cycle(), Vec::new());
    while !rest.is_empty() {
        let (head, tail) = rest.split_at((cuts.next().expect("cycles") % 3 + 1).min(rest.len()));
        let batch = pb::Batch { proposals: head.to_vec(), quota_messages, quota_bytes };
        let log_id = pb::LogId { term: 1, node_id: 1, index: entries.len() as u64 + 1 };
        entries.push(AppliedEntry { log_id, payload: AppliedPayload::Batch(batch.encode_to_vec().into()) });
        rest = tail;
    }
    entries
}

/// Every row of every table, without the log id, which depends on the batching.
fn dump(dir: &Path) -> Vec<String> {
    let conn = quorum_chat::storage::open_file(&dir.join("chat.db")).expect("open");
    let mut tables = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").expect("tables");
    let tables: Vec<String> =
        tables.query_map([], |row| row.get(0)).expect("tables").collect::<Result<_, _>>().expect("tables");
    assert!(tables.len() >= 9, "{tables:?}");
    let mut rows = Vec::new();
    for table in tables {
        let columns = if table == "state" { "membership, revision, clock_ms, digest, digest_since" } else { "*" };
        let mut statement = conn.prepare(&format!("SELECT {columns} FROM {table}")).expect("select");
        let count = statement.column_count();
        let read = |row: &rusqlite::Row<'_>| (0..count).map(|i| row.get(i)).collect::<Result<Vec<Value>, _>>();
        for row in statement.query_map([], read).expect("rows") {
            rows.push(format!("{table}: {:?}", row.expect("row")));
        }
    }
    rows.sort_unstable();
    rows
}

/// How the state moves into another directory, after this number of calls.
#[derive(Clone, Copy)]
enum Move {
    Never,
    BySnapshot(usize),
    /// The files as they are at that moment.
    ByCrash(usize),
}

/// Applies a script in any batching, with commits at the places that `calls` selects.
fn run(script: &Script, cuts: &[usize], calls: &[usize], moves: Move) -> (Said, Vec<String>) {
    let (first, second) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut machine = StateMachine::open(first.path()).expect("open");
    let (mut said, mut dir) = (Said::default(), first.path());
    let entries = entries(&script.proposals, script.quota, cuts);
    let mut calls = calls.iter().cycle();
    // A revision always has the same digest, whatever else was applied.
    let mut at_revisions = std::collections::BTreeMap::from([(Revision(0), StateDigest::default())]);
    let (mut count, mut done) = (0, 0);
    while done < entries.len() {
        let call = calls.next().expect("cycles");
        let end = (done + call % 5 + 1).min(entries.len());
        stage(&mut machine, &mut said, &entries[done..end]);
        done = end;
        count += 1;
        let (revision, digest) = (machine.applied().revision, machine.applied().chain.digest);
        assert_eq!(*at_revisions.entry(revision).or_insert(digest), digest, "revision {revision}");
        if *call < 5 {
            machine.commit().expect("commit");
        }
        match moves {
            Move::BySnapshot(at) if at == count => {
                machine.commit().expect("commit");
                let snapshot = StateMachine::build_snapshot(dir).expect("snapshot");
                assert_eq!(StateMachine::verify_snapshot(&snapshot.path).expect("verify"), snapshot.meta);
                dir = second.path();
                machine = StateMachine::open(dir).expect("open");
                machine.install_snapshot(&snapshot.path).expect("install");
            }
            Move::ByCrash(at) if at == count => {
                for name in ["chat.db", "chat.db-wal"] {
                    std::fs::copy(dir.join(name), second.path().join(name)).expect("copy");
                }
                dir = second.path();
                machine = StateMachine::open(dir).expect("open");
                // Uncommitted entries are lost, and replayed from the log.
                let kept = machine.applied().log_id.map_or(0, |id| id.index as usize);
                let mut again = Said::default();
                stage(&mut machine, &mut again, &entries[kept..done]);
                assert!(said.outcomes.ends_with(&again.outcomes) && said.events.ends_with(&again.events));
            }
            _ => {}
        }
    }
    drop(machine);
    let reopened = StateMachine::open(dir).expect("reopen");
    assert_eq!(reopened.applied().revision, script.model.revision);
    assert_eq!(at_revisions[&script.model.revision], reopened.applied().chain.digest);
    (said, dump(dir))
}

/// Runs all queries, and compares the answers with the model's.
fn compare_answers(dir: &Path, model: &Model) {
    let readers = Readers::open(dir, 1).expect("readers");
    for account in &model.accounts {
        let me = account.id;
        readers
            .read(|query| {
                compare_account(query, model, account)?;
                for after in (0..=model.revision.0).step_by(3).map(Revision) {
                    let expected = model.events_for(me, after, model.revision);
                    // In pages, like subscriptions.
                    let (mut events, mut cursor) = (Vec::new(), after);
                    loop {
                        let page = query.events_after(me, cursor, model.revision, 3)?;
                        let done = page.len() < 3;
                        events.extend(page);
                        if done {
                            break;
                        }
                        cursor = events.last().expect("a full page").revision;
                    }
                    assert_eq!(events, expected, "after {after}");
                }
                assert_eq!(query.undelivered(me, Revision(0), model.revision, 1000)?, model.undelivered(me));
                let mine = model.conversations.iter().filter(|(_, c)| c.members.contains(&me));
                let mut unread = 0;
                for (id, conversation) in mine {
                    compare_pages(query, model, me, *id, conversation)?;
                    unread += model.unread(me, *id);
                }
                assert_eq!(query.unread_total(me)?, unread);
                let (list, total) = query.conversations(me, None, 200)?;
                assert_eq!(list.len() as u64, total);
                assert!(list.is_sorted_by(|a, b| a.last_revision > b.last_revision));
                for summary in list {
                    let visible = model.visible(me, summary.conversation);
                    assert_eq!(summary.last_message.map(|m| m.seq), visible.last().map(|(seq, _)| *seq));
                    assert_eq!(summary.unread, model.unread(me, summary.conversation));
                }
                Ok(())
            })
            .expect("read");
    }
}

fn compare_account(
    query: &quorum_chat::storage::Query<'_>,
    model: &Model,
    account: &model::Account,
) -> Result<(), quorum_chat::storage::StorageError> {
    for device in (0..40_u8).map(|device| TokenHash([device; 32])) {
        assert_eq!(query.is_known_device(account.id, &device)?, account.devices.contains(&device));
    }
    let row = query.account_by_name(&account.name)?.expect("accounts stay");
    assert_eq!((row.deleted, row.disabled), (account.deleted, account.disabled));
    assert_eq!(row.password_revision, account.password_revision);
    if !row.deleted {
        assert_eq!(row.password_hash, account.hash);
    }
    let mut open: Vec<_> =
        model.sessions.iter().filter(|(_, s)| s.account == account.id && s.ends > model.clock).collect();
    open.sort_by_key(|(id, session)| (session.used, **id));
    let rows = query.sessions_of(account.id)?;
    let rows: Vec<_> = rows.iter().rev().map(|row| (row.id, row.used_at, row.ends_at)).collect();
    let used = |s: &model::Session| account.privacy.session_activity.then_some(s.used);
    assert_eq!(rows, open.into_iter().map(|(id, s)| (*id, used(s), s.ends)).collect::<Vec<_>>());
    assert_eq!(query.privacy(account.id)?, account.privacy);
    assert_eq!(query.registration()?, model.registration);
    assert_eq!(query.invitations()?.len(), model.invitations.len());
    Ok(())
}

fn compare_pages(
    query: &quorum_chat::storage::Query<'_>,
    model: &Model,
    me: AccountId,
    id: ConversationId,
    conversation: &model::Conversation,
) -> Result<(), quorum_chat::storage::StorageError> {
    let mut visible = model.visible(me, id);
    visible.reverse();
    let (mut before, mut at) = (None, 0);
    loop {
        let page = query.conversation_page(me, id, before, 2)?;
        assert_eq!((page.total, page.unread), (visible.len() as u64, model.unread(me, id)));
        assert_eq!(page.last_seq.0, conversation.messages.len() as u64);
        for row in &page.members {
            let seen = (conversation.marks[&row.account].0, conversation.read_as_seen_by(me, row.account));
            assert_eq!((row.delivered, row.read), seen);
        }
        for row in &page.messages {
            let (seq, message) = &visible[at];
            assert_eq!((row.seq, row.id, row.sender), (*seq, message.revision, message.sender));
            assert_eq!((row.body.as_str(), row.deleted), (message.body.as_str(), message.deleted));
            assert_eq!(row.sender_name, model.name(message.sender));
            let others = || conversation.marks.iter().filter(|(member, _)| **member != message.sender);
            let expected = if others().all(|(member, _)| conversation.read_as_seen_by(me, *member) >= *seq) {
                MessageProgress::Read
            } else if others().all(|(_, mark)| mark.0 >= *seq) {
                MessageProgress::Delivered
            } else {
                MessageProgress::Sent
            };
            assert_eq!(row.status, expected);
            at += 1;
        }
        assert_eq!(page.has_more, at < visible.len());
        if !page.has_more {
            return Ok(());
        }
        before = page.messages.last().map(|row| row.seq);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn outcomes_and_events_are_the_models(
        ops in ops(),
        quota in quota(),
        cuts in prop::collection::vec(0..3_usize, 1..9),
    ) {
        let script = script(&ops, quota);
        let dir = tempfile::tempdir().expect("tempdir");
        let mut machine = StateMachine::open(dir.path()).expect("open");
        let mut said = Said::default();
        stage(&mut machine, &mut said, &entries(&script.proposals, quota, &cuts));
        machine.commit().expect("commit");
        prop_assert_eq!(&said.outcomes, &script.outcomes);
        prop_assert_eq!(&said.events, &script.model.events);
        prop_assert_eq!(&said.closed, &script.model.closed);
        prop_assert_eq!(machine.applied().clock, script.model.clock);
        compare_answers(dir.path(), &script.model);
    }

    #[test]
    fn any_batching_and_any_copy_gives_the_same(
        ops in ops(),
        quota in quota(),
        cuts in prop::collection::vec(0..3_usize, 1..9),
        calls in prop::collection::vec(0..10_usize, 1..9),
        move_at in 1..6_usize,
    ) {
        let script = script(&ops, quota);
        let one_by_one = run(&script, &[0], &[0], Move::Never);
        let in_batches = run(&script, &cuts, &calls, Move::Never);
        let moved = run(&script, &cuts, &calls, Move::BySnapshot(move_at));
        let crashed = run(&script, &cuts, &calls, Move::ByCrash(move_at));
        prop_assert_eq!(&one_by_one.0.outcomes, &script.outcomes);
        prop_assert_eq!(&one_by_one, &in_batches);
        prop_assert_eq!(&one_by_one, &moved);
        prop_assert_eq!(&one_by_one, &crashed);
    }
}
