//! Point 12: one command or read does bounded work, however long the history is.
//!
//! The state machine itself creates the history, as a node applies it. The test measures how long others would wait
//! behind one command. Each bound is many times the duration on an idle machine in a debug build, and a small part of a
//! walk over the history. A walk is slow each time but a busy disk is not, so the median of each kind counts.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chat::{
    AccountId, ClientId, Command, ConversationId, Destination, Login, Outcome, ReceiptItem, Revision, Seq, SessionId,
    TokenHash,
};
use client::Consistency;
use futures_util::future::join_all;
use prost::Message as _;
use proto::log::v1 as pb;
use storage::{AppliedEntry, AppliedPayload, Query, Readers, StateMachine, StorageError, codec};
use uuid::Uuid;

use support::{Cluster, eventually};

/// Number of messages in the history.
const MESSAGES: u32 = 60_000;
/// Maximum median of the commands or reads of a kind.
const MEDIAN_MAX: Duration = Duration::from_millis(60);
/// Maximum for a kind that is measured only once or twice, where a single delay of the disk would decide.
const SINGLE_MAX: Duration = Duration::from_millis(300);

const MALLORY: SessionId = SessionId(3);
const BOB: SessionId = SessionId(4);
const CHAT: ConversationId = ConversationId(5);

struct History {
    machine: StateMachine,
    index: u64,
    dir: tempfile::TempDir,
    readers: Readers,
    /// The durations of each kind of command and read.
    took: RefCell<BTreeMap<&'static str, Vec<Duration>>>,
}

impl History {
    /// Creates the accounts of Mallory (1) and Bob (2), who have sent each other messages in turn.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = StateMachine::open(dir.path()).unwrap();
        let readers = Readers::open(dir.path(), 1).unwrap();
        let mut history = Self { machine, index: 0, dir, readers, took: RefCell::default() };
        let create = |name: &str| Command::CreateAccount {
            username: name.into(),
            password_hash: "hash".into(),
            request_id: None,
            invitation: None,
        };
        let open = |account: u64| Command::OpenSession {
            account: AccountId(account),
            token_hash: TokenHash([account as u8; 32]),
            lifetime_ms: 1 << 40,
            login: Login::default(),
        };
        history.apply(vec![create("mallory"), create("bob"), open(1), open(2)]);
        let messages: Vec<u32> = (0..MESSAGES).collect();
        for part in messages.chunks(512) {
            history.apply(part.iter().map(|number| send(*number)).collect());
        }
        history
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        self.index += 1;
        let proposal = |command: &Command| pb::Proposal {
            time_ms: 1000,
            traceparent: String::new(),
            command: Some(codec::encode_command(command)),
        };
        let batch = pb::Batch { proposals: commands.iter().map(proposal).collect(), ..Default::default() };
        let log_id = pb::LogId { term: 1, node_id: 1, index: self.index };
        let payload = AppliedPayload::Batch(batch.encode_to_vec().into());
        let mut applied = self.machine.apply(vec![AppliedEntry { log_id, payload }]).unwrap();
        applied.outcomes.remove(0)
    }

    fn measured(&mut self, what: &'static str, command: Command) -> Outcome {
        let started = Instant::now();
        let outcome = self.apply(vec![command]).remove(0);
        self.note(what, started.elapsed());
        outcome
    }

    fn note(&self, what: &'static str, took: Duration) {
        self.took.borrow_mut().entry(what).or_default().push(took);
    }

    /// Asserts that no command or read took too long.
    fn nobody_waited(self) {
        for (what, mut took) in self.took.into_inner() {
            took.sort_unstable();
            let (median, max) = (took[took.len() / 2], if took.len() < 3 { SINGLE_MAX } else { MEDIAN_MAX });
            assert!(median < max, "{what} took {median:?} at the median of {}", took.len());
        }
    }

    fn read<T>(&self, what: &'static str, read: impl FnOnce(&Query<'_>) -> Result<T, StorageError>) -> T {
        let started = Instant::now();
        let answer = self.readers.read(read).unwrap();
        self.note(what, started.elapsed());
        answer
    }
}

fn send(number: u32) -> Command {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    let (session, to) = if number.is_multiple_of(2) { (MALLORY, "bob") } else { (BOB, "mallory") };
    Command::SendMessage { session, to: Destination::Person(to.into()), client_id: ClientId(id), body: "hello".into() }
}

fn read_up_to(seq: u64) -> Command {
    Command::Receipts(vec![ReceiptItem { session: BOB, conversation: CHAT, up_to: Seq(seq), read: true }])
}

#[test]
fn marking_in_the_middle_of_a_long_history_delays_nobody() {
    let mut history = History::new();
    for part in 1..8 {
        let seq = u64::from(MESSAGES) * part / 8;
        history.measured("marking in the middle", read_up_to(seq));
        let unread = history.read("counting", |query| query.unread(AccountId(2), CHAT));
        assert_eq!(unread, (u64::from(MESSAGES) - seq) / 2);
    }
    history.nobody_waited();
}

#[test]
fn the_deletion_of_an_account_with_a_long_history_delays_nobody() {
    let mut history = History::new();
    let begun = history.measured("deleting the account", Command::BeginAccountDeletion { session: MALLORY });
    assert!(
        matches!(begun, Outcome::AccountDeleted { deleted_messages, .. } if deleted_messages == u64::from(MESSAGES / 2))
    );
    // The whole conversation shows tombstones immediately.
    let page = history.read("a page", |query| query.conversation_page(AccountId(2), CHAT, None, 200));
    assert_eq!(page.unread, 0);
    for message in &page.messages {
        assert_eq!((message.deleted, message.body.is_empty()), (message.sender == AccountId(1), message.deleted));
    }
    let events = history.read("events", |query| query.events_after(AccountId(2), Revision(5), Revision(60), 64));
    assert!(events.len() >= 50);
    let mut steps = 0;
    loop {
        let outcome = history.measured("a step", Command::EraseAccount { account: AccountId(1), limit: 256 });
        steps += 1;
        // Marking stays exact and fast meanwhile.
        if steps == 20 {
            history.measured("marking in the middle", read_up_to(u64::from(MESSAGES) / 3));
            assert_eq!(history.read("counting", |query| query.unread(AccountId(2), CHAT)), 0);
        }
        match outcome {
            Outcome::AccountErased { done: true, .. } => break,
            Outcome::AccountErased { done: false, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(steps >= MESSAGES / 256);
    assert_eq!(history.read("what is left", |query| query.next_erasure()), None);
    let database = storage::open_file(&history.dir.path().join("chat.db")).unwrap();
    let count = |sql: &str| -> i64 { database.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT count(*) FROM message WHERE sender_id = 1 AND (body <> '' OR deleted = 0)"), 0);
    assert_eq!(count("SELECT count(*) FROM message WHERE sender_id = 2 AND body = 'hello'"), i64::from(MESSAGES / 2));
    assert_eq!(count("SELECT count(*) FROM erasure"), 0);
    assert_eq!(count("SELECT messages + bytes FROM usage WHERE account_id = 1"), 0);
    assert_eq!(count("SELECT count(*) FROM deletion WHERE account_id = 1 AND kind = 3"), 1);
    drop(database);
    history.nobody_waited();
}

#[test]
fn hidden_messages_are_skipped_and_not_walked_over() {
    let mut history = History::new();
    let hidden: Vec<u64> = (0..30_000).map(|number| CHAT.0 + 20_000 + number).collect();
    for messages in hidden.chunks(128) {
        let messages = messages.to_vec();
        let delete = Command::DeleteMessages { session: BOB, messages, for_everyone: false };
        history.measured("hiding messages", delete);
    }
    let page = history.read("a page", |query| query.conversation_page(AccountId(2), CHAT, Some(Seq(50_001)), 50));
    assert_eq!(page.messages.len(), 50);
    assert_eq!(page.messages[0].seq, Seq(20_000));
    assert_eq!(page.total, u64::from(MESSAGES) - 30_000);
    history.measured("marking in the middle", read_up_to(35_000));
    let unread = history.read("counting", |query| query.unread(AccountId(2), CHAT));
    assert_eq!(unread, (u64::from(MESSAGES) - 50_000) / 2);
    history.nobody_waited();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_finishes_the_deletion_of_an_account() {
    const PARALLEL: u32 = 16;
    const EACH: u32 = 100;
    let mut cluster = Cluster::five().await;
    let (_, mallory) = cluster.register("mallory").await;
    let (_, bob) = cluster.register("bob").await;
    let leader = cluster.leader().await;
    let senders = (0..PARALLEL).map(|_| {
        let mallory = cluster.direct(leader, &mallory);
        async move {
            for _ in 0..EACH {
                mallory.send(Uuid::new_v4(), "bob", "the secret of mallory").await.unwrap();
            }
        }
    });
    join_all(senders).await;
    let deleted = cluster.direct(leader, &mallory).delete_account().await.unwrap();
    assert_eq!(deleted, u64::from(PARALLEL * EACH));
    cluster[leader].kill();
    // On every node, all of it is gone immediately.
    let successor = cluster.leader().await;
    for node in cluster.up() {
        let page = eventually("a page", async || {
            let bob = cluster.direct(node, &bob);
            bob.read("mallory", Consistency::Linearizable).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!((page.messages.len(), page.unread_count), (200, 0));
        assert!(page.messages.iter().all(|message| message.deleted && message.body.is_empty()));
    }
    // Others are served meanwhile, and the bodies are erased.
    let bob = cluster.direct(successor, &bob);
    eventually("nothing is left", async || {
        let started = Instant::now();
        bob.send(Uuid::new_v4(), "bob", "a note").await.map_err(|error| error.to_string())?;
        assert!(started.elapsed() < Duration::from_secs(2), "a send took {:?}", started.elapsed());
        for node in cluster.up() {
            let file = cluster[node].data_dir().join("chat.db");
            let database = rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
                .map_err(|error| error.to_string())?;
            let sql =
                "SELECT (SELECT count(*) FROM erasure), (SELECT count(*) FROM message WHERE body LIKE '%mallory')";
            let left: (i64, i64) =
                database.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(|error| error.to_string())?;
            if left != (0, 0) {
                return Err(format!("node {node} has {left:?}"));
            }
        }
        Ok(())
    })
    .await;
}
