//! The inputs on which the digest depends, and those on which it does not.

use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;

use super::*;
use crate::{AppliedEntry, AppliedPayload, StateMachine};
use chat::{
    AccountCommand, AccountId, ConversationId, Member, MessageSent, PrivacyChange, ReceiptItem, SessionId, TokenHash,
};
use proto::log::v1 as pb;

/// The chain after one proposal.
fn after(command: &Command, outcome: &Outcome, events: &[Event], revision: u64, clock: u64) -> Chain {
    let mut chain = Chain::default();
    let mut fold = Fold::begin(&chain, command);
    fold.row([1]);
    fold.end(&mut chain, outcome, events.iter(), (Revision(1), Revision(revision)), TimeMs(clock));
    chain
}

fn set_privacy(session: u64, read_receipts: Option<bool>, session_activity: Option<bool>) -> Command {
    let change = PrivacyChange { read_receipts, session_activity };
    Command::Account(AccountCommand::SetPrivacy { session: SessionId(session), change })
}

fn first_commands() -> Vec<Command> {
    let create = |name: &str, hash: &str, id: Option<u8>| Command::CreateAccount {
        username: name.into(),
        password_hash: hash.into(),
        request_id: id.map(|id| ClientId([id; 16])),
        invitation: None,
    };
    let open = |account, token, lifetime_ms| Command::OpenSession {
        account: AccountId(account),
        token_hash: TokenHash([token; 32]),
        lifetime_ms,
        login: chat::Login::default(),
    };
    let send = |session, to, client, body: &str| Command::SendMessage {
        session: SessionId(session),
        to,
        client_id: ClientId([client; 16]),
        body: body.into(),
    };
    let person = |name: &str| Destination::Person(name.into());
    let receipt = |session, conversation, up_to, read| ReceiptItem {
        session: SessionId(session),
        conversation: ConversationId(conversation),
        up_to: Seq(up_to),
        read,
    };
    let delete = |session, messages: &[u64], for_everyone| Command::DeleteMessages {
        session: SessionId(session),
        messages: messages.to_vec(),
        for_everyone,
    };
    vec![
        create("a", "h", None),
        create("b", "h", None),
        create("a", "i", None),
        create("ah", "", None),
        create("a", "h", Some(0)),
        create("a", "h", Some(1)),
        open(1, 1, 1),
        open(2, 1, 1),
        open(1, 2, 1),
        open(1, 1, 2),
        Command::CloseSession { session: SessionId(1), all: false },
        Command::CloseSession { session: SessionId(2), all: false },
        Command::CloseSession { session: SessionId(1), all: true },
        Command::DeleteAccount { session: SessionId(1) },
        Command::DeleteAccount { session: SessionId(2) },
        send(1, person("a"), 1, "x"),
        send(2, person("a"), 1, "x"),
        send(1, person("b"), 1, "x"),
        send(1, Destination::Conversation(ConversationId(1)), 1, "x"),
        send(1, Destination::Conversation(ConversationId(2)), 1, "x"),
        send(1, person("a"), 2, "x"),
        send(1, person("a"), 1, "y"),
        Command::Receipts(vec![]),
        Command::Receipts(vec![receipt(1, 1, 1, false)]),
        Command::Receipts(vec![receipt(2, 1, 1, false)]),
        Command::Receipts(vec![receipt(1, 2, 1, false)]),
        Command::Receipts(vec![receipt(1, 1, 2, false)]),
        Command::Receipts(vec![receipt(1, 1, 1, true)]),
        Command::Receipts(vec![receipt(1, 1, 1, true); 2]),
        delete(1, &[1, 2], false),
        delete(2, &[1, 2], false),
        delete(1, &[1], false),
        delete(1, &[2, 1], false),
        delete(1, &[1, 2], true),
    ]
}

/// All commands. New ones come last.
fn commands() -> Vec<Command> {
    [first_commands(), later_commands()].concat()
}

/// Commands that were added after the first version.
fn later_commands() -> Vec<Command> {
    vec![
        Command::BeginAccountDeletion { session: SessionId(1) },
        Command::BeginAccountDeletion { session: SessionId(2) },
        Command::EraseAccount { account: AccountId(1), limit: 1 },
        Command::EraseAccount { account: AccountId(2), limit: 1 },
        Command::EraseAccount { account: AccountId(1), limit: 2 },
        Command::IssueJoinToken { token_hash: TokenHash([1; 32]), lifetime_ms: 1 },
        Command::IssueJoinToken { token_hash: TokenHash([2; 32]), lifetime_ms: 1 },
        Command::IssueJoinToken { token_hash: TokenHash([1; 32]), lifetime_ms: 2 },
        Command::RedeemJoinToken { token_hash: TokenHash([1; 32]), admission: 1 },
        Command::RedeemJoinToken { token_hash: TokenHash([2; 32]), admission: 1 },
        Command::RedeemJoinToken { token_hash: TokenHash([1; 32]), admission: 2 },
        set_privacy(1, None, None),
        set_privacy(2, None, None),
        set_privacy(1, Some(false), None),
        set_privacy(1, Some(true), None),
        set_privacy(1, None, Some(false)),
        set_privacy(1, None, Some(true)),
    ]
}

fn outcomes() -> Vec<Outcome> {
    let created = |account, revision, repeated| Outcome::AccountCreated {
        account: AccountId(account),
        revision: Revision(revision),
        repeated,
    };
    let opened = |session, account, expires_at, revision| Outcome::SessionOpened {
        session: SessionId(session),
        account: AccountId(account),
        expires_at: TimeMs(expires_at),
        revision: Revision(revision),
    };
    let sent = |conversation, seq, revision, time, repeated| {
        Outcome::MessageSent(MessageSent {
            conversation: ConversationId(conversation),
            seq: Seq(seq),
            revision: Revision(revision),
            time: TimeMs(time),
            repeated,
        })
    };
    let mut outcomes = vec![
        created(1, 1, false),
        created(2, 1, false),
        created(1, 2, false),
        created(1, 1, true),
        opened(1, 1, 1, 1),
        opened(2, 1, 1, 1),
        opened(1, 2, 1, 1),
        opened(1, 1, 2, 1),
        opened(1, 1, 1, 2),
        Outcome::SessionsClosed { count: 1, revision: Revision(1) },
        Outcome::SessionsClosed { count: 2, revision: Revision(1) },
        Outcome::SessionsClosed { count: 1, revision: Revision(2) },
        Outcome::AccountDeleted { revision: Revision(1), deleted_messages: 1 },
        Outcome::AccountDeleted { revision: Revision(2), deleted_messages: 1 },
        Outcome::AccountDeleted { revision: Revision(1), deleted_messages: 2 },
        sent(1, 1, 1, 1, false),
        sent(2, 1, 1, 1, false),
        sent(1, 2, 1, 1, false),
        sent(1, 1, 2, 1, false),
        sent(1, 1, 1, 2, false),
        sent(1, 1, 1, 1, true),
        Outcome::ReceiptsApplied(vec![]),
        Outcome::ReceiptsApplied(vec![Ok((Seq(1), Revision(1)))]),
        Outcome::ReceiptsApplied(vec![Ok((Seq(2), Revision(1)))]),
        Outcome::ReceiptsApplied(vec![Ok((Seq(1), Revision(2)))]),
        Outcome::ReceiptsApplied(vec![Err(Rejection::SessionExpired)]),
        Outcome::MessagesDeleted { deleted: 1, ignored: 1, revision: Revision(1) },
        Outcome::MessagesDeleted { deleted: 2, ignored: 1, revision: Revision(1) },
        Outcome::MessagesDeleted { deleted: 1, ignored: 2, revision: Revision(1) },
        Outcome::MessagesDeleted { deleted: 1, ignored: 1, revision: Revision(2) },
    ];
    let reasons = (1..=8).map(|reason| codec::decode_rejection(reason).expect("1 to 8 are known"));
    outcomes.extend(reasons.map(Outcome::Rejected));
    // Added after the first version.
    outcomes.extend([
        Outcome::AccountErased { revision: Revision(1), done: false },
        Outcome::AccountErased { revision: Revision(2), done: false },
        Outcome::AccountErased { revision: Revision(1), done: true },
        Outcome::Rejected(Rejection::QuotaExceeded),
        Outcome::JoinTokenIssued { expires_at: TimeMs(1) },
        Outcome::JoinTokenIssued { expires_at: TimeMs(2) },
        Outcome::JoinTokenRedeemed,
        Outcome::Rejected(Rejection::JoinTokenInvalid),
        Outcome::Rejected(Rejection::JoinTokensFull),
    ]);
    outcomes
}

fn events() -> Vec<Event> {
    let members = |names: &[(u64, &str)]| -> Arc<[Member]> {
        names.iter().map(|(id, name)| Member { account: AccountId(*id), username: (*name).into() }).collect()
    };
    let message = |seq, sender, name: &str, client, deleted| EventKind::Message {
        seq: Seq(seq),
        sender: AccountId(sender),
        sender_name: name.into(),
        client_id: ClientId([client; 16]),
        body: "x".into(),
        deleted,
    };
    let shown = |member, name: &str, delivered, read, shown: Option<u64>| EventKind::Receipt {
        member: AccountId(member),
        member_name: name.into(),
        delivered: Seq(delivered),
        read: Seq(read),
        shown: shown.map(Seq),
    };
    let receipt = |member, name: &str, delivered, read| shown(member, name, delivered, read, Some(read));
    let kinds = vec![
        message(1, 1, "a", 1, false),
        message(2, 1, "a", 1, false),
        message(1, 2, "a", 1, false),
        message(1, 1, "b", 1, false),
        message(1, 1, "a", 2, false),
        message(1, 1, "a", 1, true),
        receipt(1, "a", 1, 1),
        receipt(2, "a", 1, 1),
        receipt(1, "b", 1, 1),
        receipt(1, "a", 2, 1),
        receipt(1, "a", 1, 2),
        EventKind::DeletedForEveryone { seqs: vec![Seq(1)] },
        EventKind::DeletedForEveryone { seqs: vec![Seq(2)] },
        EventKind::DeletedForEveryone { seqs: vec![Seq(1), Seq(2)] },
        EventKind::DeletedForMember { member: AccountId(1), seqs: vec![Seq(1)] },
        EventKind::DeletedForMember { member: AccountId(2), seqs: vec![Seq(1)] },
        EventKind::DeletedForMember { member: AccountId(1), seqs: vec![Seq(2)] },
        EventKind::AccountDeleted { member: AccountId(1), member_name: "a".into() },
        EventKind::AccountDeleted { member: AccountId(2), member_name: "a".into() },
        EventKind::AccountDeleted { member: AccountId(1), member_name: "b".into() },
    ];
    let event = |revision, time, conversation, members, kind| Event {
        trace: None,
        revision: Revision(revision),
        time: TimeMs(time),
        conversation: ConversationId(conversation),
        members,
        kind,
    };
    let two = members(&[(1, "a"), (2, "b")]);
    let mut events: Vec<Event> = kinds.iter().map(|kind| event(1, 1, 1, two.clone(), kind.clone())).collect();
    let kind = &kinds[0];
    events.push(event(2, 1, 1, two.clone(), kind.clone()));
    events.push(event(1, 2, 1, two.clone(), kind.clone()));
    events.push(event(1, 1, 2, two, kind.clone()));
    for other in [&[(1, "a")][..], &[(1, "a"), (3, "b")], &[(1, "a"), (2, "c")]] {
        events.push(event(1, 1, 1, members(other), kind.clone()));
    }
    // Added after the first version.
    let two = members(&[(1, "a"), (2, "b")]);
    for seen in [Some(0), Some(1), None] {
        events.push(event(1, 1, 1, two.clone(), shown(1, "a", 1, 2, seen)));
    }
    events
}

#[test]
fn everything_that_was_asked_and_everything_that_it_came_to_counts() {
    let (commands, outcomes, events) = (commands(), outcomes(), events());
    let (command, outcome, event) = (&commands[15], &outcomes[15], &events[..1]);
    let mut seen = std::collections::HashMap::new();
    let mut differs = |chain: Chain, what: String| {
        if let Some(other) = seen.insert(chain.digest, what.clone()) {
            panic!("{what} and {other} have the same digest");
        }
    };
    for other in &commands {
        differs(after(other, outcome, event, 2, 1), format!("{other:?}"));
    }
    for other in outcomes.iter().filter(|other| *other != outcome) {
        differs(after(command, other, event, 2, 1), format!("{other:?}"));
    }
    for other in &events[1..] {
        differs(after(command, outcome, std::slice::from_ref(other), 2, 1), format!("{other:?}"));
    }
    differs(after(command, outcome, &[], 2, 1), "no event".into());
    differs(after(command, outcome, &events[..2], 2, 1), "another event".into());
    differs(after(command, outcome, event, 3, 1), "another revision".into());
    differs(after(command, outcome, event, 2, 2), "another clock".into());

    let (mut chain, mut fold) = (Chain::default(), Fold::begin(&Chain::default(), command));
    fold.row([2]);
    fold.end(&mut chain, outcome, event.iter(), (Revision(1), Revision(2)), TimeMs(1));
    differs(chain, "another row".into());
}

#[test]
fn the_bytes_never_change() {
    // Those of the first version.
    let (commands, outcomes, events) = (&first_commands(), &outcomes()[..38], &events()[..26]);
    let mut chain = Chain::default();
    for (command, revision) in commands.iter().cycle().zip(1..=40) {
        let fold = Fold::begin(&chain, command);
        let at = |list: usize| revision as usize % list;
        let event = &events[at(events.len())..][..1];
        let revisions = (Revision(revision), Revision(revision + (revision + 2) % 3));
        fold.end(&mut chain, &outcomes[at(outcomes.len())], event.iter(), revisions, TimeMs(revision));
    }
    // Computed by the first version. With another value, nodes of two versions would report a divergence.
    assert_eq!(chain.digest.to_string(), "5130b452bcdb0f4efa896b3df67ecd11f44cfec10eb5105709bd596b4b42a352");
    assert_eq!(chain.since.to_string(), "ad19015f2315d16cd39c3191ef55e7d9d9cf817408a4205f3906c777dd0b7b29");
}

#[test]
fn what_makes_no_revision_goes_into_the_next_one() {
    let (commands, outcomes) = (commands(), outcomes());
    let apply = |chain: &mut Chain, n: usize, revisions: (u64, u64)| {
        let fold = Fold::begin(chain, &commands[n]);
        let revisions = (Revision(revisions.0), Revision(revisions.1));
        fold.end(chain, &outcomes[n], [].iter(), revisions, TimeMs(1));
    };
    let (mut plain, mut more) = (Chain::default(), Chain::default());
    apply(&mut plain, 0, (0, 1));
    apply(&mut more, 0, (0, 1));
    apply(&mut more, 1, (1, 1));
    assert_eq!(
        (plain.digest, plain.since),
        (more.digest, StateDigest::default()),
        "the digest is that of the revision"
    );
    assert_ne!(more.since, StateDigest::default());
    apply(&mut plain, 2, (1, 2));
    apply(&mut more, 2, (1, 2));
    assert_ne!(plain.digest, more.digest);
    assert_eq!((plain.since, more.since), Default::default());
}

fn batch(index: u64, commands: impl IntoIterator<Item = Command>) -> AppliedEntry {
    let proposal = |command: Command| pb::Proposal {
        time_ms: 1000,
        traceparent: String::new(),
        command: Some(codec::encode_command(&command)),
    };
    let batch = pb::Batch { proposals: commands.into_iter().map(proposal).collect(), ..Default::default() };
    let log_id = pb::LogId { term: 1, node_id: 1, index };
    AppliedEntry { log_id, payload: AppliedPayload::Batch(batch.encode_to_vec().into()) }
}

/// Accounts 1 and 2, session 3 of the first.
fn two_accounts() -> Vec<Command> {
    let create = |name: &str| Command::CreateAccount {
        username: name.into(),
        password_hash: "h".into(),
        request_id: None,
        invitation: None,
    };
    let open = Command::OpenSession {
        account: AccountId(1),
        token_hash: TokenHash([1; 32]),
        lifetime_ms: 1_000_000_000,
        login: chat::Login::default(),
    };
    vec![create("alice"), create("bob"), open]
}

fn send(client: u32, body: &str) -> Command {
    let mut client_id = ClientId::default();
    client_id.0[..4].copy_from_slice(&client.to_le_bytes());
    Command::SendMessage { session: SessionId(3), to: Destination::Person("bob".into()), client_id, body: body.into() }
}

#[test]
fn a_changed_row_shows_when_it_is_touched_and_ever_after() {
    let changes = [
        "UPDATE account SET username = 'mallory' WHERE id = 1",
        "UPDATE account SET username = 'mallory' WHERE id = 2",
        "UPDATE session SET ends_ms = 1",
        "UPDATE session SET account_id = 2",
        "UPDATE conversation SET last_seq = last_seq + 1",
        "UPDATE conversation SET last_message_revision = last_message_revision - 1",
        "UPDATE member SET sent = sent + 1",
        "DELETE FROM conversation",
        "UPDATE state SET revision = revision + 1",
        "UPDATE state SET clock_ms = clock_ms + 5000",
        "UPDATE state SET digest_since = randomblob(32)",
    ];
    for change in changes {
        let dirs = [tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir")];
        let mut digests = Vec::new();
        for (dir, change) in dirs.iter().zip(["", change]) {
            let start = || batch(1, two_accounts().into_iter().chain([send(1, "one"), send(2, "two")]));
            let mut machine = StateMachine::open(dir.path()).expect("open");
            machine.apply(vec![start()]).expect("applied");
            machine.write_all_back().expect("written");
            drop(machine);
            let conn = crate::open_file(&dir.path().join("chat.db")).expect("open");
            conn.execute_batch(change).expect("changed");
            drop(conn);
            let mut machine = StateMachine::open(dir.path()).expect("open");
            // The outcome does not matter. A state that cannot apply the command at all counts as detected.
            let mut chain = Vec::new();
            for (index, body) in [(2, "three"), (3, "four")] {
                let applied = machine.apply(vec![batch(index, [send(index as u32 + 8, body)])]);
                chain.push(applied.ok().map(|_| machine.applied().chain));
            }
            digests.push(chain);
        }
        assert!(digests[0].iter().all(Option::is_some));
        assert!(digests[0].iter().zip(&digests[1]).all(|(one, other)| one != other), "{change}");
    }
}

#[test]
fn notes_and_reports_stay_out_of_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    machine.apply(vec![batch(1, two_accounts())]).expect("applied");
    let chain = machine.applied().chain;
    let report = chat::DigestReport { node_id: 7, mark: 2, digest: StateDigest([7; 32]) };
    let applied = machine.apply(vec![batch(2, [Command::NoteDigest]), batch(3, [Command::ReportDigest(report)])]);
    let applied = applied.expect("applied");
    assert_eq!(machine.applied().chain, chain);
    assert_eq!(applied.reported, [report]);
    let noted: Vec<_> = applied.noted.iter().map(|noted| (noted.mark, noted.revision, noted.digest)).collect();
    assert_eq!(noted, [(2, Revision(3), chain.digest)]);

    // The first mark of an entry counts, with everything before it in the entry.
    let applied =
        machine.apply(vec![batch(4, [send(1, "one"), Command::NoteDigest, send(2, "two"), Command::NoteDigest])]);
    let noted = &applied.expect("applied").noted[..];
    assert!(matches!(noted, [noted] if noted.mark == 4 && noted.revision == Revision(4)), "{noted:?}");
    assert_ne!(noted[0].digest, chain.digest);
    assert_ne!(noted[0].digest, machine.applied().chain.digest);
}

/// Measures the cost of the chain: `cargo test --release --lib digest -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_message_costs() {
    const MESSAGES: u32 = 50_000;
    let (commands, outcomes, events) = (commands(), outcomes(), events());
    let text = "x".repeat(100);
    let command = match &commands[15] {
        Command::SendMessage { session, to, client_id, .. } => {
            Command::SendMessage { session: *session, to: to.clone(), client_id: *client_id, body: text.clone() }
        }
        other => panic!("{other:?}"),
    };
    let mut chain = Chain::default();
    let started = Instant::now();
    for _ in 0..MESSAGES {
        let mut fold = Fold::begin(&chain, &command);
        fold.row([1, 2, 3]);
        fold.end(&mut chain, &outcomes[15], events[..1].iter(), (Revision(1), Revision(2)), TimeMs(1));
    }
    println!("the chain: {} ns a message", started.elapsed().as_nanos() / u128::from(MESSAGES));

    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    machine.apply(vec![batch(1, two_accounts())]).expect("applied");
    let entries: Vec<_> =
        (0..MESSAGES / 100).map(|n| batch(u64::from(n) + 2, (0..100).map(|i| send(n * 100 + i, &text)))).collect();
    let started = Instant::now();
    machine.apply(entries).expect("applied");
    println!("all of apply: {} ns a message", started.elapsed().as_nanos() / u128::from(MESSAGES));
}
